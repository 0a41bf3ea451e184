"""Handlers that take few streams at a time, or few in all: requests wait for them, and are asked again elsewhere."""

from __future__ import annotations

import h2.events
import pytest

from sidestep.engine.leg import Ending
from sidestep.protocols.http2 import (
    DATA,
    DEFAULT_LIMITS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PREFACE,
    RST_STREAM,
    SETTINGS_ACK,
    ErrorCode,
    Http2Limits,
    Setting,
    frame,
    goaway,
    header_frames,
    rst_stream,
    settings,
    window_update,
)
from tests.unit.engine.http2.talk import Talk, ticks
from tests.unit.engine.http2_peers import MATCH, Endpoint, Peers, Raw, reply, request, rule

BODY = b"b" * 30_000
ACCEPTED = header_frames(1, b"\x88", end_stream=True)


def asked(handler: Raw) -> list[int]:
    """Streams that a handler was sent."""
    return [stream for kind, _, stream, _ in handler.frames(len(PREFACE)) if kind == HEADERS]


def answered(talk: Talk) -> list[int]:
    return [stream for kind, _, stream, _ in talk.client.frames() if kind == HEADERS]


class Few:
    """Handlers that serve so many requests per connection and no more, as nginx does with `keepalive_requests`."""

    def __init__(self, most: int, *, at_once: int = 100) -> None:
        self.most = most
        self.at_once = at_once
        self.served: list[bytes] = []
        self.largest = 0

    def connect(self, rule: object = None) -> Endpoint:
        del rule
        return Parting(self)


class Parting(Endpoint):
    """After `most` requests: GOAWAY, and nothing is said to any stream above."""

    def __init__(self, few: Few) -> None:
        super().__init__(answer=reply(b"handler", b"answer"), settings={Setting.MAX_CONCURRENT_STREAMS: few.at_once})
        self.few = few
        self.taken = 0
        self.last = 0
        self.tail = b""

    def _on(self, event: h2.events.Event) -> None:
        stream = getattr(event, "stream_id", 0)
        if isinstance(event, h2.events.ConnectionTerminated):
            self.dead = True
        if self.last and stream > self.last:
            return
        self.few.largest = max(self.few.largest, self.conn.open_inbound_streams)
        super()._on(event)
        if isinstance(event, h2.events.RequestReceived):
            self.taken += 1
            self.few.served.append(dict(event.headers)[b":path"])
            if self.taken == self.few.most:
                self.last = stream
                self.tail = goaway(stream, 0)  # the library's own would close the connection

    def take(self) -> bytes:
        tail, self.tail = self.tail, b""
        return super().take() + tail


@pytest.mark.parametrize("most", [1, 10, 17])
def test_goaway_after_some_requests_loses_none_and_gives_none_to_the_app(most: int) -> None:
    few = Few(most)
    client = Endpoint()
    app = Endpoint(answer=reply(b"app"))
    second = Endpoint(answer=reply(b"second"))
    peers = Peers(client, app, handler=few.connect, second=lambda: second)
    wanted = [
        client.send(request(b"/%d" % n, MATCH, method=b"POST", body=BODY) if n % 2 else request(b"/%d" % n, MATCH))
        for n in range(100)
    ]
    peers.run()
    assert all(dict(client.seen[stream].head).get(b"server") == b"handler" for stream in wanted)
    assert all(client.seen[stream].body == b"answer" for stream in wanted)
    assert not app.seen
    assert not second.seen
    assert sorted(few.served) == sorted(b"/%d" % n for n in range(100))
    assert peers.relay.idle
    assert not peers.relay._connection.budget.held


def test_a_burst_is_kept_within_what_the_handler_allows() -> None:
    few = Few(1 << 30, at_once=5)
    client = Endpoint()
    peers = Peers(client, Endpoint(answer=reply(b"app")), handler=few.connect)
    wanted = [client.send(request(b"/%d" % n, MATCH, method=b"POST", body=b"b")) for n in range(90)]
    peers.run()
    assert all(dict(client.seen[stream].head).get(b"server") == b"handler" for stream in wanted)
    assert few.largest <= 5
    assert 1 < len(peers.handlers) <= DEFAULT_LIMITS.links


def test_nothing_is_asked_before_the_handler_has_sent_its_settings() -> None:
    talk = Talk()
    for stream in (1, 3, 5):
        talk.divert(stream)
    [handler] = talk.handlers
    assert asked(handler) == []
    talk.open_handler({Setting.MAX_CONCURRENT_STREAMS: 2})
    assert asked(handler) == [1, 3]
    assert len(talk.handlers) == 2
    talk.from_handler(talk.respond(1), which=0)
    assert asked(handler) == [1, 3, 5]
    assert not talk.seconds


def test_a_handler_that_never_sends_settings_leaves_its_requests_to_the_app() -> None:
    talk = Talk()
    talk.divert(1)
    ticks(talk, DEFAULT_LIMITS.settings_ticks + 3)
    [second] = talk.seconds
    second.out += settings({})
    talk.peers.run()
    assert asked(second) == [1]
    assert talk.peers.leg(talk.handlers[0]).ending is Ending.ABORT  # type: ignore[arg-type]


def test_a_handler_that_takes_none_for_a_while_is_waited_for() -> None:
    talk = Talk()
    talk.divert(1)
    talk.open_handler({Setting.MAX_CONCURRENT_STREAMS: 0})
    ticks(talk, 5)
    assert len(talk.handlers) == 1
    assert not talk.seconds
    talk.from_handler(settings({Setting.MAX_CONCURRENT_STREAMS: 1}))
    assert asked(talk.handlers[0]) == [1]


def test_a_handler_that_takes_none_for_long_leaves_its_requests_to_the_app() -> None:
    talk = Talk()
    talk.divert(1)
    talk.open_handler({Setting.MAX_CONCURRENT_STREAMS: 0})
    ticks(talk, DEFAULT_LIMITS.wait_ticks + 3)
    assert len(talk.seconds) == 1
    assert talk.relay.deadline is not None  # the app's SETTINGS are awaited now


def test_what_is_refused_after_the_limit_was_lowered_is_asked_again_when_there_is_room() -> None:
    talk = Talk()
    for stream in (1, 3, 5):
        talk.divert(stream)
    talk.open_handler()
    talk.from_handler(settings({Setting.MAX_CONCURRENT_STREAMS: 1}) + rst_stream(3, 7) + rst_stream(5, 7))
    assert asked(talk.handlers[0]) == [1, 3, 5]
    talk.from_handler(talk.respond(1), which=0)
    assert asked(talk.handlers[0]) == [1, 3, 5, 7]
    assert not talk.client.of(RST_STREAM)
    assert not talk.seconds


def test_a_handler_that_refuses_without_saying_a_limit_is_asked_for_no_more_than_it_took() -> None:
    talk = Talk()
    for stream in range(1, 13, 2):
        talk.divert(stream)
    talk.open_handler()
    talk.from_handler(b"".join(rst_stream(stream, 7) for stream in (5, 7, 9, 11)))
    for stream in (1, 3):
        talk.from_handler(talk.respond(stream), which=0)
    assert asked(talk.handlers[0]) == [1, 3, 5, 7, 9, 11, 13, 15]
    assert not talk.seconds


@pytest.mark.parametrize("how", ["GOAWAY", "REFUSED_STREAM"])
def test_a_body_that_was_sent_to_a_handler_that_took_nothing_is_sent_again(how: str) -> None:
    talk = Talk()
    talk.divert(1)
    talk.divert(3, ends=False)
    talk.open_handler()
    talk.send(frame(DATA, 0, 3, b"one") + frame(DATA, 0, 3, b"two"))
    assert talk.handlers[0].of(DATA, 3, skip=len(PREFACE))
    talk.from_handler(talk.respond(1))
    talk.from_handler(goaway(1, 0) if how == "GOAWAY" else rst_stream(3, ErrorCode.REFUSED_STREAM))
    talk.send(frame(DATA, END_STREAM, 3, b"three"))
    if how == "GOAWAY":
        talk.open_handler()
    handler, stream = talk.handlers[-1], 1 if how == "GOAWAY" else 5
    assert b"".join(piece for _, piece in handler.of(DATA, stream, skip=len(PREFACE))) == b"onetwothree"
    talk.from_handler(talk.respond(stream))
    assert answered(talk) == [1, 3]
    given = sum(int.from_bytes(payload, "big") for _, payload in talk.client.of(8, 3))
    assert given <= len(b"onetwothree")  # window is given once for each byte


def test_a_body_too_long_to_be_kept_is_refused_so_that_the_client_may_try_again() -> None:
    talk = Talk(app={Setting.INITIAL_WINDOW_SIZE: 1 << 20})
    talk.divert(1)
    talk.divert(3, ends=False)
    talk.open_handler({Setting.INITIAL_WINDOW_SIZE: 1 << 20})
    talk.from_handler(window_update(0, 1 << 20))
    for _ in range(17):
        talk.send(frame(DATA, 0, 3, b"x" * 16_384))
    talk.from_handler(goaway(1, 0))
    assert talk.client.of(RST_STREAM, 3) == [(0, b"\0\0\0\x07")]
    assert not talk.seconds


def test_a_handler_that_closes_in_the_moment_of_a_request_is_asked_on_a_new_connection() -> None:
    talk = Talk()
    talk.divert(1)
    talk.open_handler()
    talk.from_handler(talk.respond(1))
    talk.divert(3)
    assert asked(talk.handlers[0]) == [1, 3]
    talk.peers.end(talk.peers.leg(talk.handlers[0]))  # type: ignore[arg-type]
    talk.peers.run()
    talk.open_handler()
    assert asked(talk.handlers[1]) == [1]
    assert not talk.seconds
    talk.peers.end(talk.peers.leg(talk.handlers[1]))  # type: ignore[arg-type]
    talk.peers.run()
    assert len(talk.seconds) == 1


def test_the_apps_second_connection_ends_after_some_requests_too() -> None:
    client = Endpoint()
    app = Endpoint(answer=reply(b"app"))
    few = Few(7)
    peers = Peers(client, app, second=few.connect)
    wanted = [client.send(request(b"/%d" % n, MATCH, method=b"POST", body=b"b")) for n in range(40)]
    peers.run()
    assert all(dict(client.seen[stream].head).get(b"server") == b"handler" for stream in wanted)
    assert all(client.seen[stream].reset is None for stream in wanted)
    assert len(few.served) == 40


def test_a_client_that_gives_up_while_it_waits_is_asked_for_nowhere() -> None:
    talk = Talk()
    talk.divert(1)
    talk.divert(3)
    talk.send(rst_stream(1, 8))
    talk.open_handler()
    assert [fields[3] for fields in talk.heads(talk.handlers[0], 1, skip=24)] == [(b":path", b"/d")]
    assert asked(talk.handlers[0]) == [1]
    assert talk.relay._connection.diversion.account.held < 20_000


def test_links_that_are_not_needed_any_more_are_closed() -> None:
    talk = Talk()
    for stream in (1, 3, 5):
        talk.divert(stream)
    talk.open_handler({Setting.MAX_CONCURRENT_STREAMS: 1})
    talk.open_handler({Setting.MAX_CONCURRENT_STREAMS: 1})
    talk.open_handler({Setting.MAX_CONCURRENT_STREAMS: 1})
    for which in range(3):
        talk.from_handler(ACCEPTED, which=which)
    assert talk.relay.idle
    ticks(talk, DEFAULT_LIMITS.spare_ticks + 3)
    assert sum(bool(handler.of(GOAWAY, skip=24)) for handler in talk.handlers) == 2
    assert talk.relay.deadline is None


def test_seven_hundred_polls_at_once() -> None:
    client = Endpoint()
    app = Endpoint(answer=reply(b"app"), settings={Setting.MAX_CONCURRENT_STREAMS: 5000})
    handler = Endpoint(answer=reply(b"handler"), settings={Setting.MAX_CONCURRENT_STREAMS: 5000})
    peers = Peers(client, app, handler=lambda _: handler)
    peers.run()
    wanted = [client.send(request(b"/poll", MATCH)) for _ in range(700)]
    peers.run()
    assert all(dict(client.seen[stream].head).get(b"server") == b"handler" for stream in wanted)


def test_the_number_of_links_is_bounded() -> None:
    talk = Talk(limits=Http2Limits(links=2, all_links=3))
    for stream in range(1, 21, 2):
        talk.divert(stream)
    for _ in range(4):
        if not talk.handlers[-1].of(4, 0, skip=24)[1:]:
            talk.open_handler({Setting.MAX_CONCURRENT_STREAMS: 1})
    assert len(talk.handlers) == 2
    for which in range(2):
        talk.from_handler(goaway(1, 0), which=which)
    talk.peers.run()
    assert len(talk.handlers) == 3
    assert SETTINGS_ACK in talk.handlers[0].data


def test_rules_have_links_of_their_own() -> None:
    other = rule("u2", (b"x-dev", b"you"))
    talk = Talk(rules=(rule(), other))
    talk.divert(1)
    talk.send(header_frames(3, talk.encoder.encode(request(b"/e", (b"x-dev", b"you")).head), end_stream=True))
    assert len(talk.handlers) == 2
    for which in range(2):
        talk.from_handler(settings({}), which=which)
    heads = [talk.heads(handler, 1, skip=24)[0][3] for handler in talk.handlers]
    assert heads == [(b":path", b"/d"), (b":path", b"/e")]
