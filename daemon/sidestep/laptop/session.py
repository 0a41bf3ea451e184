"""A session on the developer's machine: asks the daemon for an intercept, then serves its tunnel until it is ended.

The session owns nothing but its connection to the daemon: closing that ends the intercept, whatever happens to this
process. What there is to tell goes to a `Listener`; how it is told is the command line's business.

A tunnel that breaks - the daemon was killed, restarted, upgraded, or is draining - ends nothing: the session registers
anew as soon as a daemon answers, with the name, the uid and the age it had, so that it is the same intercept for
`status`, for `leave` and for the order among others. Meanwhile requests go to the app. Where no daemon is, the session
asks about once a second; a daemon that is there and does not manage to serve is asked ever more rarely, because it has
other sessions to serve.

What ends a session is `stop`, a `leave`, or a refusal: the place may have been taken meanwhile. A daemon that drains
says so (`Moving`): then the old tunnel goes on serving the connections it has beside the new one.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, replace
from typing import Any, Protocol

import msgspec

from sidestep.aio.tasks import Tasks
from sidestep.laptop.handler import Handler
from sidestep.laptop.local_client import LocalClient, UnreachableError
from sidestep.laptop.retry import Retry
from sidestep.model.errors import PeerError, RefusedError, SidestepError
from sidestep.tunnel.channel import Channel
from sidestep.tunnel.cli_end import CliEnd
from sidestep.tunnel.errors import TunnelSilentError
from sidestep.tunnel.limits import DEFAULT_LIMITS, TunnelLimits
from sidestep.tunnel.messages import VERSION, AnyEvent, Ended, Hello, Moving, SessionSpec, State, encode
from sidestep.tunnel.opening import StreamOpening

FIRST_PAUSE = 0.25
LAST_PAUSE = 1.0
"""Seconds before the first attempt to come back, doubling up to the last: an intercept resumes within two seconds of a
daemon that is there. Asking where none is costs nobody anything."""
LAST_BUSY_PAUSE = 15.0
"""The last one for a daemon that is there and does not manage to serve: it has too much to do already."""
SPREAD = 0.25
"""Seconds over which sessions that are told to move at the same moment do so."""
SILENT_INTERVALS_MAX = 30
"""Keepalive intervals that a daemon may be silent at most, after it was silent for too long several times."""


class SessionObserver(Protocol):
    """Hears what happens in a session; must not raise."""

    def registered(self, hello: Hello) -> None:
        """The daemon has taken the intercept under this name; again after each interruption."""

    def event(self, event: AnyEvent) -> None:
        """The daemon says what it sees."""

    def interrupted(self, reason: str) -> None:
        """The tunnel is gone; the session tries to come back."""

    def handler_refused(self, opening: StreamOpening, reason: str) -> None:
        """A diverted connection found no handler; the daemon has been told."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a session ended: stopped here (both None), ended by the daemon, or by an error of the tunnel."""

    ended: Ended | None = None
    error: SidestepError | None = None


class Session:
    """One session. `stop` may be called at any time, from the same event loop."""

    def __init__(self, *, client: LocalClient, spec: SessionSpec, handler: Handler, observer: SessionObserver) -> None:
        self._client = client
        self._spec = spec
        self._handler = handler
        self._observer = observer
        self._current: _Tunnel | None = None
        self._limits = DEFAULT_LIMITS
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        """End the session in an orderly way; `run` then returns."""
        self._stopped.set()

    async def run(self) -> Outcome:
        """Register, serve, come back after interruptions; return how it ended.

        Raises UnreachableError, RefusedError or PeerError when the session could not begin, RefusedError also when it
        could not come back.
        """
        async with Tasks("session") as tasks:
            stopping = tasks.start(self._stopped.wait(), name="stop")
            keeping = asyncio.create_task(self._keep(tasks), name="session: keep")
            try:
                either: set[asyncio.Task[Any]] = {keeping, stopping}
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            finally:
                keeping.cancel()
                await asyncio.wait({keeping})
            return Outcome() if keeping.cancelled() else keeping.result()

    async def _keep(self, tasks: Tasks) -> Outcome:
        absent, busy = Retry(FIRST_PAUSE, LAST_PAUSE), Retry(FIRST_PAUSE, LAST_BUSY_PAUSE)
        while True:
            retry = busy
            tunnel = self._current = _Tunnel(self)
            try:
                await tunnel.connect(self._client, self._spec)
            except UnreachableError:
                if not self._spec.resume:
                    raise
                retry = absent
            except PeerError:
                if not self._spec.resume:
                    raise
            else:
                serving = tasks.start(tunnel.run(), name="tunnel")
                await tunnel.left.wait()
                if tunnel.hello is None or tunnel.ended is not None or tunnel.refusal is not None:
                    error = await serving
                    if tunnel.refusal is not None or (tunnel.hello is None and not self._spec.resume):
                        return Outcome(error=tunnel.refusal or error)
                    if tunnel.ended is not None and not tunnel.ended.failed:
                        return Outcome(ended=tunnel.ended)
                if tunnel.hello is not None:
                    self._interrupted(tunnel, absent, busy)
                    if tunnel.moving is not None:
                        await asyncio.sleep(random.uniform(0.0, SPREAD))  # noqa: S311 - jitter, no secret
                        continue
            await asyncio.sleep(retry.pause())

    def _interrupted(self, tunnel: _Tunnel, absent: Retry, busy: Retry) -> None:
        """A tunnel that was greeted is left: remember what the intercept is, and be more patient after a silence."""
        assert tunnel.hello is not None  # noqa: S101 - as it says
        for each in (absent, busy):
            each.succeeded(lived=tunnel.lived)
        if tunnel.moving is None and tunnel.silent:
            patient = min(2 * self._limits.silent_intervals, SILENT_INTERVALS_MAX)
            self._limits = replace(self._limits, silent_intervals=patient)
        self._spec = _resuming(self._spec, tunnel.hello)
        self._observer.interrupted(tunnel.reason)

    @property
    def limits(self) -> TunnelLimits:
        """Bounds of the next tunnel."""
        return self._limits

    # --- what a tunnel says -----------------------------------------------------------------------------------------

    def on_hello(self, hello: Hello) -> None:
        """A tunnel was greeted."""
        if hello.name:
            self._handler.intercept = f"{hello.namespace}/{hello.name}"
        self._observer.registered(hello)

    def on_event(self, tunnel: _Tunnel, event: AnyEvent) -> None:
        """An event came; what a tunnel that is left says of its pods is of no interest any more."""
        if isinstance(event, Moving) or (tunnel is not self._current and isinstance(event, State | Ended)):
            return
        if isinstance(event, Ended) and event.failed:
            return
        self._observer.event(event)

    async def dial(self, opening: StreamOpening) -> Channel:
        """Connect to the handler. Raises RefusedError."""
        try:
            return await self._handler.dial(opening)
        except RefusedError as error:
            self._observer.handler_refused(opening, str(error))
            raise


class _Tunnel:
    """One connection to a daemon. `left` is set once the session should look for another."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._end = CliEnd(dial=session.dial, on_hello=self._on_hello, on_event=self._on_event, limits=session.limits)
        self._greeted_at = 0.0
        self.hello: Hello | None = None
        self.ended: Ended | None = None
        self.moving: Moving | None = None
        self.refusal: SidestepError | None = None
        self.reason = "the node daemon is gone"
        self.lived = 0.0
        """Seconds from the hello until it was left."""
        self.silent = False
        """It was given up because the daemon said nothing for too long."""
        self.left = asyncio.Event()

    async def connect(self, client: LocalClient, spec: SessionSpec) -> None:
        """Register. Raises UnreachableError, RefusedError, PeerError."""
        try:
            await client.upgrade("/v1/sessions", encode(spec), self._end.connection)
        except BaseException:
            await self._close()
            raise

    async def run(self) -> SidestepError | None:
        """Serve until the connection ends; returns its error."""
        try:
            error = await self._end.run()
            if error is not None:
                self.reason = str(error)
            self.silent = isinstance(error, TunnelSilentError)
            return error
        finally:
            self._leave()
            await self._close()

    async def _close(self) -> None:
        self._end.connection.close()
        await self._end.connection.wait_closed()

    def _on_hello(self, hello: Hello) -> None:
        if hello.version != VERSION:
            text = f"the node daemon speaks version {hello.version} of the tunnel, this command {VERSION}"
            self.refusal = RefusedError(f"{text}; use the sidestep command that belongs to the daemon")
            self._end.connection.close()
            return
        self.hello = hello
        self._greeted_at = asyncio.get_running_loop().time()
        self._session.on_hello(hello)

    def _on_event(self, event: AnyEvent) -> None:
        self._session.on_event(self, event)
        match event:
            case Ended():
                self.ended = event
                self.reason = event.reason
            case Moving():
                self.moving = event
                self.reason = event.reason
                self._leave()

    def _leave(self) -> None:
        if self.hello is not None and not self.left.is_set():
            self.lived = asyncio.get_running_loop().time() - self._greeted_at
        self.left.set()


def _resuming(spec: SessionSpec, hello: Hello) -> SessionSpec:
    """The same wish, for the intercept that it has become."""
    return msgspec.structs.replace(spec, name=hello.name, resume=hello.intercept, created=hello.created)
