"""Heads that are skimmed for filters and rules in one pass: none is passed on that a rule would have applied to."""

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from sidestep.engine.http1.inspected_requests import InspectedRouter
from sidestep.engine.http1.routing import PLAIN
from sidestep.engine.http2.head import Head
from sidestep.engine.http2.inspected_streams import InspectedStreams
from sidestep.engine.http2.relay import Http2Relay
from sidestep.engine.inspection.sampling import Sampling
from sidestep.model.filter import Filter, HeaderCondition, HeaderTest, PathCondition, PathTest
from sidestep.model.inspection import Action, Direction, Match, ParameterCondition, Pattern, Rule
from sidestep.policy.inspection import SKIMMED, is_nothing
from sidestep.policy.inspection_match import HTTP1_HEAD, HTTP2_HEAD, ConnectionFacts
from sidestep.policy.matching import compile_filter, needle_of
from sidestep.policy.route import TO_APP, Route, SteeredPort
from sidestep.policy.route import Rule as Wanted
from sidestep.protocols.hpack import INITIAL, NONE, Block
from sidestep.protocols.http1 import LIMITS, parse_request
from sidestep.protocols.http1_skim import Skimmer
from sidestep.protocols.http2 import DATA, DEFAULT_LIMITS, END_STREAM, HEADERS, RST_STREAM, frame
from sidestep.protocols.http2_skim import Http2Skimmer
from tests.effort import examples
from tests.harness.table import each_row
from tests.unit.engine.hostile_heads import HOSTILE
from tests.unit.engine.http2.talk import Talk
from tests.unit.engine.http2_peers import request
from tests.unit.engine.inspection.inspecting import (
    NO_ADMIN,
    NO_SECRET,
    Inspected,
    Recorder,
    gate,
    get,
    inspection,
    post,
)
from tests.unit.engine.shell import rule


def match(*, paths=(), headers=(), parameters=()):
    return Match(Filter(paths=tuple(paths), headers=tuple(headers)), parameters=tuple(parameters))


MATCHES = [
    match(paths=[PathCondition(PathTest.PREFIX, "/admin")]),
    match(paths=[PathCondition(PathTest.EQUAL, "/a.b"), PathCondition(PathTest.PREFIX, "/ü")]),
    match(headers=[HeaderCondition("x-key", HeaderTest.EXACT, "1")]),
    match(headers=[HeaderCondition("x_under", HeaderTest.PRESENT, "")]),
    match(headers=[HeaderCondition("host", HeaderTest.EXACT, "b.test")]),
    match(parameters=[ParameterCondition("token", HeaderTest.PRESENT, "")]),
    match(parameters=[ParameterCondition("a[b]", HeaderTest.EXACT, "1")]),
    match(
        paths=[PathCondition(PathTest.REGEX, "/x[0-9]")], headers=[HeaderCondition("x-both", HeaderTest.PRESENT, "")]
    ),
]
RULES = [
    Rule(f"r{at}", Action.BLOCK, direction, match=each, patterns=patterns)
    for at, each in enumerate(MATCHES)
    for direction in Direction
    for patterns in ((), (Pattern(regex="never"),))
    if not (direction is Direction.RESPONSE and each.filter.headers)
]
MIXED = [Rule(f"m{at}", Action.BLOCK, match=MATCHES[at]) for at in (0, 1, 2, 3, 5, 6, 7)]
INSPECTIONS = [inspection(each) for each in RULES] + [inspection(*MIXED)]

targets = st.sampled_from(
    b"/|/admin|/ADMIN/x|/admin?x|/administer|//admin|/./admin|/%61dmin|/x/../admin|/a;b|/a.b|/a.b?c|/a.bc|/\xc3\xbc|"
    b"/?token=1|/?a&token|/?token2=1|/?a;token=1|/?x=/token&token|/?a[b]=1|/?a%5Bb%5D=1|/x1|/x?a+b=1|/#token|/\\admin|"
    b"/a//b|/a/.b|/a?b=//c|*|http://a.test/admin".split(b"|")
)
names = st.sampled_from(
    b"X-Key x_key X-KEY X-Under x_under X-Both X-Other Accept Cookie Connection Content-Length".split()
)
values = st.sampled_from([b"1", b"0", b"keep-alive", b"x-key: 1", b"\xff", b""])
lines = st.lists(st.builds(lambda name, value: name + b": " + value, names, values), max_size=4)
hosts = st.sampled_from([b"a.test", b"b.test", b"B.TEST:80"])
heads = st.builds(lambda target, host, fields: get(target, *fields).replace(b"app.test", host), targets, hosts, lines)


@functools.cache
def skimmer(inspected):
    return Skimmer((), (), LIMITS, inspected.head_needles(HTTP1_HEAD))


def never_overlooks(inspected, head):
    if inspected.head_needles(HTTP1_HEAD) is None:
        return
    if skimmer(inspected).skim(head) is None:
        return
    parsed = parse_request(head)
    assert not isinstance(parsed, str)
    connection = inspected.connection(ConnectionFacts())
    assert connection.rules_out(head)
    assert is_nothing(connection.request(parsed.method, parsed.target, parsed.fields, 0.0))


@given(st.sampled_from(INSPECTIONS), heads)
@settings(max_examples=examples(500), deadline=None)
def test_a_head_that_is_skimmed_and_found_plain_is_ruled_out(inspected, head):
    never_overlooks(inspected, head)


@each_row("head", [head for _, head in HOSTILE], ids=[name for name, _ in HOSTILE])
def test_hostile_heads(head):
    for inspected in INSPECTIONS[::3]:
        never_overlooks(inspected, head)


def test_most_heads_are_found_plain():
    for head in (get(), get(b"/orders/1?page=2", b"Accept: x", b"Cookie: token=1"), get(b"/a/b.c/d-e_f~g?h=i&j")):
        assert skimmer(INSPECTIONS[-1]).skim(head) == 0


def test_rules_without_a_needle_and_very_many_rules_are_not_skimmed_for():
    for form in (HTTP1_HEAD, HTTP2_HEAD):
        assert inspection(NO_SECRET).head_needles(form) is None
        assert inspection(NO_ADMIN, Rule("any", Action.LOG)).head_needles(form) is None
        assert inspection(NO_ADMIN, Rule("host", Action.LOG, match=MATCHES[4])).head_needles(form) is None
    many = [
        Rule(f"r{at}", Action.LOG, match=match(paths=[PathCondition(PathTest.PREFIX, f"/{at}")])) for at in range(70)
    ]
    assert inspection(*many[:SKIMMED]).head_needles(HTTP2_HEAD) is not None
    assert inspection(*many).head_needles(HTTP2_HEAD) is None


def test_filters_and_rules_are_both_looked_for():
    port = SteeredPort(8443, Route((rule(),)))
    inspected = inspection(NO_ADMIN)
    router = InspectedRouter(gate(inspected, Recorder()), port, LIMITS)
    assert router.plain_request(get(b"/a")) is PLAIN
    assert router.plain_request(get(b"/admin")) is None
    assert router.plain_request(get(b"/a", b"X-Dev: me")) is None
    assert inspected.skimmer is not None
    port.route = Route()
    assert router.plain_request(get(b"/a", b"X-Dev: me")) is PLAIN
    inspected.give_way(inspection(Rule("now", Action.BLOCK, match=match(paths=[PathCondition(PathTest.PREFIX, "/a")]))))
    assert router.plain_request(get(b"/b")) is None  # judged by the newer policies


# --- HTTP/2 -----------------------------------------------------------------------------------------------------------

pseudo = st.lists(
    st.one_of(
        st.sampled_from([(b":method", b"GET"), (b":method", b"CONNECT"), (b":method", b"get"), (b":scheme", b"https")]),
        st.sampled_from([(b":authority", b"a.test"), (b":authority", b"u@a"), (b":scheme", b""), (b":protocol", b"x")]),
        targets.map(lambda target: (b":path", target)),
    ),
    max_size=5,
)
sound = st.builds(
    lambda method, target, first: [
        *(values := [(b":method", method), (b":scheme", b"https"), (b":authority", b"a.test"), (b":path", target)])[
            first:
        ],
        *values[:first],
    ],
    st.sampled_from([b"GET", b"CONNECT"]),
    targets,
    st.integers(0, 3),
)
odd_names = st.sampled_from(
    b"x-key X-Key x_under x-both x-other te connection host content-length cookie |x\0y|x\ny|x:y|\xff|:path".replace(
        b"|", b" "
    ).split(b" ")
)
odd_values = st.sampled_from(
    [b"", b"1", b"trailers", b" x", b"x\t", b"a b", b"x\ny", b"x\0y", b"x\r", b"\xff", b"a.test", b"X-KEY: Me"]
)


@given(st.sampled_from(INSPECTIONS), st.one_of(sound, pseudo), st.lists(st.tuples(odd_names, odd_values), max_size=4))
@settings(max_examples=examples(1000), deadline=None)
def test_an_http2_head_that_is_skimmed_is_valid_and_ruled_out(inspected, first, rest):
    head = Head((*first, *rest))
    streams = InspectedStreams(gate(inspected, Recorder()))
    if not streams._skims(head):
        return
    assert head.is_valid()
    assert head.method != b"CONNECT"
    connection = inspected.connection(ConnectionFacts())
    assert connection.rules_out_request(head.path, head.fields)
    assert is_nothing(connection.request(head.method, head.path, head.fields, 0.0))
    assert head.cleared is streams.gate.token


@pytest.mark.parametrize("at", range(4))
@pytest.mark.parametrize(
    "odd", [(b":method", b"CONNECT"), (b":path", b"/admin"), (b":path", b"/admin?x"), (b":path", b"/a.b")]
)
def test_no_pseudo_field_is_overlooked_wherever_it_stands(at, odd):
    values = {b":method": b"GET", b":scheme": b"https", b":authority": b"a.test", b":path": b"/"}
    del values[odd[0]]
    first = [*values.items()]
    first.insert(at, odd)
    streams = InspectedStreams(gate(INSPECTIONS[-1], Recorder()))
    assert not streams._skims(Head((*first,)))
    assert not streams._skims(Head((*first, (b"accept", b"x"))))


def test_most_http2_heads_are_skimmed():
    streams = InspectedStreams(gate(INSPECTIONS[-1], Recorder()))
    first = ((b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"a.test:8443"), (b":path", b"/a/b?c=d&e"))
    assert streams._skims(Head(first))
    assert streams._skims(Head((*first[::-1], (b"user-agent", b"a (b; c)"), (b"cookie", b"a"), (b"cookie", b""))))
    assert not streams._skims(Head((*first, (b"x-key", b"1"))))
    assert not streams._skims(Head((*first[:3], (b":path", b"/admin"))))
    assert not streams._skims(Head((*first[:3], (b":path", b"/a.b"))))
    assert streams._skims(Head((*first[:3], (b":path", b"/a.bc"))))


FRAMING = [
    *((b"te", value) for value in (b"trailers", b"", b"t", b"trailer", b"trailersx", b"trailers, x", b"gzip", b"x")),
    *((b"content-length", value) for value in (b"", b"0", b"7", b"9" * 18, b"9" * 19, b"-1", b"1x", b"x", b"1,1")),
]


@each_row("field", FRAMING)
@each_row("behind", [(), ((b"x-other", b"1"),), ((b"content-length", b"7"),), ((b"te", b"trailers"),)])
def test_fields_about_framing_are_skimmed_as_they_are_validated(field, behind):
    first = ((b":method", b"POST"), (b":scheme", b"https"), (b":authority", b"a.test"), (b":path", b"/"))
    head = Head((*first, field, *behind))
    twice = [name for name, _ in (field, *behind)].count(b"content-length") > 1
    assert Http2Skimmer(()).skim(head.listed) is (head.is_valid() and not twice)


# --- filters and rules over HTTP/2, in one pass -----------------------------------------------------------------------

FILTERS = [
    Filter(headers=(HeaderCondition("x-key", HeaderTest.EXACT, "1"),)),
    Filter(headers=(HeaderCondition("x_under", HeaderTest.PRESENT, ""),)),
    Filter(headers=(HeaderCondition("cookie", HeaderTest.EXACT, "a b"),)),
    Filter(headers=(HeaderCondition("cookie", HeaderTest.EXACT, "1; a b"),)),
    Filter(headers=(HeaderCondition("cookie", HeaderTest.REGEX, "^1"),)),
    Filter(headers=(HeaderCondition("host", HeaderTest.EXACT, "a.test"),)),
    Filter(headers=(HeaderCondition("host", HeaderTest.REGEX, "^b"),)),
    Filter(headers=(HeaderCondition("x-both", HeaderTest.EXACT, "\xff"),)),
    Filter(headers=(HeaderCondition("accept", HeaderTest.EXACT, "X-KEY: Me"),)),
    Filter(paths=(PathCondition(PathTest.PREFIX, "/a"),)),
    Filter(methods=("CONNECT",), paths=(PathCondition(PathTest.REGEX, "x"),)),
    Filter(),
]


def wanted(chosen):
    return Wanted(repr(chosen), "shop/dev", compile_filter(chosen), needle=needle_of(chosen))


def route_of(intercepts, taps=()):
    return Route(tuple(map(wanted, intercepts)), tuple(map(wanted, taps)))


def block_of(fields):
    return Block(tuple(fields), NONE, None, INITIAL)


ROUTES = [route_of([each]) for each in FILTERS] + [route_of([], [each]) for each in FILTERS]
ROUTES += [Route(), route_of(FILTERS[:2], FILTERS[3:5]), route_of(FILTERS[:9])]
more_names = st.one_of(odd_names, st.sampled_from([b"accept", b"cookie", b"x-key", b"x_under"]))


@given(
    st.sampled_from(INSPECTIONS),
    st.sampled_from(ROUTES),
    st.one_of(sound, pseudo),
    st.lists(st.tuples(more_names, odd_values), max_size=4),
)
@settings(max_examples=examples(1000), deadline=None)
def test_an_http2_head_that_passes_is_for_the_app_and_ruled_out(inspected, route, first, rest):
    block = block_of((*first, *rest))
    streams = InspectedStreams(gate(inspected, recorder := Recorder(), sampling=Sampling(100.0, 1)))
    if not streams.passes(1, block, route, ends=True):
        assert block.note is None
        assert not streams.passes(1, block, route, ends=True)
        assert not streams.samples
        return
    head = Head(block.fields)
    assert head.is_valid()
    assert head.method != b"CONNECT"
    assert head.decide(route) is TO_APP
    connection = inspected.connection(ConnectionFacts())
    assert connection.rules_out_request(head.path, head.fields)
    assert is_nothing(connection.request(head.method, head.path, head.fields, 0.0))
    streams.gate.end()
    passed = recorder.exchanges.copy()
    slow = InspectedStreams(gate(inspected, recorder, sampling=Sampling(100.0, 1)))
    assert slow.judge(1, head, diverts=False, ends=True) is None
    slow.gate.end()
    assert recorder.exchanges == passed * 2  # told alike


def test_most_http2_heads_pass():
    streams = InspectedStreams(gate(INSPECTIONS[-1], Recorder()))
    route = route_of([FILTERS[0], FILTERS[3], FILTERS[9]])
    first = ((b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"a.test:8443"), (b":path", b"/c?d=e"))
    assert streams.passes(1, block_of(first), route, ends=True)
    assert streams.passes(1, block_of((*first[::-1], (b"cookie", b"a"), (b"te", b"trailers"))), route, ends=True)
    assert not streams.passes(1, block_of((*first, (b"cookie", b"1"), (b"cookie", b"a b"))), route, ends=True)
    assert not streams.passes(1, block_of((*first[:3], (b":path", b"/a?d=e"))), route, ends=True)
    assert not streams.passes(1, block_of((*first, (b"x-under", b""))), route, ends=True)
    assert not streams.passes(1, block_of((*first, (b"accept", b"X-KEY: Me"))), route_of([FILTERS[8]]), ends=True)
    assert not streams.passes(1, block_of(first), route_of([FILTERS[6]]), ends=True)


def test_what_is_remembered_of_a_block_ends_with_the_route_and_with_the_policies():
    inspected = inspection(NO_ADMIN)
    streams = InspectedStreams(gate(inspected, Recorder()))
    route, block = Route((rule(),)), block_of(request(b"/a").head)
    assert streams.passes(1, block, route, ends=True)
    assert streams.passes(3, block, route, ends=True)
    assert not streams.passes(5, block, route_of([FILTERS[9]]), ends=True)
    assert streams.passes(7, block_of(block.fields), route, ends=True)
    inspected.give_way(inspection(NO_ADMIN))
    assert not streams.passes(9, block, route, ends=True)


def test_a_large_list_does_not_pass():
    streams = InspectedStreams(gate(INSPECTIONS[-1], Recorder()))
    large = block_of(request(b"/c").head)
    large.large = True
    assert not streams.passes(1, large, Route(), ends=True)
    assert streams.passes(1, block_of(request(b"/c").head), Route(), ends=True)


def test_each_block_is_looked_at_once_for_a_route_and_policies(monkeypatch):
    looks = []
    skim = Http2Skimmer.skim
    monkeypatch.setattr(Http2Skimmer, "skim", lambda self, fields: looks.append(fields) or skim(self, fields))
    streams = InspectedStreams(gate(inspected := inspection(NO_ADMIN), Recorder()))
    plain, other, route = block_of(request(b"/c").head), block_of(request(b"/admin").head), Route((rule(),))
    plain.note = Head(plain.fields)  # of a connection without policies
    for stream in range(1, 9, 2):
        assert streams.passes(stream, plain, route, ends=True)
        assert not streams.passes(stream, other, route, ends=True)
    assert looks == [plain.fields, other.fields]
    again = InspectedStreams(gate(inspected, Recorder()))
    assert again.passes(1, plain, route, ends=True)
    assert not again.passes(1, other, route, ends=True)
    assert len(looks) == 2
    assert not again.passes(3, other, Route(), ends=True)
    assert len(looks) == 3


def test_probes_and_connections_with_rules_about_each_request_are_judged():
    block = block_of(request(b"/c").head)
    probed = gate(inspection(NO_ADMIN), Recorder(), exempt=frozenset({(b"GET", b"/c")}))
    assert not InspectedStreams(probed).passes(1, block, Route(), ends=True)
    assert not InspectedStreams(gate(inspection(NO_ADMIN, NO_SECRET), Recorder())).passes(1, block, Route(), ends=True)


def test_a_stream_that_passes_is_relayed_without_being_read(monkeypatch):
    heads = []
    monkeypatch.setattr(Head, "__init__", lambda self, fields: heads.append(fields))
    monkeypatch.setattr(InspectedStreams, "judge", None)
    inspected = gate(inspection(NO_ADMIN), Recorder())
    talk = Talk(relay=lambda port: Http2Relay(port, tls=True, gate=inspected))
    first, second = request(b"/a"), request(b"/b", method=b"POST")
    talk.send(talk.head(1, first) + talk.head(3, second, ends=False))
    talk.send(frame(DATA, END_STREAM, 3, b"body"))
    assert talk.app.of(HEADERS, 1)
    assert talk.app.of(DATA, 3) == [(END_STREAM, b"body")]
    talk.from_app(talk.respond(1) + talk.respond(3))
    assert talk.client.of(HEADERS, 1)
    assert not talk.relay._connection.state.streams.relayed
    assert not heads


def inspected_talk(limits=DEFAULT_LIMITS):
    """Stream 1 is diverted and over."""
    inspected = gate(inspection(NO_ADMIN), Recorder())
    talk = Talk(limits=limits, relay=lambda port: Http2Relay(port, tls=True, limits=limits, gate=inspected))
    talk.divert(1)
    talk.open_handler()
    talk.from_handler(talk.respond(1))
    return talk


def test_streams_behind_an_app_that_has_left_go_to_its_second_connection():
    talk = inspected_talk()
    talk.peers.end(talk.relay.app)
    talk.peers.run()
    talk.send(talk.head(3, request(b"/behind")))
    assert len(talk.seconds) == 1
    assert not talk.relay._connection.state.streams.relayed


def test_one_stream_too_many_is_refused_whatever_its_head():
    talk = inspected_talk(replace(DEFAULT_LIMITS, open_streams=2))
    for stream in (3, 5, 7):
        talk.send(talk.head(stream, request(b"/open/%d" % stream), ends=False))
    assert [*talk.relay._connection.state.streams.relayed] == [3, 5]
    assert talk.client.of(RST_STREAM, 7) == [(0, b"\0\0\0\x07")]
    assert not talk.app.of(HEADERS, 7)


# --- requests with bodies ---------------------------------------------------------------------------------------------


def test_a_head_with_a_body_is_ruled_out_and_routed_by_one_look(monkeypatch):
    shell = Inspected(NO_ADMIN, inspected=(inspected := inspection(NO_ADMIN)))
    shell.client(post(b"first"))
    looks = []
    skim = Skimmer.skim
    monkeypatch.setattr(Skimmer, "skim", lambda self, head: looks.append(head) or skim(self, head))
    sent = [post(b"x" * number, target=b"/p/%d" % number) for number in range(1, 4)]
    for each in sent:
        shell.client(each)
    assert shell.to_app == post(b"first") + b"".join(sent)
    assert len(looks) == 3
    assert inspected.skimmer is not None


def test_a_router_keeps_the_route_of_the_very_head_that_it_has_ruled_out():
    router = InspectedRouter(gate(inspection(NO_ADMIN), Recorder()), SteeredPort(8443, Route((rule(),))), LIMITS)
    head = post(b"", b"X-A: 1").replace(b"Length: 0", b"Length: 7")
    assert router.rules_out(head)
    routed = router.route(head)
    assert not isinstance(routed, str)
    assert routed.body == 7
    assert not router.rules_out(get(b"/admin"))
    assert not router.rules_out(get(b"/", b"Transfer-Encoding: x"))
    wanted = router.route(get(b"/", b"X-Dev: me"))
    assert not isinstance(wanted, str)
    assert wanted.decision.intercept is not None
