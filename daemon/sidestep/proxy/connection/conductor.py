"""The shell around a relay: one client connection, its streams, and the calls between them.

States of a leg's stream (a `_Pipe`):

    waiting   the relay asked for the leg; a dial or an `Open` message is under way; `leg.out` is kept
    live      connected; read while the relay reads it, written when it has bytes
    finished  half-closed by us; still read
    lingering closed by us with bytes possibly unread: sends FIN, reads and discards for a bounded time, so that
              the reset of an early close cannot overtake the last bytes we sent
    dead      closed

Invariants: a descriptor is registered exactly while its pipe is live, finished or lingering; every pipe that ever
opened is dead or lingering when the conductor is closed; taps move apart (`proxy.mirror.tap_leg`), may outlive it by
a bounded time, and nothing here waits for one; after every call into the relay `settle` brings sockets, masks and
endings in line with what the relay says, and the host's `backlog` with what is queued. Hot path: bytes that pass as
they are (`Relay.passes`) are written at once and need no `settle`; where it is needed and nothing is queued, opening or
ending, it is one pass over two legs.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from time import monotonic
from typing import Final, Protocol

from sidestep.engine.memory_budget import Budget, high_water
from sidestep.engine.relay import HIGH_WATER, CopyLeg, Ending, Leg, Relay, Role
from sidestep.proxy.connection.dial import Done, is_unacknowledged
from sidestep.proxy.connection.live_ports import LivePort
from sidestep.proxy.io.loop import BROKEN, HANG_UP, READ, WRITE, Loop, Timer
from sidestep.proxy.io.splice import Pipes, Splicer
from sidestep.proxy.io.stream import PlainStream, Stream, TlsStream
from sidestep.proxy.mirror.scheduler import Copying, Copyist

DRAIN_READS: Final = 16
"""Reads of one stream per event while the relay drains or reads come back full; then the other streams get a turn."""
DRAIN_SECONDS: Final = 0.001
"""Seconds of them: chunks of a byte each, say, cost 20 ms per 64 KiB."""
LINGER: Final = 2.0
"""Seconds a closed stream is read to its end."""
PRUNE: Final = 8
"""Pipes of one connection above which dead ones are forgotten."""
MERGE: Final = 64
"""Chunks of `leg.out` joined into one write."""


class Endpoints:
    """Who is connected to whom: the client's address and the address it dialled, unmapped.

    `names` are the sources (address, port) of connections to the app that are named after this client, and live.
    """

    __slots__ = ("client", "client_port", "host", "names", "port")

    def __init__(self, client: str, client_port: int, host: str, port: int) -> None:
        self.client = client
        self.client_port = client_port
        self.host = host
        self.port = port
        self.names: list[tuple[str, int]] = []


class About(Protocol):
    """What a handler's side is told of a connection."""

    @property
    def endpoints(self) -> Endpoints:
        """Its ends."""

    @property
    def tls(self) -> bool:
        """Whether the client came over TLS, and this is what was in it."""

    @property
    def server_name(self) -> str:
        """The client's SNI."""

    @property
    def spoken(self) -> str:
        """The protocol."""


class Raw:
    """A connection of which a handler gets the bytes as they are."""

    tls = False
    server_name = ""
    spoken = "tcp"

    def __init__(self, endpoints: Endpoints) -> None:
        self.endpoints = endpoints


class Copied:
    """A connection of which a handler gets copies; meanwhile it may have gone on in another protocol."""

    def __init__(self, conductor: Conductor, spoken: str) -> None:
        self.endpoints = conductor.endpoints
        self.tls = conductor.tls
        self.server_name = conductor.server_name
        self.spoken = spoken


class ConnectionHost(Protocol):
    """What a conductor asks of the worker around it."""

    pipes: Pipes
    copyist: Copyist
    backlog: Budget
    """What all conductors have queued for peers that do not read (bytes)."""
    lingering: set[object]
    """Streams of all conductors that are closed and still read for a moment."""

    def open_stream(self, about: About, leg: Leg, done: Callable[[PlainStream | None], None]) -> Callable[[], None]:
        """Ask the daemon for a connection to the handler of `leg.rule`; returns a function that cancels."""

    def dial_app(self, endpoints: Endpoints, done: Done) -> Callable[[], None]:
        """Connect to the app on behalf of a client; returns a function that cancels."""

    def left(self, endpoints: Endpoints, app: socket.socket) -> None:
        """A connection to the app is about to be closed."""

    def no_app(self, port: LivePort, host: str) -> None:
        """A dial to the app was refused."""

    def closed(self, conductor: Conductor) -> None:
        """The conductor is over."""

    def log_requests(self, conductor: Conductor) -> None:
        """Take `relay.diverted`."""


AppTls = Callable[[socket.socket, Callable[[Stream | None], None]], Callable[[], None]]
"""Make a fresh TLS stream to the app on a connected socket; returns a function that cancels."""


class _Pipe:
    """The shell's side of one leg."""

    __slots__ = ("cancel", "conductor", "congested", "ended", "finished", "leg", "lingering", "mask", "stream")

    def __init__(self, conductor: Conductor, leg: Leg) -> None:
        self.conductor = conductor
        self.leg = leg
        self.stream: Stream | None = None
        self.mask = 0
        self.congested = False
        """Its stream did not take all that was written."""
        self.ended = False
        """The peer finished sending."""
        self.finished = False
        """We finished sending."""
        self.lingering: Timer | None = None
        self.cancel: Callable[[], None] | None = None

    def ready(self, mask: int) -> None:
        """Dispatch an event of the stream."""
        stream = self.stream
        if stream is None:
            return
        if mask == READ and not self.ended and self.lingering is None:
            self.conductor.pull(self, stream)
        elif self.lingering is not None:
            self.conductor.discard(self)
        elif self.ended and mask & BROKEN:
            self.conductor.hung_up(self)
        elif mask & ~WRITE and not self.ended:
            self.conductor.pull(self, stream, hung_up=bool(mask & HANG_UP))
        else:
            self.conductor.settle()

    def dear(self) -> None:
        """Its last event cost much time: take smaller bites, so that other connections get their turn."""
        if self.stream is not None:
            self.stream.narrow()

    def abandon(self) -> None:
        """A bug was met in a callback of this pipe."""
        self.conductor.abandon()


class Conductor:
    """Drives one relay. Create it, `attach` what is connected already, then `begin`."""

    __slots__ = (
        "_backlog",
        "_closed",
        "_copying",
        "_held",
        "_host",
        "_loop",
        "_notify",
        "_pipes",
        "_slow",
        "_splicer",
        "_timer",
        "active",
        "app_tls",
        "endpoints",
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
    ) -> None:
        self._loop = loop
        self._host = host
        self._backlog = host.backlog
        self._closed = False
        self._held = 0
        """Its part of `_backlog`."""
        self._notify = True
        self._slow = True
        self._timer: Timer | None = None
        self._pipes: list[_Pipe] = []
        self._splicer: Splicer | None = None
        self._copying: Copying | None = None
        """Once something is to be copied."""
        self.active = loop.now
        """When bytes last came, on the loop's clock."""
        self.relay = relay
        self.port = port
        self.endpoints = endpoints
        self.protocol = protocol
        self.tls = tls
        self.server_name = server_name
        self.app_tls = app_tls

    @property
    def spoken(self) -> str:
        """The protocol that handlers are spoken to in."""
        return self.relay.protocol or self.protocol

    @property
    def askable(self) -> bool:
        """Whether the app could still ask for the client's certificate on this connection."""
        pipe: _Pipe | None = self.relay.app.io
        return pipe is not None and isinstance(pipe.stream, TlsStream) and pipe.stream.asked_later is not None

    @property
    def is_cut_off(self) -> bool:
        """Whether the app's kernel does not acknowledge any more what the client said last, though ours repeats it."""
        return any(
            pipe.leg.role is Role.APP and pipe.leg.active < self.active and is_unacknowledged(pipe.stream.sock)
            for pipe in self._pipes
            if pipe.stream is not None
        )

    def attach(self, leg: Leg, stream: Stream, *, watched: bool) -> None:
        """Give a leg its connected stream. `watched`: its descriptor is registered with the loop already."""
        pipe = self._pipe(leg)
        pipe.stream = stream
        pipe.mask = READ
        leg.open = True
        leg.active = self._loop.now
        if watched:
            self._loop.rebind(stream.fd, pipe.ready, READ)
        else:
            self._loop.add(stream.fd, pipe.ready, READ)

    def begin(self) -> None:
        """Take what the streams hold already and bring everything in line."""
        for leg in (self.relay.client, self.relay.app):
            pipe: _Pipe | None = leg.io
            if pipe is not None and pipe.stream is not None and self._splicer is None:
                self.pull(pipe, pipe.stream)

    def _pipe(self, leg: Leg) -> _Pipe:
        pipe = leg.io
        if pipe is None:
            pipe = leg.io = _Pipe(self, leg)
            self._pipes.append(pipe)
        return pipe  # type: ignore[no-any-return]

    def pull(self, pipe: _Pipe, stream: Stream, *, hung_up: bool = False) -> None:
        """Read a stream and let the relay decide.

        `hung_up`: the peer closed both directions. Before our own end that is a break, not an end: a unix socket, on
        which handlers are reached, knows no reset.
        """
        relay = self.relay
        leg = pipe.leg
        self.active = leg.active = self._loop.now
        try:
            data = stream.read()
            if data:
                to = relay.passes(leg, data)
                if to is None:
                    relay.receive(leg, data, leg.active)
                elif self._passed_on(to, data) and not self._slow and len(data) != stream.full:
                    if relay.deferred.calls:
                        self._copy_later()
                    return
                if len(data) == stream.full or relay.drain:
                    self._pull_more(relay, leg, stream)
                if not relay.reads(leg):
                    self._slow = True
                    if relay.successor is not None:
                        self.relay = relay.successor
            elif data is not None and hung_up and not pipe.finished:
                self._lose(pipe)
            elif data is not None:
                if stream.ragged:
                    self._notify = False
                pipe.ended = True
                self._slow = True
                relay.receive_eof(leg, self._loop.now)
        except OSError:
            self._lose(pipe)
        self.settle()

    def _pull_last(self, pipe: _Pipe) -> None:
        """Read what arrived before a reset: a server that refuses an upload answers, and closes without reading it."""
        relay, leg, stream = self.relay, pipe.leg, pipe.stream
        if stream is None or pipe.lingering is not None:
            return
        try:
            while relay.reads(leg) and not relay.done and (data := stream.read()):
                relay.receive(leg, data, self._loop.now)
        except OSError:
            pass

    def _passed_on(self, to: Leg, data: bytes) -> bool:
        """Write bytes that pass as they are; tell whether nothing is left to do."""
        pipe: _Pipe | None = to.io
        if to.out or pipe is None or pipe.stream is None:
            to.write(data)
            return False
        try:
            taken = pipe.stream.write(data)
        except OSError:
            self._lose(pipe)
            return False
        if taken == len(data):
            return True
        to.write(data[taken:])
        return False

    def hung_up(self, pipe: _Pipe) -> None:
        """Both directions of a stream are over, or it broke after the peer had finished sending."""
        if pipe.finished and not pipe.leg.out:
            self._kill(pipe, orderly=True)
            self._slow = True
        else:
            self._lose(pipe)
        self.settle()

    def _pull_more(self, relay: Relay, leg: Leg, stream: Stream) -> None:
        end = monotonic() + DRAIN_SECONDS
        for _ in range(DRAIN_READS):
            if not relay.reads(leg) or relay.done or relay.wired is not None:
                self._slow = True
                return
            if self._backlog.held and self._is_behind(relay, leg):
                self._slow = True
                return
            data = stream.read()
            if not data:
                return  # would block, or an end that the next event reports again
            to = relay.passes(leg, data)
            if to is None:
                relay.receive(leg, data, leg.active)
            else:
                to.write(data)
            if (len(data) < stream.full and not relay.drain) or monotonic() > end:
                return
        stream.widen()

    def _lose(self, pipe: _Pipe) -> None:
        """A stream broke: take what it still holds, release it and tell the relay."""
        self._slow = True
        if not pipe.ended:
            self._pull_last(pipe)
        pipe.leg.out.clear()
        pipe.leg.queued = 0
        self._kill(pipe, orderly=False)
        self.relay.lost(pipe.leg, self._loop.now)

    def settle(self) -> None:
        """Bring streams, masks and endings in line with the relay."""
        relay = self.relay
        legs = relay.legs
        broken: list[_Pipe] | None = None
        drained: list[Leg] | None = None
        for leg in legs:
            out = leg.out
            if leg.role is Role.TAP:
                continue
            if leg.ending and not self._slow:
                self._slow = self._unended(leg)
            if out:
                pipe: _Pipe | None = leg.io
                if pipe is None or pipe.stream is None:
                    self._slow = True
                    continue
                try:
                    if not self._write(leg, out, pipe.stream):
                        pipe.congested = self._slow = True
                    elif pipe.congested:
                        pipe.congested = False
                        drained = [*(drained or ()), leg]
                except OSError:
                    broken = [*(broken or ()), pipe]
        if broken or drained:
            for pipe in broken or ():
                self._lose(pipe)
            for leg in drained or ():
                relay.drained(leg, self._loop.now)
            self.settle()
            return
        if self._slow or self._pressing(relay):
            self._settle_slowly(relay)
        if relay.deferred.calls:
            self._copy_later()

    def _pressing(self, relay: Relay) -> bool:
        """Whether the relay wants more than bytes to be moved."""
        return bool(
            relay.done or relay.opening or relay.diverted or (relay.deadline is not None and self._timer is None)
        )

    @staticmethod
    def _unended(leg: Leg) -> bool:
        """Whether an ending that the relay asked for, maybe during another leg's event, is still to be carried out."""
        pipe: _Pipe | None = leg.io
        return pipe is not None and (pipe.cancel is not None or (pipe.stream is not None and not pipe.finished))

    def _write(self, leg: Leg, out: list[bytes], stream: Stream) -> bool:
        """Write what is queued; tell whether all of it was taken."""
        while out:
            count = len(out)
            if count == 1:
                data = out[0]
            else:
                count = min(count, MERGE)
                data = b"".join(out[:count])
            taken = stream.write(data)
            leg.queued -= taken
            if taken != len(data):
                out[:count] = [data[taken:]]
                return False
            del out[:count]
        return True

    def _copy_later(self) -> None:
        self._copies().glance()

    def _copies(self) -> Copying:
        if self._copying is None:
            self._copying = Copying(self._loop, self, self._host.copyist)
        return self._copying

    def copied(self) -> None:
        """Some of what was deferred is done: bring the tap legs in line."""
        self._slow = True
        try:
            self.settle()
        except Exception:
            self.abandon()  # who called could only end the copies
            raise

    def _settle_slowly(self, relay: Relay) -> None:
        while relay.opening:
            self._open(relay.opening.pop(0))
        if self._copying is not None:
            self._copying.settle()
        if relay.diverted:
            self._host.log_requests(self)
        congested = False
        self._count(sum(pipe.leg.queued for pipe in self._pipes if pipe.stream is not None or not pipe.leg.ending))
        for pipe in [*self._pipes]:
            leg = pipe.leg
            if leg.ending and not (leg.out and leg.ending != Ending.ABORT):
                self._end(pipe, leg.ending)
            if pipe.stream is None or pipe.lingering is not None:
                continue
            congested |= self._watch(relay, leg, pipe)
        self._arm(relay)
        self._slow = congested
        if len(self._pipes) > PRUNE:
            self._pipes = [pipe for pipe in self._pipes if pipe.stream is not None or not pipe.leg.ending]
        if relay.wired is not None and self._splice(relay.wired):
            return
        if relay.done and not any(map(self._says_more, self._pipes)):
            self.close()

    @staticmethod
    def _says_more(pipe: _Pipe) -> bool:
        """Whether bytes, or the end that follows them, are still to be written."""
        if pipe.stream is None or pipe.lingering is not None:
            return False
        return bool(pipe.leg.out) or (pipe.leg.ending is not Ending.NONE and not pipe.finished)

    def _splice(self, wired: tuple[Leg, Leg]) -> bool:
        """Hand a wire between two plaintext sockets, once nothing is queued, to the kernel; tell whether it was."""
        one, other = wired[0].io, wired[1].io
        if self._splicer is not None or self._closed or one is None or other is None or wired[0].out or wired[1].out:
            return self._splicer is not None
        if not isinstance(one.stream, PlainStream) or not isinstance(other.stream, PlainStream):
            return False
        for pipe in self._pipes:
            if pipe is not one and pipe is not other:
                self._kill(pipe, orderly=True)
        self._splicer = Splicer(
            self._loop,
            self._host.pipes,
            one.stream,
            other.stream,
            ended=(one.ended, other.ended),
            finished=(one.finished, other.finished),
            done=self._spliced,
        )
        self._leave_taps()
        return True

    def _spliced(self) -> None:
        if not self._closed:
            self._closed = True
            self._count(0)
            self._host.closed(self)

    def _watch(self, relay: Relay, leg: Leg, pipe: _Pipe) -> bool:
        """Set the mask that the relay wants; tell whether anything is held back."""
        reads = relay.reads(leg) and not pipe.ended and not (self._backlog.held and self._is_behind(relay, leg))
        mask = (READ if reads else 0) | (WRITE if leg.out or (leg.ending and not pipe.finished) else 0)
        if mask != pipe.mask and pipe.stream is not None:
            pipe.mask = mask
            self._loop.modify(pipe.stream.fd, mask)
        return mask != READ

    def _count(self, queued: int) -> None:
        """Tell the backlog how many bytes wait here: none once the conductor is closed."""
        if self._closed:
            queued = 0
        if queued != self._held:
            self._backlog.held += queued - self._held
            self._held = queued

    def _is_behind(self, relay: Relay, leg: Leg) -> bool:
        """Whether more waits for those who get the bytes of this leg than the backlog of all connections leaves room
        for. Handlers of an HTTP/2 connection never hold up its client, whose other streams go elsewhere.
        """
        most = high_water(self._backlog)
        if most >= HIGH_WATER:
            return False  # the relay's own bound is the lower one
        client = relay.client
        if leg is not client:
            return client.queued > most
        if self.spoken == "h2":
            return relay.app.queued > most
        return any(other.queued > most for other in relay.legs if other.role in (Role.APP, Role.HANDLER))

    def _arm(self, relay: Relay) -> None:
        if relay.deadline is not None and self._timer is None and not self._closed:
            delay = max(0.0, relay.deadline - self._loop.now)
            self._timer = self._loop.later(delay, self._expire)

    def _expire(self) -> None:
        self._timer = None
        if not self._closed and self._splicer is None:
            self._slow = True
            self.relay.expired(self._loop.now)
            self.settle()

    def _open(self, leg: Leg) -> None:
        if isinstance(leg, CopyLeg):
            self._copies().open(leg)
            return
        pipe = self._pipe(leg)
        if leg.role is Role.APP:
            self._dial_app(pipe)
            return

        def done(stream: PlainStream | None) -> None:
            pipe.cancel = None
            if stream is not None and self.app_tls is not None and leg is self.relay.app:
                pipe.cancel = self.app_tls(stream.sock, secured)
            else:
                self._opened(pipe, stream)

        def secured(stream: Stream | None) -> None:
            pipe.cancel = None
            self._opened(pipe, stream)

        pipe.cancel = self._ask(leg, done)

    def ask_for_copy(self, leg: CopyLeg, done: Callable[[PlainStream | None], None]) -> Callable[[], None]:
        """Ask for a connection to the handler of a tap leg; returns a function that cancels."""
        return self._host.open_stream(Copied(self, leg.protocol or self.protocol), leg, done)

    def _ask(self, leg: Leg, done: Callable[[PlainStream | None], None]) -> Callable[[], None]:
        """Ask for a connection to the handler of a leg; returns a function that cancels."""
        about = Raw(self.endpoints) if leg is self.relay.app else self
        return self._host.open_stream(about, leg, done)

    def tap_moved(self) -> None:
        """The relay was told something about a tap: tell the log, and see whether a wire is free of copies now."""
        if self._closed or self._splicer is not None:
            if self.relay.diverted:
                self._host.log_requests(self)
        elif self.relay.wired is not None or self.relay.diverted:
            self._slow = True
            self.settle()

    def _leave_taps(self) -> None:
        """The client's connection is over, or moves without us: copies have a bounded time to be delivered."""
        if self._copying is not None or self.relay.deferred.calls:
            self._copies().leave()

    def _dial_app(self, pipe: _Pipe) -> None:
        def secured(stream: Stream | None) -> None:
            pipe.cancel = None
            self._opened(pipe, stream)

        def connected(sock: socket.socket | None, error: OSError | None) -> None:
            pipe.cancel = None
            if sock is None:
                if isinstance(error, ConnectionRefusedError):
                    self._host.no_app(self.port, self.endpoints.host)
                self._opened(pipe, None)
            elif self.app_tls is not None:
                pipe.cancel = self.app_tls(sock, secured)
            else:
                self._opened(pipe, PlainStream(sock))

        pipe.cancel = self._host.dial_app(self.endpoints, connected)

    def _opened(self, pipe: _Pipe, stream: Stream | None) -> None:
        try:
            self._join(pipe, stream)
        except Exception:
            self.abandon()  # who called could not end this connection
            raise

    def _join(self, pipe: _Pipe, stream: Stream | None) -> None:
        self._slow = True
        if stream is None:
            self.relay.refused(pipe.leg, self._loop.now)
        elif self._closed or pipe.leg.ending is Ending.ABORT:
            stream.reset()
        else:
            self.attach(pipe.leg, stream, watched=False)
            self.relay.opened(pipe.leg, self._loop.now)
            early = stream.take_early() if isinstance(stream, TlsStream) else b""
            if early:
                self.relay.receive(pipe.leg, early, self._loop.now)
        if not self._closed:
            self.settle()

    def _end(self, pipe: _Pipe, ending: Ending) -> None:
        if pipe.cancel is not None:
            cancel, pipe.cancel = pipe.cancel, None
            cancel()
        stream = pipe.stream
        if stream is None:
            return
        if ending is Ending.ABORT:
            self._kill(pipe, orderly=False)
        elif not pipe.finished:
            pipe.finished = stream.finish(notify=self._notify)
        if ending is Ending.CLOSE and pipe.finished and pipe.lingering is None:
            self._linger(pipe, stream)

    def _linger(self, pipe: _Pipe, stream: Stream) -> None:
        def give_up() -> None:
            self._kill(pipe, orderly=True)

        self._host.lingering.add(pipe)
        pipe.lingering = self._loop.later(LINGER, give_up)
        pipe.mask = READ if pipe.finished else READ | WRITE
        self._loop.modify(stream.fd, pipe.mask)

    def discard(self, pipe: _Pipe) -> None:
        """Read a lingering stream to its end."""
        stream = pipe.stream
        if stream is None:
            return
        if not pipe.finished and stream.finish(notify=self._notify):
            pipe.finished = True
            pipe.mask = READ
            self._loop.modify(stream.fd, READ)
        try:
            for _ in range(DRAIN_READS):
                data = stream.read()
                if data is None:
                    return
                if not data:
                    break
            else:
                return
        except OSError:
            pass
        self._kill(pipe, orderly=True)

    def _kill(self, pipe: _Pipe, *, orderly: bool) -> None:
        """Close a stream now."""
        if pipe.cancel is not None:
            cancel, pipe.cancel = pipe.cancel, None
            cancel()
        if pipe.lingering is not None:
            pipe.lingering.cancel()
            pipe.lingering = None
            self._host.lingering.discard(pipe)
        stream, pipe.stream = pipe.stream, None
        pipe.leg.open = False
        if stream is not None:
            self._loop.remove(stream.fd)
            if self.endpoints.names and pipe.leg.role is Role.APP:
                self._host.left(self.endpoints, stream.sock)
            if orderly:
                stream.close()
            else:
                stream.reset()

    def retire(self) -> None:
        """End an idle connection: FIN first, for a reset would be the answer to a request that is on its way."""
        self.relay.take_leave()
        self._slow = True
        self.settle()
        self.close()

    def close(self) -> None:
        """End everything: what the relay closed lingers, the rest is closed now."""
        if self._closed:
            return
        if self._splicer is not None:
            self._splicer.abandon()
            return
        self._closed = True
        self._count(0)
        if self._timer is not None:
            self._timer.cancel()
        for pipe in self._pipes:
            leg = pipe.leg
            if pipe.lingering is None:
                if pipe.stream is not None and leg.ending in (Ending.FINISH, Ending.CLOSE) and leg.role is Role.CLIENT:
                    self._linger_closed(pipe, pipe.stream)
                else:
                    self._kill(pipe, orderly=True)
        self._leave_taps()
        self._host.closed(self)

    def _linger_closed(self, pipe: _Pipe, stream: Stream) -> None:
        if not pipe.finished:
            pipe.finished = stream.finish(notify=self._notify)
        self._linger(pipe, stream)

    def abandon(self) -> None:
        """Tear this connection down: an error of ours, or the end of the drain timeout."""
        if self._splicer is not None:
            self._splicer.abandon()
            return
        for pipe in self._pipes:
            self._kill(pipe, orderly=False)
        if not self._closed:
            self._closed = True
            self._count(0)
            if self._timer is not None:
                self._timer.cancel()
            self._leave_taps()
            self._host.closed(self)
