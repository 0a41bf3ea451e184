"""Independent HTTP/2 endpoints (the `h2` library) around an `Http2Relay`.

`Endpoint` is a client or a server that does what its plans say within the windows it is given; it raises on anything
that `h2` takes for a violation. `Raw` sends the bytes it is told to. `Peers` joins them to the shell of these tests.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.events
import h2.exceptions
from hyperframe.frame import SettingsFrame

from sidestep.engine.http2.relay import Http2Relay
from sidestep.engine.leg import Ending, Leg, Role
from sidestep.engine.mirror.copy_leg import CopyLeg
from sidestep.engine.mirror.ledger import Ledger
from sidestep.engine.mirror.producer import Mirror
from sidestep.engine.mirror.wiretaps import wiretap_mirror
from sidestep.policy.route import Route, Rule, SteeredPort
from sidestep.protocols.http2 import DEFAULT_LIMITS, HEADER, PREFACE, Http2Limits
from tests.unit.engine.shell import Shell

Fields = list[tuple[bytes, bytes]]
MATCH = (b"x-dev", b"me")


def rule(uid: str = "u1", match: tuple[bytes, bytes] = MATCH) -> Rule:
    return Rule(uid, f"shop/{uid}", lambda method, path, fields: match in fields, needle=b"\n%b:" % match[0])


@dataclass(repr=False)
class Message:
    """One side of a stream, as planned or as seen."""

    head: Fields = field(default_factory=list)
    informational: list[Fields] = field(default_factory=list)
    pieces: list[bytes] = field(default_factory=list)
    trailers: Fields | None = None
    padding: int | None = None
    ended: bool = False
    reset: int | None = None

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    def __repr__(self) -> str:
        sizes = [len(piece) for piece in self.pieces]
        return (
            f"Message({self.head}, {sizes}, informational={self.informational}, trailers={self.trailers}, "
            f"padding={self.padding}, ended={self.ended}, reset={self.reset})"
        )


def plain(fields: Iterable) -> Fields:
    return [(bytes(name), bytes(value)) for name, value in fields]


class Endpoint:
    """A client (`answer` is None) or a server that answers each request with `answer(request head)`."""

    def __init__(
        self,
        *,
        answer: Callable[[Fields], Message] | None = None,
        settings: dict[int, int] | None = None,
        patience: float = 0.0,
        rng: random.Random | None = None,
    ) -> None:
        self.answer = answer
        self.patience = patience
        self.rng = rng or random.Random(0)
        config = h2.config.H2Configuration(
            client_side=answer is None,
            header_encoding=None,
            normalize_outbound_headers=False,
            normalize_inbound_headers=False,
        )
        self.conn = h2.connection.H2Connection(config)
        self.seen: dict[int, Message] = {}
        self.sending: dict[int, deque] = {}
        self.owed: list[tuple[int, int]] = []
        self.goaways: list[tuple[int, int]] = []
        self.dead = False
        self.next_id = 1
        self.unopened: deque[int] = deque()
        """Client streams that have ids and have not begun: they begin in order."""
        self.conn.initiate_connection()
        self.pending_settings = 1
        self.opening = self.conn.data_to_send()
        if settings:
            # One SETTINGS frame with our values: the library takes the first ACK for that of all that it has sent.
            self.conn.local_settings.update(settings)
            first = SettingsFrame(0, settings={**self.conn.local_settings, **settings})
            self.opening = (PREFACE if answer is None else b"") + first.serialize()

    # --- sending

    def send(self, plan: Message, stream: int | None = None) -> int:
        if stream is None:
            stream = self.next_id
            self.next_id += 2
            self.unopened.append(stream)
        steps: deque = deque()
        steps.extend(("headers", fields, False) for fields in plan.informational)
        last = not plan.pieces and plan.trailers is None and plan.ended
        steps.append(("headers", plan.head, last))
        for index, piece in enumerate(plan.pieces):
            ends = plan.ended and plan.trailers is None and index == len(plan.pieces) - 1
            steps.append(("data", piece, ends, plan.padding))
        if plan.trailers is not None:
            steps.append(("headers", plan.trailers, True))
        if plan.reset is not None:
            steps.append(("reset", plan.reset))
        self.sending[stream] = steps
        return stream

    def work(self) -> bool:
        """Send something of something; whether anything moved."""
        moved = False
        streams = list(self.sending)
        self.rng.shuffle(streams)
        for stream in streams:
            steps = self.sending.get(stream)
            if steps is None:
                continue
            try:
                while steps and self._step(stream, steps):
                    moved = True
                    if self.rng.random() < 0.3:
                        break
            except h2.exceptions.StreamClosedError:
                steps.clear()
            except h2.exceptions.TooManyStreamsError:
                continue
            if not steps:
                self.sending.pop(stream, None)
        if self.rng.random() >= self.patience or not moved:
            moved |= self.give()
        return moved

    def _step(self, stream: int, steps: deque) -> bool:
        step = steps[0]
        if step[0] == "headers":
            if stream in self.unopened:
                busy = self.conn.open_outbound_streams >= self.conn.remote_settings.max_concurrent_streams
                if busy or self.unopened[0] != stream:
                    return False
                self.unopened.popleft()
            self.conn.send_headers(stream, step[1], end_stream=step[2])
        elif step[0] == "reset":
            self.conn.reset_stream(stream, step[1])
        else:
            _, piece, ends, padding = step
            room = min(self.conn.local_flow_control_window(stream), self.conn.max_outbound_frame_size)
            extra = 0 if padding is None else padding + 1
            if len(piece) + extra > room:
                size = room - extra
                if size <= 0:
                    return False
                self.conn.send_data(stream, piece[:size], pad_length=padding)
                steps[0] = ("data", piece[size:], ends, padding)
                return True
            self.conn.send_data(stream, piece, end_stream=ends, pad_length=padding)
        steps.popleft()
        return True

    def give(self) -> bool:
        """Give back the windows of what was read."""
        owed, self.owed = self.owed, []
        for stream, size in owed:
            if size:
                self.conn.increment_flow_control_window(size)
                if stream in self.conn.streams and not self.seen[stream].ended:
                    try:
                        self.conn.increment_flow_control_window(size, stream)
                    except h2.exceptions.StreamClosedError:
                        pass
        return bool(owed)

    # --- receiving

    def feed(self, data: bytes) -> None:
        for event in self.conn.receive_data(data):
            self._on(event)

    def _on(self, event: h2.events.Event) -> None:
        stream = getattr(event, "stream_id", 0)
        message = self.seen.setdefault(stream, Message()) if stream else Message()
        match event:
            case h2.events.RequestReceived():
                message.head = plain(event.headers)
                plan = self.answer(message.head)
                self.send(plan, stream)
            case h2.events.ResponseReceived():
                assert not message.head
                message.head = plain(event.headers)
            case h2.events.InformationalResponseReceived():
                message.informational.append(plain(event.headers))
            case h2.events.TrailersReceived():
                message.trailers = plain(event.headers)
            case h2.events.DataReceived():
                message.pieces.append(event.data)
                self.owed.append((stream, event.flow_controlled_length))
            case h2.events.SettingsAcknowledged():
                self.pending_settings -= 1
            case h2.events.StreamEnded():
                message.ended = True
            case h2.events.StreamReset():
                message.reset = int(event.error_code)
                self.sending.pop(stream, None)
            case h2.events.ConnectionTerminated():
                self.goaways.append((event.last_stream_id, int(event.error_code)))
            case _:
                pass

    def change(self, setting: int, value: int) -> bool:
        """Send SETTINGS, unless others wait for their ACK (see above)."""
        if self.pending_settings:
            return False
        self.pending_settings += 1
        self.conn.update_settings({setting: value})
        return True

    def take(self) -> bytes:
        opening, self.opening = self.opening, b""
        return opening + self.conn.data_to_send()


class Peers:
    """Endpoints instead of sockets, around a relay and its shell; bytes arrive in chunks of any size."""

    def __init__(
        self,
        client: Endpoint,
        app: Endpoint | None,
        *,
        handler: Callable[[Rule], Endpoint | None] = lambda rule: None,
        second: Callable[[], Endpoint | None] = lambda: None,
        rules: tuple[Rule, ...] = (rule(),),
        taps: tuple[Rule, ...] = (),
        ledger: Ledger | None = None,
        mirror: Mirror | None = None,
        limits: Http2Limits = DEFAULT_LIMITS,
        rng: random.Random | None = None,
        chunk: int = 1 << 20,
        relay: Callable[[SteeredPort], Http2Relay] | None = None,
    ) -> None:
        self.rng = rng or random.Random(0)
        self.chunk = chunk
        self.port = SteeredPort(80, Route(rules, taps))
        ledger = ledger or Ledger()
        mirror = wiretap_mirror(ledger, port=80) if mirror is None else mirror
        self.relay = (
            Http2Relay(self.port, tls=False, limits=limits, mirror=mirror, budget=ledger.budget)
            if relay is None
            else relay(self.port)
        )
        self.mirror = self.relay.mirror
        self.limits = limits
        self.client = client
        self.app = app
        self.handler = handler
        self.second = second
        self.handlers: list[Endpoint] = []
        self.seconds: list[Endpoint] = []
        self.taps: list[Endpoint] = []
        self.to_relay: dict[Leg, bytearray] = {}
        self.ends: dict[Leg, Endpoint] = {self.relay.client: client}
        self.got: dict[Leg, bytearray] = {}
        """Every byte the relay was given from a leg."""
        self.diverted: list[bytes] = []
        self.stands = False
        self.check: Callable[[], None] = lambda: None
        self._moved = False
        self.shell = Shell(self.relay, late=True, connect=self._connect, wrote=self._wrote)

    @property
    def sent(self) -> dict[Leg, bytearray]:
        """Every byte the relay wrote to a leg."""
        return self.shell.sent

    def _cut(self, data: bytearray) -> bytes:
        size = min(len(data), self.rng.randint(1, self.chunk))
        piece = bytes(data[:size])
        del data[:size]
        return piece

    def _connect(self, leg: Leg) -> bool:
        self._moved = True
        if leg is self.relay.app:
            end = self.app
        elif leg.role is Role.APP:
            end = self.second()
            if end is not None:
                self.seconds.append(end)
        else:
            assert leg.rule is not None
            end = self.handler(leg.rule)
            if end is not None:
                (self.taps if isinstance(leg, CopyLeg) else self.handlers).append(end)
        if end is not None:
            self.ends[leg] = end
        return end is not None

    def _wrote(self, leg: Leg, data: bytes) -> None:
        end = self.ends[leg]
        if not end.dead:
            end.feed(data)

    def step(self) -> bool:
        """Let every party do something; whether anything moved."""
        relay = self.relay
        self._moved = False
        legs = list(self.ends)
        self.rng.shuffle(legs)
        for leg in legs:
            end = self.ends[leg]
            self._moved |= not end.dead and end.work()
            incoming = self.to_relay.setdefault(leg, bytearray())
            incoming += end.take()
            if incoming and self.shell.reads(leg) and not relay.done:
                data = self._cut(incoming)
                self.got.setdefault(leg, bytearray()).extend(data)
                self.shell.receive(leg, data)
                self._moved = True
            if self.mirror.events:
                self._moved = True
                if self.rng.random() < 0.5:
                    self.shell.copy()
            self.check()
        self.diverted += [each.path for each in self.mirror.notes if not each.is_answer]
        self.mirror.notes.clear()
        return self._moved

    def run(self, limit: int = 100_000) -> None:
        """Until nothing moves; deadlines pass, unless the clock `stands`."""
        for _ in range(limit):
            if not self.step():
                if self.stands or not any(self.to_relay.values()):
                    return
                if self.relay.deadline is not None:
                    self.shell.expire()
            if self.relay.done:
                self.shell.copy()
                return
        raise AssertionError("the connection does not come to rest")

    def leg(self, end: Endpoint) -> Leg:
        return next(leg for leg, other in self.ends.items() if other is end)

    def end(self, leg: Leg) -> None:
        """The peer of this leg finishes sending."""
        self.shell.eof(leg)

    def lose(self, end: Endpoint) -> None:
        """The peer is gone."""
        leg = self.leg(end)
        end.dead = True
        self.to_relay[leg] = bytearray()
        self.shell.lose(leg)

    @property
    def aborted(self) -> bool:
        return self.relay.client.ending is Ending.ABORT


def request(path: bytes = b"/", *more: tuple[bytes, bytes], method: bytes = b"GET", body: bytes = b"") -> Message:
    head = [(b":method", method), (b":scheme", b"http"), (b":authority", b"shop"), (b":path", path), *more]
    return Message(head=head, pieces=[body] if body else [], ended=True)


def reply(
    name: bytes, body: bytes = b"", trailers: Fields | None = None, status: bytes = b"200"
) -> Callable[[Fields], Message]:
    def answer(head: Fields) -> Message:
        path = dict(head).get(b":path", b"")
        return Message(
            head=[(b":status", status), (b"server", name), (b"x-path", path)],
            pieces=[body] if body else [],
            trailers=trailers,
            ended=True,
        )

    return answer


class Raw:
    """A peer that sends the bytes it is told to and keeps what it gets, as bytes and as frames."""

    def __init__(self, first: bytes = b"") -> None:
        self.out = bytearray(first)
        self.data = bytearray()
        """What it got; a test may clear it."""
        self.history = bytearray()
        """All that it ever got."""
        self.dead = False

    def work(self) -> bool:
        return False

    def take(self) -> bytes:
        out = bytes(self.out)
        self.out.clear()
        return out

    def feed(self, data: bytes) -> None:
        self.data += data
        self.history += data

    def frames(self, skip: int = 0) -> list[tuple[int, int, int, bytes]]:
        """(kind, flags, stream, payload) of every whole frame."""
        found = []
        position = skip
        while position + 9 <= len(self.data):
            high, low, kind, flags, stream = HEADER.unpack_from(self.data, position)
            stop = position + 9 + (high << 8 | low)
            if stop > len(self.data):
                break
            found.append((kind, flags, stream, bytes(self.data[position + 9 : stop])))
            position = stop
        return found

    def of(self, kind: int, stream: int | None = None, skip: int = 0) -> list[tuple[int, bytes]]:
        """(flags, payload) of the frames of one kind, and stream."""
        return [(f, p) for k, f, s, p in self.frames(skip) if k == kind and stream in (None, s)]
