"""What a mirror asks its sinks, and when it stops listening."""

import pytest

from sidestep.engine.mirror.events import (
    BODY,
    HEAD,
    NOTHING,
    RESPONSE,
    RESPONSE_BODY,
    WHOLE,
    Anomaly,
    ConnectionEnd,
    ConnectionStart,
    ExchangeCut,
    RequestData,
    RequestDiverted,
    RequestEnd,
    ResponseData,
)
from sidestep.engine.mirror.producer import Mirror
from sidestep.engine.mirror.queue import EVENT, OVERFULL
from sidestep.policy.route import Decision, Rule
from tests.unit.engine.mirror.recording import Recorder

TAP = Rule("tap", "shop/tap", lambda method, path, fields: True)


class Offer:
    decision = Decision(None, (TAP,))
    tally = None


def two(one: int, other: int, *, hears_responses: bool = True) -> tuple[Mirror, Recorder, Recorder]:
    sinks = Recorder(one), Recorder(other)
    return Mirror(lambda mirror: sinks, hears_responses=hears_responses), *sinks


def begin(mirror: Mirror, exchange: int) -> int:
    interest = mirror.offer(exchange, Offer())
    mirror.begin(RequestData(exchange, b"head"), exchange, interest, size=4, ends=False)
    return interest


def test_sinks_are_asked_together_and_get_the_same_events():
    mirror, one, other = two(HEAD | BODY, RESPONSE)
    assert begin(mirror, 1) == HEAD | BODY | RESPONSE
    mirror.request_data(1, b"x")
    mirror.response_data(1, b"y")
    mirror.run()
    assert one.events == other.events == [RequestData(1, b"head"), RequestData(1, b"x"), ResponseData(1, b"y")]


def test_what_one_sink_releases_another_may_hold():
    mirror, one, other = two(HEAD | BODY, HEAD | BODY | RESPONSE)
    begin(mirror, 1)
    one.released.add(1)
    mirror.release(1)
    assert 1 in mirror.requests
    other.released.add(1)
    mirror.release(1)
    assert not mirror.is_listening


def test_responses_are_not_wanted_of_a_mirror_that_does_not_hear_them():
    mirror, *_ = two(HEAD | BODY, RESPONSE, hears_responses=False)
    assert begin(mirror, 1) == HEAD | BODY
    assert not mirror.responses


def test_an_exchange_is_cut_once_and_only_when_it_is_not_whole():
    mirror, one, _ = two(HEAD | BODY, NOTHING)
    for exchange in (1, 3):
        begin(mirror, exchange)
    mirror.request_end(1)
    for exchange in (1, 3, 3):
        mirror.cut(exchange)
    mirror.run()
    assert one.events[2:] == [RequestEnd(1), ExchangeCut(3)]


def test_a_whole_connection_has_a_start_two_directions_and_an_end():
    mirror, recorder = Mirror(), Recorder(BODY | RESPONSE_BODY)
    mirror.add(recorder, BODY | RESPONSE_BODY)
    mirror.client_data(b"a")
    mirror.server_data(b"b")
    mirror.client_end()
    mirror.client_data(b"nothing follows an end")
    mirror.server_end()
    assert not mirror.is_listening
    mirror.end()
    mirror.end()
    mirror.run()
    assert recorder.kinds() == [
        "ConnectionStart",
        "RequestData",
        "ResponseData",
        "RequestEnd",
        "ResponseEnd",
        "ConnectionEnd",
    ]
    assert (recorder.events[0], recorder.events[-1]) == (ConnectionStart(), ConnectionEnd())
    assert recorder.data(RequestData, WHOLE) == b"a"


def test_anomalies_are_told_to_sinks_that_are_there():
    mirror, one, _ = two(HEAD, NOTHING)
    mirror.anomaly("nobody was offered anything yet")
    begin(mirror, 1)
    mirror.anomaly("h1-chunk")
    mirror.run()
    assert one.events[-1] == Anomaly("h1-chunk")
    assert len(one.events) == 2


@pytest.mark.parametrize("bodies", [False, True])
def test_after_it_is_closed_nothing_is_told(bodies):
    mirror, one, _ = two(HEAD | BODY if bodies else HEAD, NOTHING)
    begin(mirror, 1)
    mirror.close()
    mirror.request_data(1, b"x")
    mirror.end()
    mirror.run()
    assert mirror.offer(3, Offer()) == NOTHING
    assert one.offered == [1]
    assert not one.events
    assert not mirror.is_listening


def test_what_is_told_once_is_told_without_room_and_cuts_no_exchange():
    """A session is told of each diverted request; the end of a connection is what its copies end by."""
    sink = Recorder(HEAD | BODY)
    mirror = Mirror(lambda mirror: (sink,), lambda: False)
    mirror.add(Recorder(NOTHING), BODY)
    begin(mirror, 1)
    mirror.request_data(1, b"x" * 70_000)
    assert mirror.is_full
    mirror.diverted(0, TAP, b"GET", b"/", b"app.test")
    mirror.anomaly("h1-slow-head")
    mirror.end()
    mirror.run()
    told = [ConnectionStart, RequestData, RequestData, RequestDiverted, Anomaly, ConnectionEnd]
    assert [type(event) for event in sink.events] == told


@pytest.mark.parametrize("where", ["wants", "missed"])
def test_an_error_of_a_sink_at_a_head_is_raised_later_and_nothing_more_is_mirrored(where):
    mirror, sink, other = two(HEAD | BODY, HEAD | BODY)
    mirror._may_catch_up = lambda: False
    setattr(sink, where, lambda *_: int("a bug"))
    assert (begin(mirror, 1) == NOTHING) is (where == "wants")
    if where == "missed":
        while mirror.is_listening:
            begin(mirror, 1)  # until there is no room
    assert begin(mirror, 2) == NOTHING
    assert not mirror.is_listening
    with pytest.raises(ValueError, match="a bug"):
        mirror.run()
    assert not mirror.events
    assert not other.events


def test_a_flood_of_diverted_requests_is_bounded_and_its_gap_ends_no_exchange():
    mirror, sink, _ = two(NOTHING, NOTHING)
    mirror._may_catch_up = lambda: False
    for exchange in range(1, 4001, 2):
        mirror.diverted(exchange, TAP, b"GET", b"/", b"a")
    assert mirror.queue.size <= OVERFULL + 2 * EVENT
    mirror.anomaly("flood")
    mirror.end()
    mirror.run()
    (gap,) = sink.gaps
    told = [event for event in sink.events if isinstance(event, RequestDiverted)]
    assert gap.events + len(told) == 2000
    assert not gap.exchanges
    assert sink.events[-2:] == [Anomaly("flood"), ConnectionEnd()]
