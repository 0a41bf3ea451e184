"""The conductor of one client connection: calls between its relay and its legs.

The relay (`engine.relay`) decides, `LegIO` (`proxy.io.leg_io`, with the states of a leg) reads and writes. The
conductor carries bytes, events and decisions between them:

    an event of a descriptor  ->  read, ask the relay, write   (`read`)
    a decision of the relay   ->  open, write, watch, end      (`apply`)

States of a conductor

    relaying   events go to the relay
    spliced    the relay has joined two plaintext legs for good: the kernel moves the bytes (`proxy.io.splice`), and the
               relay is called no more
    closed     every leg that was ever open is closed, or lingers

Invariants

  * After every call into the relay, `apply` brings streams, event masks and endings in line with what it decided, and
    `host.backlog` with what is queued.
  * `_dirty` is set whenever something other than bytes may have to be moved: an opening, an ending, a mask, a deadline.
  * What is mirrored moves by itself (`proxy.mirror`): copies may outlive the conductor by a bounded time, and nothing
    here waits for one.
  * An exception in a callback ends this connection only (`abandon`).

Hot path: bytes that pass as they are (`Relay.passes`) are written at once and need no `apply`; where it is needed and
nothing is `_dirty`, it is one pass over the legs.
"""

from __future__ import annotations

from collections.abc import Callable

from sidestep.engine.leg import Ending, Leg, Role
from sidestep.engine.relay import Relay
from sidestep.proxy.connection.backlog import BacklogShare
from sidestep.proxy.connection.connection_leg import ConnectionLeg
from sidestep.proxy.connection.connection_legs import ConnectionLegs
from sidestep.proxy.connection.endpoints import ConnectionInfo, Endpoints
from sidestep.proxy.connection.host import AppTls, ConnectionHost
from sidestep.proxy.connection.kept_hellos import KeptHello
from sidestep.proxy.connection.leg_opening import open_app, open_handler
from sidestep.proxy.connection.leg_reading import drain, read_last, read_more
from sidestep.proxy.connection.live_ports import LivePort
from sidestep.proxy.connection.mirrored import MirroredConnection
from sidestep.proxy.connection.tls_facts import tls_facts
from sidestep.proxy.control.messages import LoggedTls
from sidestep.proxy.io.loop import READ, WRITE, Loop, Timer
from sidestep.proxy.io.splice import Splicer
from sidestep.proxy.io.stream import PlainStream, Stream, TlsStream
from sidestep.proxy.mirror.scheduler import ConnectionMirror
from sidestep.proxy.mirror.whole_feed import WholeFeed


class Conductor:
    """Drives one relay. Create it, `attach` the streams that are connected already, then `begin`."""

    __slots__ = (
        "_backlog",
        "_closed",
        "_dirty",
        "_hello",
        "_legs",
        "_loop",
        "_mirror",
        "_splicer",
        "_timer",
        "_tls_facts",
        "_whole",
        "active",
        "app_tls",
        "endpoints",
        "host",
        "notify",
        "port",
        "protocol",
        "relay",
        "server_name",
        "tls",
    )

    def __init__(
        self,
        loop: Loop,
        relay: Relay,
        *,
        host: ConnectionHost,
        port: LivePort,
        endpoints: Endpoints,
        protocol: str,
        tls: bool = False,
        server_name: str = "",
        app_tls: AppTls | None = None,
        hello: KeptHello | None = None,
    ) -> None:
        self._loop = loop
        self.host = host
        self._backlog = BacklogShare(host.backlog)
        self._closed = False
        self.notify = True
        """Whether TLS peers are sent close_notify: not once one has ended without it."""
        self._dirty = True
        self._timer: Timer | None = None
        """For `relay.deadline`."""
        self._legs = ConnectionLegs(loop, self)
        self._splicer: Splicer | None = None
        self._mirror: ConnectionMirror | None = None
        """Once something is mirrored."""
        self._whole = WholeFeed(relay.mirror, relay.client) if relay.mirror.is_listening else None
        self.active = loop.now
        """When bytes last came (monotonic seconds)."""
        self.relay = relay
        self.port = port
        self.endpoints = endpoints
        self.protocol = protocol
        self.tls = tls
        self.server_name = server_name
        self.app_tls = app_tls
        self._tls_facts: LoggedTls | None = None
        self._hello = hello
        """The client's ClientHello, for the facts, until they are made or the connection ends."""
        if relay.gate is not None:
            relay.gate.wake = self._answered

    @property
    def spoken(self) -> str:
        """The protocol that handlers are spoken to in."""
        return self.relay.protocol or self.protocol

    @property
    def tls_facts(self) -> LoggedTls | None:
        """More of a client that came over TLS: made when something is first mirrored, as long as it is there."""
        self._take_tls_facts()
        return self._tls_facts

    def _take_tls_facts(self) -> None:
        if self._tls_facts is None and self.tls:
            stream = self._legs.of(self.relay.client).stream
            self._tls_facts = tls_facts(stream, self.server_name, self._taken_hello())

    def _taken_hello(self) -> bytes:
        hello, self._hello = self._hello, None
        return hello.take() if hello is not None else b""

    @property
    def allows_late_auth(self) -> bool:
        """Whether the app could still ask for the client's certificate on this connection."""
        io: ConnectionLeg | None = self.relay.app.io
        return io is not None and isinstance(io.stream, TlsStream) and io.stream.on_late_auth is not None

    @property
    def is_cut_off(self) -> bool:
        """Whether the app's kernel has stopped to acknowledge what the client sent, although ours retransmits it."""
        return self._legs.is_cut_off(self.active)

    def attach(self, leg: Leg, stream: Stream, *, watched: bool) -> None:
        """Give a leg its connected stream. `watched`: its descriptor is registered with the loop already."""
        leg.active = self._loop.now
        self._legs.of(leg).attach(stream, watched=watched)

    def begin(self) -> None:
        """Take what the streams hold already and bring everything in line."""
        for leg in (self.relay.client, self.relay.app):
            io: ConnectionLeg | None = leg.io
            if io is not None and io.stream is not None and self._splicer is None:
                self.read(io, io.stream)

    # --- from the legs to the relay ---------------------------------------------------------------------------------

    def read(self, io: ConnectionLeg, stream: Stream, *, hung_up: bool = False) -> None:
        """Read a stream and let the relay decide.

        `hung_up`: the peer has closed both directions. Before we have finished sending, that counts as a break and not
        as an end: handlers are reached through unix sockets, which have no reset.
        """
        relay = self.relay
        leg = io.leg
        self.active = leg.active = now = self._loop.now
        try:
            data = stream.read()
            if data and relay.drain:
                self._dirty |= drain(
                    relay, leg, stream, data, whole=self._whole, backlog=self._backlog, protocol=self.spoken
                )
                self._look_at(relay, leg)
            elif data:
                if self._whole is not None:
                    self._whole.read(leg, data)
                to = relay.passes(leg, data)
                if to is None:
                    relay.receive(leg, data, now)
                elif self._pass_on(to, data) and not self._dirty and len(data) != stream.full:
                    queue = relay.mirror.queue
                    if queue is not None and queue.events:
                        self._mirror_later()
                    return
                if len(data) == stream.full or relay.drain:
                    self._dirty |= read_more(
                        relay, leg, stream, whole=self._whole, backlog=self._backlog, protocol=self.spoken
                    )
                self._look_at(relay, leg)
            elif data is not None and hung_up and not io.finished:
                self._lose(io)
            elif data is not None:
                if stream.ragged:
                    self.notify = False
                io.ended = True
                self._dirty = True
                if self._whole is not None:
                    self._whole.ended(leg)
                relay.receive_eof(leg, now)
        except OSError:
            self._lose(io)
        self.apply()

    def _look_at(self, relay: Relay, leg: Leg) -> None:
        """See whether the relay reads on, or another one does in its place."""
        if not relay.reads(leg):
            self._dirty = True
            if relay.successor is not None:
                self.relay = relay.successor

    def _pass_on(self, to: Leg, data: bytes) -> bool:
        """Write bytes that pass as they are; return whether nothing is left to do."""
        io: ConnectionLeg | None = to.io
        if to.out or io is None or io.stream is None:
            to.write(data)
            return False
        try:
            taken = io.stream.write(data)
        except OSError:
            self._lose(io)
            return False
        if taken != len(data):
            to.write(data[taken:])
        if self._whole is not None:
            self._whole.passed_on(to, data)
        return taken == len(data)

    def hung_up(self, io: ConnectionLeg) -> None:
        """Both directions of a stream are over, or it broke after the peer had finished sending."""
        if io.finished and not io.leg.out:
            io.release(orderly=True)
            self._dirty = True
        else:
            self._lose(io)
        self.apply()

    def _lose(self, io: ConnectionLeg) -> None:
        """A stream broke: take what it still holds, release it and tell the relay."""
        self._dirty = True
        if not io.ended and io.stream is not None and io.lingering is None:
            read_last(self.relay, io.leg, io.stream, whole=self._whole, now=self._loop.now)
            if self.relay.successor is not None:
                self.relay = self.relay.successor
        if io.leg is self.relay.client:
            self._break_off()
        io.leg.out.clear()
        io.leg.queued = 0
        io.release(orderly=False)
        if self._whole is not None:
            self._whole.lost(io.leg)
        self.relay.lost(io.leg, self._loop.now)

    def _expire(self) -> None:
        self._timer = None
        if not self._closed and self._splicer is None:
            self._dirty = True
            self.relay.expired(self._loop.now)
            self.apply()

    def _answered(self, call: Callable[[], None]) -> None:
        """Who judges requests beside the relay has answered (`Gate.wake`)."""
        if not self.is_apart:
            try:
                self.relay.answered(call, self._loop.now)
            except Exception:
                self.abandon()  # the caller does not own this connection
                raise
            self.apply_again()

    # --- from the relay to the legs ---------------------------------------------------------------------------------

    def apply(self) -> None:
        """Bring streams, masks and endings in line with the relay."""
        relay = self.relay
        broken: list[ConnectionLeg] | None = None
        drained: list[Leg] | None = None
        for leg in relay.legs:
            out = leg.out
            if leg.ending and not self._dirty:
                self._dirty = self._is_ending(leg)
            if out:
                io: ConnectionLeg | None = leg.io
                if io is None or io.stream is None:
                    self._dirty = True
                    continue
                whole = self._whole
                try:
                    if not (io.write(io.stream) if whole is None else whole.write(io, io.stream)):
                        io.congested = self._dirty = True
                    elif io.congested:
                        io.congested = False
                        drained = [*(drained or ()), leg]
                except OSError:
                    broken = [*(broken or ()), io]
        if broken or drained:
            for io in broken or ():
                self._lose(io)
            for leg in drained or ():
                relay.drained(leg, self._loop.now)
            self.apply()
            return
        if self._dirty or self._wants_more(relay):
            self._apply_all(relay)
        queue = relay.mirror.queue
        if queue is not None and queue.events:
            self._mirror_later()

    def _wants_more(self, relay: Relay) -> bool:
        """Whether the relay wants more than bytes to be moved."""
        return bool(
            relay.done
            or relay.opening
            or relay.mirror.notes
            or (relay.deadline is not None and self._timer is None)
            or (relay.joined is not None and relay.wired is not None)
        )

    @staticmethod
    def _is_ending(leg: Leg) -> bool:
        """Whether an ending is still to be carried out; it may have been asked for during another leg's event."""
        io: ConnectionLeg | None = leg.io
        return io is not None and (io.cancel is not None or (io.stream is not None and not io.finished))

    def _apply_all(self, relay: Relay) -> None:
        while relay.opening:
            self._open(relay.opening.pop(0))
        if self._mirror is not None:
            self._mirror.settle()
        if relay.mirror.notes:
            self.host.log_requests(self)
        held_back = False
        self._count()
        if relay.done:
            self._break_off()
        for io in self._legs:
            leg = io.leg
            if leg.ending and not (leg.out and leg.ending != Ending.ABORT):
                io.end(leg.ending)
                if self._whole is not None and io.finished:
                    self._whole.finished(leg)
            if io.stream is None or io.lingering is not None:
                continue
            held_back |= self._watch(relay, leg, io)
        self._arm(relay)
        self._dirty = held_back
        self._legs.forget()
        if relay.wired is not None and self._splice(relay.wired):
            return
        if relay.done and not self._legs.has_unsent:
            self.close()

    def _watch(self, relay: Relay, leg: Leg, io: ConnectionLeg) -> bool:
        """Set the events that the relay wants; return whether anything is held back."""
        reads = relay.reads(leg) and not io.ended
        if reads and self._backlog.budget.held:
            reads = not self._backlog.holds_up(relay, leg, self.spoken)
        mask = (READ if reads else 0) | (WRITE if leg.out or (leg.ending and not io.finished) else 0)
        io.watch(mask)
        return mask != READ

    def _count(self) -> None:
        """Tell the backlog how many bytes wait here: none once the conductor is closed."""
        self._backlog.set(0 if self._closed else self._legs.queued)

    def _arm(self, relay: Relay) -> None:
        if relay.deadline is not None and self._timer is None and not self._closed:
            delay = max(0.0, relay.deadline - self._loop.now)
            self._timer = self._loop.later(delay, self._expire)

    def _splice(self, wired: tuple[Leg, Leg]) -> bool:
        """Hand two joined plaintext legs to the kernel once nothing is queued; return whether they are handed over."""
        one, other = wired[0].io, wired[1].io
        if self._splicer is not None or self._closed or one is None or other is None or wired[0].out or wired[1].out:
            return self._splicer is not None
        if not isinstance(one.stream, PlainStream) or not isinstance(other.stream, PlainStream):
            return False
        for io in self._legs:
            if io is not one and io is not other:
                io.release(orderly=True)
        self._splicer = Splicer(
            self._loop,
            self.host.pipes,
            one.stream,
            other.stream,
            ended=(one.ended, other.ended),
            finished=(one.finished, other.finished),
            done=self._spliced,
        )
        self._leave_mirror()
        return True

    def _spliced(self) -> None:
        if not self._closed:
            self._closed = True
            self._count()
            self.host.closed(self)

    # --- opening legs -----------------------------------------------------------------------------------------------

    def _open(self, leg: Leg) -> None:
        if leg.role is Role.APP:
            open_app(self._legs.of(leg), self.host, self.port, self.endpoints, tls=self.app_tls, done=self._opened)
        elif leg is self.relay.app:
            info = ConnectionInfo(self.endpoints)
            open_handler(self._legs.of(leg), self.host, info, tls=self.app_tls, done=self._opened)
        else:
            open_handler(self._legs.of(leg), self.host, self.info(self.spoken), tls=None, done=self._opened)

    def info(self, protocol: str) -> ConnectionInfo:
        """What a handler is told that is spoken to in this protocol."""
        return ConnectionInfo(self.endpoints, self.tls, self.server_name, protocol)

    def _opened(self, io: ConnectionLeg, stream: Stream | None) -> None:
        try:
            self._join(io, stream)
        except Exception:
            self.abandon()  # the caller does not own this connection, and could not end it
            raise

    def _join(self, io: ConnectionLeg, stream: Stream | None) -> None:
        self._dirty = True
        relay, leg, now = self.relay, io.leg, self._loop.now
        if stream is None:
            relay.refused(leg, now)
        elif self._closed or leg.ending is Ending.ABORT:
            stream.reset()
        else:
            self.attach(leg, stream, watched=False)
            relay.opened(leg, now)
            early = stream.take_early() if isinstance(stream, TlsStream) else b""
            if early:
                self.relay.receive(leg, early, now)
        if not self._closed:
            self.apply()

    # --- the mirror -------------------------------------------------------------------------------------------------

    def _mirror_later(self) -> None:
        self._mirroring().glance()

    def _mirroring(self) -> ConnectionMirror:
        if self._mirror is None:
            self._mirror = ConnectionMirror(self._loop, MirroredConnection(self), self.host.mirror_scheduler)
            self._take_tls_facts()
        return self._mirror

    @property
    def is_apart(self) -> bool:
        """Whether nothing more is relayed by the engine: the connection is closed, or the kernel moves its bytes."""
        return self._closed or self._splicer is not None

    def apply_again(self) -> None:
        """Carry out everything that the relay wants: what mirrors the connection has moved."""
        self._dirty = True
        try:
            self.apply()
        except Exception:
            self.abandon()  # the caller could only end what it mirrors
            raise

    def _leave_mirror(self) -> None:
        """The client's connection is over, or is spliced: copies have a bounded time to be delivered."""
        mirror = self.relay.mirror
        if self._mirror is not None or mirror.events or mirror.observer is not None:
            self._mirroring().leave()
        self._taken_hello()

    # --- endings ----------------------------------------------------------------------------------------------------

    def retire(self) -> None:
        """End an idle connection: FIN first, because a request may be on its way, and a reset would be its answer."""
        self.relay.close_idle()
        self._dirty = True
        self.apply()
        self.close()

    def close(self) -> None:
        """End everything: the client leg lingers if the relay ended it, the rest is closed now."""
        if self._closed:
            return
        if self._splicer is not None:
            self._splicer.abandon()
            return
        self._set_closed()
        self._break_off()
        self._legs.close()
        self._leave_mirror()
        self.host.closed(self)

    def abandon(self) -> None:
        """Reset every leg: after an exception, or at the end of the drain timeout."""
        if self._splicer is not None:
            self._splicer.abandon()
            return
        self._break_off()
        self._legs.reset()
        if not self._closed:
            self._set_closed()
            self._leave_mirror()
            self.host.closed(self)

    def _break_off(self) -> None:
        """Before the client's leg is closed: have what is inspected concluded, of which a record is made, and take the
        facts of its TLS if something was mirrored of which nothing was told yet."""
        relay = self.relay
        if relay.mirror.queue is not None:
            self._take_tls_facts()
        gate = relay.gate
        if gate is not None:
            gate.break_off()

    def _set_closed(self) -> None:
        self._closed = True
        self._count()
        if self._timer is not None:
            self._timer.cancel()
