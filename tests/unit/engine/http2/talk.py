"""A relay between a client, an app and handlers that send exactly the frames they are told to."""

from __future__ import annotations

from collections.abc import Callable

import hpack
from msgspec.structs import replace

from sidestep.engine.http2.relay import Http2Relay
from sidestep.engine.mirror.ledger import Ledger
from sidestep.policy.route import Rule, SteeredPort
from sidestep.protocols.http2 import (
    CONTINUATION,
    DATA,
    DEFAULT_LIMITS,
    END_HEADERS,
    GOAWAY,
    HEADERS,
    PREFACE,
    SETTINGS_ACK,
    TICK,
    Http2Limits,
    Setting,
    frame,
    header_frames,
    settings,
    split_headers,
    window_update,
)
from tests.unit.engine.http2_peers import MATCH, Message, Peers, Raw, request, rule


class Talk:
    """A relay between a raw client and a raw app, with a raw handler; SETTINGS are exchanged already."""

    def __init__(
        self,
        *,
        limits: Http2Limits = DEFAULT_LIMITS,
        app: dict[Setting, int] | None = None,
        client: dict[Setting, int] | None = None,
        rules: tuple[Rule, ...] = (rule(),),
        ledger: Ledger | None = None,
        begin: bool = True,
        relay: Callable[[SteeredPort], Http2Relay] | None = None,
    ) -> None:
        self.handler_is_there = True
        self.second_is_there = True
        self.client = Raw()
        self.app = Raw()
        self.peers = Peers(
            self.client,  # type: ignore[arg-type]
            self.app,  # type: ignore[arg-type]
            handler=lambda _: Raw() if self.handler_is_there else None,  # type: ignore[arg-type, return-value]
            second=lambda: Raw() if self.second_is_there else None,  # type: ignore[arg-type, return-value]
            rules=rules,
            limits=limits,
            ledger=ledger,
            relay=relay,
        )
        self.relay = self.peers.relay
        self.encoder = hpack.Encoder()
        self.responses = hpack.Encoder()
        self.decoder = hpack.Decoder()
        if begin:
            self.send(PREFACE + settings(client or {}))
            self.from_app(settings(app or {}) + SETTINGS_ACK)
            self.send(SETTINGS_ACK)
            self.client.data.clear()
            self.app.data.clear()

    def send(self, data: bytes) -> None:
        """The client sends."""
        self.client.out += data
        self.peers.run()

    def from_app(self, data: bytes) -> None:
        self.app.out += data
        self.peers.run()

    def from_handler(self, data: bytes, which: int = -1) -> None:
        self.handlers[which].out += data
        self.peers.run()

    @property
    def handlers(self) -> list[Raw]:
        return self.peers.handlers  # type: ignore[return-value]

    @property
    def seconds(self) -> list[Raw]:
        return self.peers.seconds  # type: ignore[return-value]

    def head(self, stream: int, message: Message, *, ends: bool = True) -> bytes:
        return header_frames(stream, self.encoder.encode(message.head), end_stream=ends)

    def divert(self, stream: int = 1, *more: tuple[bytes, bytes], ends: bool = True) -> None:
        self.send(self.head(stream, request(b"/d", MATCH, *more), ends=ends))

    def respond(self, stream: int, *more: tuple[bytes, bytes], ends: bool = True) -> bytes:
        return header_frames(stream, self.responses.encode([(b":status", b"200"), *more]), end_stream=ends)

    def open_handler(self, values: dict[Setting, int] | None = None) -> None:
        self.responses = hpack.Encoder()
        self.from_handler(settings(values or {}))

    def heads(self, peer: Raw, stream: int, skip: int = 0) -> list[list[tuple[bytes, bytes]]]:
        """Header blocks that a peer got on a stream; only for blocks of ours, which need no context."""
        return [
            [(bytes(n), bytes(v)) for n, v in hpack.Decoder().decode(payload, raw=True)]
            for _, payload in peer.of(HEADERS, stream, skip)
        ]

    def app_heads(self, stream: int) -> list[list[hpack.HeaderTuple]]:
        """Header blocks that the app got on a stream, read by a decoder that has read all before them."""
        app = Raw()
        app.feed(bytes(self.app.history))
        decoder = hpack.Decoder(max_header_list_size=1 << 24)
        found, block = [], b""
        for kind, flags, number, payload in app.frames(skip=len(PREFACE)):
            if kind == HEADERS:
                block = split_headers(payload, flags)[1]
            elif kind == CONTINUATION:
                block += payload
            if kind in (HEADERS, CONTINUATION) and flags & END_HEADERS:
                fields = decoder.decode(block, raw=True)
                if number == stream:
                    found.append(list(fields))
        return found


def mixed(**limits: int) -> Talk:
    """Stream 1 is diverted and open, stream 3 is the app's and open."""
    talk = Talk(limits=replace(DEFAULT_LIMITS, **limits), app={Setting.INITIAL_WINDOW_SIZE: 1 << 24})
    talk.divert(1, ends=False)
    talk.open_handler({Setting.INITIAL_WINDOW_SIZE: 0})
    talk.send(talk.head(3, request(b"/"), ends=False))
    talk.app.data.clear()
    talk.client.data.clear()
    return talk


def goes_on(talk: Talk) -> bool:
    """Whether both other streams of the connection live."""
    talk.send(frame(DATA, 0, 3, b"relayed"))
    talk.from_handler(window_update(1, 1000))
    talk.send(frame(DATA, 0, 1, b"diverted"))
    relayed = (0, b"relayed") in talk.app.of(DATA, 3)
    return relayed and bool(talk.handlers[0].of(DATA, 1, skip=24)) and not talk.client.of(GOAWAY)


def ticks(talk: Talk, count: int) -> None:
    """Let time pass, as long as the relay wants it to."""
    for _ in range(count):
        if talk.relay.deadline is None:
            return
        talk.peers.shell.now += TICK
        talk.peers.shell.expire()
        talk.peers.run()


def spent(talk: Talk) -> None:
    """Spend the client's connection window on diverted stream 7, but for 100 bytes."""
    talk.send(talk.head(3, request(b"/a")) + talk.head(5, request(b"/b")))
    talk.divert(7)
    talk.open_handler()
    talk.from_handler(talk.respond(1, ends=False))
    left = 65_535 - 100
    while left:
        size = min(left, 16_384)
        talk.from_handler(frame(DATA, 0, 1, b"d" * size))
        left -= size
    talk.responses = hpack.Encoder()
    talk.client.data.clear()
