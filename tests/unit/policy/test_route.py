"""Where a route sends a request, and what it knows about its rules before any request comes."""

import pytest

from sidestep.policy.route import TO_APP, Decision, Route, Rule, SteeredPort, is_probe

PROBE = (b"user-agent", b"kube-probe/1.31")


def rule(name, *, value=b"me", divert_probes=False, needle=None):
    return Rule(
        f"uid-{name}",
        f"shop/{name}",
        lambda method, path, fields: (b"x-dev", value) in fields and path == b"/a",
        divert_probes,
        needle,
    )


OLD, NEW, TAP = rule("old"), rule("new"), rule("tap")
MINE = [(b"host", b"app.test"), (b"x-dev", b"me")]


@pytest.mark.parametrize(
    ("route", "path", "fields", "decision"),
    [
        (Route(), b"/a", MINE, TO_APP),
        (Route((OLD, NEW)), b"/a", MINE, Decision(OLD)),
        (Route((rule("other", value=b"you"), NEW)), b"/a", MINE, Decision(NEW)),
        (Route((OLD,)), b"/a?b=/c", MINE, Decision(OLD)),
        (Route((OLD,)), b"/b?/a", MINE, TO_APP),
        (Route((OLD,)), b"/a", MINE[:1], TO_APP),
        (Route((OLD,), (TAP,)), b"/a", MINE, Decision(OLD, (TAP,))),
        (Route((), (TAP, NEW)), b"/a", MINE, Decision(None, (TAP, NEW))),
        (Route((), (TAP,)), b"/b", MINE, TO_APP),
        (Route((OLD,), (TAP,)), b"/a", [*MINE, PROBE], Decision(None, (TAP,))),
    ],
)
def test_each_request_goes_where_its_rules_say(route, path, fields, decision):
    assert route.decide(b"GET", path, fields) == decision


def test_what_concerns_nobody_is_one_object():
    assert Route((OLD,), (TAP,)).decide(b"GET", b"/", []) is TO_APP


def test_probes_are_diverted_only_by_rules_that_say_so():
    wanting = rule("wanting", divert_probes=True)
    fields = [*MINE, PROBE]
    assert Route((OLD, wanting)).decide(b"GET", b"/a", fields) == Decision(wanting)
    assert is_probe(fields)
    assert not is_probe([*MINE, (b"user-agent", b"Mozilla kube-probe/1"), (b"x-agent", b"kube-probe/1")])


def test_needles_are_known_only_when_every_rule_has_one():
    named, headless = rule("named", needle=b"\nx-dev:"), rule("headless", needle=b"")
    assert Route((named,), (headless,)).needles == (b"\nx-dev:",)
    assert Route((named,), (headless,)).headless == (headless.matches,)
    assert Route((named, OLD)).needles is None
    assert Route().needles == ()
    assert Route().headless == ()


def test_routes_are_equal_by_their_rules_and_have_memos_of_their_own():
    one, other = Route((OLD,)), Route((OLD,))
    one.memo[b"head"] = None
    assert one == other
    assert not other.memo
    assert SteeredPort(80).route == Route()
