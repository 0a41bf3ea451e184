"""The three ways in which a head is routed come to the same answer."""

import pytest

from sidestep.engine.http1.routing import PLAIN, RequestRouter
from sidestep.policy.route import TO_APP, Route, Rule, SteeredPort
from sidestep.protocols.http1 import CHUNKED, HEAD, LIMITS, Http1Limits
from tests.unit.engine.http1.heads import A, B
from tests.unit.engine.shell import everything, rule

POST = A.replace(b"GET", b"POST")[:-2] + b"Content-Length: 5\r\n\r\n"
CHUNKS = A.replace(b"GET", b"POST")[:-2] + b"Transfer-Encoding: chunked\r\n\r\n"


def searched(name="searched"):
    """A rule of which no needle is known: every head is read into fields."""
    known = rule(name)
    return Rule(known.uid, known.display, known.matches)


@pytest.fixture(params=[rule, searched], ids=["skimmed", "parsed"])
def port(request):
    return SteeredPort(8080, Route((request.param(),)))


@pytest.mark.parametrize(
    ("head", "intercept", "body", "flags"),
    [
        (A, False, 0, 0),
        (POST, False, 5, 0),
        (CHUNKS, False, CHUNKED, 0),
        (A.replace(b"GET", b"HEAD"), False, 0, HEAD),
        (B, True, 0, 0),
        (B.replace(b"GET", b"HEAD"), True, 0, HEAD),
    ],
)
def test_every_way_comes_to_the_same_answer(port, head, intercept, body, flags):
    router = RequestRouter(port, LIMITS)
    for _ in range(4):
        request = router.route(head)
        assert not isinstance(request, str)
        assert (request.decision.intercept is not None) is intercept
        assert (request.body, request.flags) == (body, flags)
        assert request.is_plain is (not intercept and not body and not flags)
        plain = router.plain_request(head)
        assert plain is None or (plain.is_plain and request.is_plain)


def test_a_plain_head_is_one_object_for_all(port):
    for number in range(3):
        request = RequestRouter(port, LIMITS).route(A.replace(b"/a", b"/%d" % number))
        assert request is PLAIN


def test_a_head_that_cannot_be_read_is_named(port):
    router = RequestRouter(port, LIMITS)
    assert router.route(A.replace(b"Host: ", b"Host : ")) == "h1-field"
    assert router.plain_request(A.replace(b"Host: ", b"Host : ")) is None


@pytest.mark.parametrize("data", [A[:-1], A + b"x", A[:-2] + b"Content-Length: 1\r\n\r\nx", B, b"\r\n\r\n"])
def test_only_one_whole_plain_head_is_a_plain_request(data):
    assert RequestRouter(SteeredPort(1, Route((rule(),))), LIMITS).plain_request(data) is None


def test_texts_are_kept_only_for_those_who_are_told():
    taps = (Rule("uid-log", "shop/log", lambda method, path, fields: True, heads_only=True),)
    router = RequestRouter(SteeredPort(1, Route((), taps)), LIMITS)
    request = router.route(A[:-2] + b"Cookie: secret\r\n\r\n")
    assert not isinstance(request, str)
    assert request.is_plain
    assert (request.method, request.target, request.authority) == (b"GET", b"/a", b"app.test")
    assert [*request.fields] == [(b"host", b"app.test"), (b"cookie", b"secret")], "the mirror redacts them"
    assert PLAIN.fields == ()
    assert PLAIN.method == PLAIN.target == PLAIN.authority == b""


def test_a_new_route_begins_with_an_empty_memo():
    port = SteeredPort(1, Route((searched(),)))
    router = RequestRouter(port, LIMITS)
    assert router.route(A) is PLAIN
    assert A in port.route.memo
    port.route = Route((everything(),))
    request = router.route(A)
    assert not isinstance(request, str)
    assert request.decision != TO_APP
    port.route = Route((rule(),))
    assert router.route(A) is PLAIN, "the needles of an earlier route were used"


def test_one_automaton_serves_all_connections_of_a_route():
    port = SteeredPort(1, Route((rule(),)))
    for _ in range(3):
        RequestRouter(port, LIMITS).route(A)
    assert len(port.route.skimmer) == 1


def test_long_heads_are_not_remembered():
    port = SteeredPort(1, Route((searched(),)))
    router = RequestRouter(port, Http1Limits(memo_head=len(A) - 1))
    router.route(A)
    assert not port.route.memo
