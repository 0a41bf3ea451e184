"""What a gate knows of heads: clean ones are remembered, within bounds; what is ruled out is ruled out rightly."""

from ipaddress import ip_address, ip_network
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidestep.engine.http2.head import Head
from sidestep.engine.http2.inspected_streams import InspectedStreams
from sidestep.engine.inspection.gate import Gate
from sidestep.engine.inspection.limits import InspectionLimits
from sidestep.model.filter import Filter, HeaderCondition, HeaderTest, PathCondition, PathTest
from sidestep.model.inspection import (
    Action,
    Direction,
    Match,
    Mode,
    ParameterCondition,
    Pattern,
    Rule,
)
from sidestep.policy.inspection import CLEAN_KINDS, is_nothing
from sidestep.policy.inspection_match import ConnectionFacts, HostFacts
from sidestep.protocols.http1 import parse_request
from tests.effort import examples
from tests.unit.engine.inspection.inspecting import (
    BLOCKED,
    ENFORCE,
    NO_ADMIN,
    NO_SECRET,
    SECRET,
    Inspected,
    Recorder,
    answer,
    gate,
    get,
    inspection,
    path,
    post,
)

TARGETS = ("/", "/a", "/a/b", "/ab?x=1", "/?a=1", "/%61", "/./a", "//a", "/a+b?a+c", "/b\\a", "/b?%61=1", "/?x&a")
FIELDS = (b"X-Kind: 1", b"x-kind: 2", b"X-Other: x-kind: 1", b"X-NOTE: hidden", b"Note:x")


def rules(random: Random) -> list[Rule]:
    made = []
    for number in range(random.randint(1, 3)):
        value = random.choice(("/a", "/ab", "/b/"))
        paths = (PathCondition(random.choice((PathTest.EQUAL, PathTest.PREFIX)), value),)
        headers = (HeaderCondition("x-kind", random.choice((HeaderTest.EXACT, HeaderTest.PRESENT)), "1"),)
        parameters = (ParameterCondition("a", HeaderTest.PRESENT),)
        match = Match(
            Filter(headers if random.random() < 0.4 else (), paths=paths if random.random() < 0.5 else ()),
            parameters if random.random() < 0.3 else (),
        )
        patterns = (Pattern(regex="hidden"),) if random.random() < 0.3 else ()
        direction = random.choice((Direction.REQUEST, Direction.REQUEST, Direction.RESPONSE))
        made.append(Rule(f"r{number}", Action.BLOCK, direction, match=match, patterns=patterns))
    return made


@settings(max_examples=examples(300), deadline=None)
@given(st.integers(0, 1 << 40))
def test_what_is_ruled_out_is_nothing(seed):
    random = Random(seed)
    connection = inspection(*rules(random)).connection(ConnectionFacts())
    for _ in range(5):
        head = get(random.choice(TARGETS).encode(), *random.sample(FIELDS, random.randint(0, 3)))
        parsed = parse_request(head)
        assert not isinstance(parsed, str)
        if connection.rules_out(head):
            assert is_nothing(connection.request(parsed.method, parsed.target, parsed.fields, 0.0))


@pytest.mark.parametrize(
    ("rule", "head", "expected"),
    [
        (NO_ADMIN, get(b"/orders"), True),
        (NO_ADMIN, get(b"/orders", b"X-Kind: /admin"), True),
        (NO_ADMIN, get(b"/admin"), False),
        (NO_ADMIN, get(b"/orders%2f"), False),  # more than one form
        (NO_ADMIN, get(b"http://app.test/admin"), False),
        (NO_SECRET, get(b"/orders"), False),  # its body may hold it
        (Rule("r", Action.LOG, match=Match(Filter((HeaderCondition("x-a", HeaderTest.PRESENT),)))), get(b"/"), True),
        (
            Rule("r", Action.LOG, match=Match(Filter((HeaderCondition("x-a", HeaderTest.PRESENT),)))),
            get(b"/", b"X-A: 1"),
            False,
        ),
    ],
)
def test_what_is_ruled_out(rule, head, expected):
    made = gate(inspection(rule), Recorder())
    assert made.rules_out(head) is expected
    parsed = parse_request(head)
    assert made.rules_out_request(parsed.target, parsed.fields) is expected


_RULES = st.builds(
    Rule,
    st.just("r"),
    st.just(Action.BLOCK),
    st.sampled_from(Direction),
    st.builds(
        Match,
        st.builds(
            Filter,
            headers=st.lists(
                st.builds(HeaderCondition, st.sampled_from(["x-a", "x-b-c"]), st.just(HeaderTest.PRESENT)), max_size=1
            ).map(tuple),
            paths=st.lists(
                st.builds(
                    PathCondition, st.sampled_from([PathTest.PREFIX, PathTest.EQUAL]), st.sampled_from(["/a", "/"])
                ),
                max_size=2,
            ).map(tuple),
        ),
        st.lists(st.builds(ParameterCondition, st.just("q"), st.just(HeaderTest.PRESENT)), max_size=1).map(tuple),
    ),
)
_TARGETS = st.lists(st.sampled_from(["a", "/", "%61", "..", ";", "?", "q", "&", "=", "\\"]), max_size=6).map(
    lambda parts: ("/" + "".join(parts)).encode()
)
_FIELDS = st.lists(st.tuples(st.sampled_from([b"x-a", b"x_a", b"x-b_c", b"x"]), st.just(b"x-b-c")), max_size=2)


@settings(max_examples=examples())
@given(_RULES, _TARGETS, _FIELDS)
def test_nothing_applies_to_what_is_ruled_out(rule, target, fields):
    made = gate(inspection(rule), Recorder())
    fields = [(b"host", b"app.test"), *fields]
    head = get(target, *(name + b": " + value for name, value in fields[1:]))
    if made.rules_out(head) or made.rules_out_request(target, fields):
        assert made.judge("h2", b"GET", target, fields) is None


def test_clean_heads_are_bounded():
    made = gate(inspection(NO_ADMIN), Recorder(), InspectionLimits(clean_heads=3, clean_head=100))
    for number in range(5):
        made.remember_clean(get(b"/%d" % number))
        assert made.is_clean(get(b"/%d" % number))
        assert len(made.token) <= 3
    made.remember_clean(get(b"/" + b"x" * 100))
    assert not made.is_clean(get(b"/" + b"x" * 100))


def test_connections_of_which_rules_say_the_same_share_what_is_clean():
    inside = Rule("r", Action.BLOCK, match=path(), exception=Match(sources=(ip_network("10.0.0.0/8"),)))
    inspected = inspection(inside)
    one, two, other = (
        gate(inspected, Recorder(), client=ip_address(each)) for each in ("10.0.0.1", "10.0.0.2", "192.0.2.1")
    )
    one.remember_clean(get(b"/admin"))
    assert two.is_clean(get(b"/admin"))
    assert not other.is_clean(get(b"/admin"))
    assert one.token is two.token is not other.token


def test_beyond_some_kinds_of_connections_nothing_is_remembered():
    rules_ = [
        Rule(f"r{bit}", Action.LOG, match=Match(server_names=(f"*.{bit}.test",))) for bit in range(CLEAN_KINDS + 2)
    ]
    inspected = inspection(*rules_)
    gates = [gate(inspected, Recorder(), server_name=f"a.{bit}.test") for bit in range(CLEAN_KINDS + 2)]
    for each in gates:
        each.remember_clean(get())
    assert [each.is_clean(get()) for each in gates] == [True] * CLEAN_KINDS + [False] * 2
    assert len({id(each.token) for each in gates}) == CLEAN_KINDS + 2


def test_a_request_that_is_exempt_is_not_judged_and_not_remembered_for_others():
    policies = inspection(NO_ADMIN)
    connection = policies.connection(ConnectionFacts())
    exempt = Gate(connection, Recorder(), lambda: "id", exempt=frozenset({(b"GET", b"/admin")}))
    assert exempt.judge("http/1", b"GET", b"/admin", (), stream=0, ends=True) is None
    assert exempt.judge("http/1", b"GET", b"/admin", (), stream=0).refusal  # a probe has no body
    exempt.remember_clean(get(b"/admin"))
    other = Gate(policies.connection(ConnectionFacts()), Recorder(), lambda: "id")
    assert not exempt.is_clean(get(b"/admin"))
    assert not other.is_clean(get(b"/admin"))
    assert exempt.token is not other.token
    assert other.judge("http/1", b"GET", b"/admin", ()).refusal
    for method, target in ((b"POST", b"/admin"), (b"GET", b"/admin?x"), (b"GET", b"/admin/")):
        assert exempt.judge("http/1", method, target, ()).refusal


def test_nothing_is_judged_once_the_policies_are_gone():
    policies = inspection(NO_ADMIN)
    made = Gate(policies.connection(ConnectionFacts()), Recorder(), lambda: "id")
    assert made.judge("http/1", b"GET", b"/admin", ()).refusal
    policies.give_way(None)
    assert made.judge("http/1", b"GET", b"/admin", ()) is None
    assert not made.rules_out(get(b"/admin"))


def blocking(prefix):
    return Rule("block", Action.BLOCK, match=Match(Filter(paths=(PathCondition(PathTest.PREFIX, prefix),))))


def refused(gate, target):
    """Whether a gate refuses a head, asked the way that relays do."""
    head = get(target)
    if gate.is_clean(head) or gate.rules_out(head):
        return False
    judged = gate.judge("http/1", b"GET", target, ((b"host", b"a"),))
    if judged is None:
        gate.remember_clean(head)
    return judged is not None and judged.refusal is not None


def test_running_connections_follow_edited_policies():
    first, second = inspection(blocking("/a")), inspection(blocking("/b"))
    gates = [Gate(first.connection(ConnectionFacts()), Recorder(), lambda: "id") for _ in range(2)]
    token = gates[0].token
    assert [refused(each, target) for each in gates for target in (b"/a", b"/b", b"/%62")] == [True, False, False] * 2
    first.give_way(second)
    assert gates[0].token is not token
    assert gates[0].token is not gates[0].token
    assert [refused(each, target) for each in gates for target in (b"/b", b"/%62", b"/a")] == [True, True, False] * 2
    assert gates[0].token is gates[1].token is gates[0].token
    third = inspection(blocking("/c"))
    second.give_way(third)
    assert refused(gates[0], b"/c")
    third.give_way(None)
    assert not any(refused(each, target) for each in gates for target in (b"/a", b"/b", b"/c"))


def lenient(*rules):
    """Policies that block, and pass what cannot be read."""
    return inspection(*rules, mode=Mode.ENFORCE)


@pytest.mark.parametrize(
    "demanding",
    [
        inspection(blocking("/b")),
        lenient(blocking("/b"), Rule("answers", Action.LOG, Direction.RESPONSE)),
    ],
    ids=["closes", "responses"],
)
def test_connections_keep_their_policies_where_the_newer_ones_ask_for_more(demanding):
    first, second = lenient(blocking("/a")), demanding
    old = Gate(first.connection(ConnectionFacts()), Recorder(), lambda: "id")
    assert not refused(old, b"/b")
    first.give_way(second)
    for _ in range(2):
        assert [refused(old, target) for target in (b"/a", b"/b")] == [True, False]
    new = Gate(second.connection(ConnectionFacts()), Recorder(), lambda: "id")
    assert [refused(new, target) for target in (b"/a", b"/b")] == [False, True]
    second.give_way(lenient(blocking("/c")))
    assert [refused(old, target) for target in (b"/a", b"/c")] == [False, True]  # which asks for no more
    assert [refused(new, target) for target in (b"/b", b"/c")] == [False, True]
    assert new.closing_policy


def test_a_connection_that_cannot_follow_teaches_the_others_nothing():
    """Both are judged by the same policies; only one relay was made for what the newer ones ask."""
    begun, middle = inspection(blocking("/x")), lenient(blocking("/a"))
    able = Gate(begun.connection(ConnectionFacts()), Recorder(), lambda: "id")
    begun.give_way(middle)
    assert not refused(able, b"/%62")
    unable = Gate(middle.connection(ConnectionFacts()), Recorder(), lambda: "id")
    middle.give_way(inspection(blocking("/b")))
    assert not refused(unable, b"/%62")
    assert refused(able, b"/%62")


@pytest.mark.parametrize("target", [b"/", b"/a%20b"])
def test_a_request_without_a_body_in_which_no_pattern_is_found_is_judged_once(target):
    """Its head is all that rules with patterns look at, so that it is remembered."""
    seen = Recorder()
    made = gate(inspection(NO_SECRET), seen)
    fields = [(b"host", b"app.test")]
    assert made.judge("http/1", b"GET", target, fields, ends=True) is None
    assert made.judge("http/1", b"GET", target, fields) is not None
    found = made.judge("http/1", b"GET", target, [*fields, (b"x", SECRET)], ends=True)
    assert found is not None
    assert found.refusal is not None


def test_a_head_that_is_the_whole_request_says_nothing_of_one_with_a_body():
    made = gate(inspection(NO_SECRET), Recorder())
    streams = InspectedStreams(made)
    head = Head(((b":method", b"POST"), (b":scheme", b"https"), (b":authority", b"a.test"), (b":path", b"/")))
    for stream in (1, 3):
        assert streams.judge(stream, head, diverts=False, ends=True) is None
    assert head.cleared_alone is made.token
    assert streams.judge(5, head, diverts=False, ends=False) is not None
    shell = Inspected(NO_SECRET)
    for _ in range(3):
        shell.client(get())
        shell.app(answer())
    assert shell.gate.is_clean(get())
    shell.client(post(SECRET))
    assert shell.to_client.endswith(BLOCKED)
    upgrade = get(b"/", b"Connection: Upgrade", b"Upgrade: websocket")
    other = Inspected(NO_SECRET)
    other.client(upgrade)
    assert not other.gate.is_clean(upgrade)  # its messages are part of the request


@pytest.mark.parametrize("closing", [frozenset(), frozenset(("shop/q",)), frozenset(("shop/q", "shop/p"))])
def test_a_request_in_doubt_is_refused_for_a_policy_that_is_about_its_host_alone(closing):
    """The policies of the connection pass what cannot be judged."""
    facts = HostFacts("", frozenset(("shop/p",)), "another-host", closing=closing)
    seen = Recorder()
    made = gate(inspection(NO_ADMIN, **ENFORCE), seen, hosts=lambda host: facts)
    assert not made.closes
    judged = made.judge("http/1", b"GET", b"/", [(b"host", b"b.test:")], ends=True)
    refused = "shop/p" in closing
    assert judged.refusal == ("sidestep: policy shop/p, id x1" if refused else None)
    assert seen.reasons == [("request-another-host", refused)]
