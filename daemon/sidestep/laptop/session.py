"""A session in local mode: requests an intercept from the daemon, then serves its tunnel until the session ends.

The session consists of its connection to the daemon: closing it ends the intercept, whatever happens to this process.
Events go to a `SessionObserver`; the command line presents them.

A broken tunnel (the daemon was killed, restarted, upgraded, or drains) does not end the session. It registers again as
soon as a daemon answers, with its previous name, uid and start time, and thus continues the same intercept for
`status`, for `leave` and in the order of intercepts. Meanwhile requests go to the app. Where no daemon runs, the
session retries about once a second. A daemon that runs but fails to serve is retried at growing intervals, because it
is overloaded.

A session ends by `stop`, by a `leave`, or by a refusal, as when its name was taken meanwhile. A draining daemon sends
`Moving`; the old tunnel then serves its remaining connections beside the new one.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any, Protocol

import msgspec

from sidestep.aio.tasks import Tasks
from sidestep.laptop.handler import Handler
from sidestep.laptop.local_client import LocalClient, UnreachableError
from sidestep.laptop.retry import Retry
from sidestep.model.errors import PeerError, RefusedError, SidestepError
from sidestep.tunnel.access import AccessClient
from sidestep.tunnel.channel import Channel
from sidestep.tunnel.cli_end import CliEnd
from sidestep.tunnel.errors import TunnelSilentError
from sidestep.tunnel.limits import DEFAULT_LIMITS, TunnelLimits
from sidestep.tunnel.messages import AnyEvent, Ended, Hello, Moving, SessionSpec, State, encode
from sidestep.tunnel.opening import StreamOpening
from sidestep.tunnel.versions import difference

FIRST_PAUSE = 0.25
LAST_PAUSE = 1.0
"""Seconds. The pause before registering again starts at FIRST_PAUSE and doubles up to LAST_PAUSE: an intercept resumes
within two seconds of the start of a daemon."""
LAST_BUSY_PAUSE = 15.0
"""Seconds. Maximum for a daemon that runs but fails to serve, because it is overloaded."""
SPREAD = 0.25
"""Jitter, in seconds, for sessions that are told to move at the same moment."""


class SessionObserver(Protocol):
    """Receives the events of a session. Must not raise."""

    def registered(self, hello: Hello) -> None:
        """The daemon has accepted the intercept under this name. Called again after each interruption."""

    def event(self, event: AnyEvent) -> None:
        """The daemon has sent an event."""

    def interrupted(self, reason: str) -> None:
        """The tunnel has ended; the session tries to register again."""

    def handler_refused(self, opening: StreamOpening, reason: str) -> None:
        """A diverted connection found no handler; the daemon was told."""

    def note(self, text: str) -> None:
        """Something that is good to know, and said once."""


class Outcome(msgspec.Struct, frozen=True):
    """How a session ended: by `stop` (both None), by the daemon, or by an error of the tunnel."""

    ended: Ended | None = None
    error: SidestepError | None = None


class Session:
    """One session in local mode. `stop` may be called at any time, from the same event loop."""

    def __init__(self, *, client: LocalClient, spec: SessionSpec, handler: Handler, observer: SessionObserver) -> None:
        self._client = client
        self._spec = spec
        self._handler = handler
        self._observer = observer
        self._current: _Tunnel | None = None
        self._limits = DEFAULT_LIMITS
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        """End the session in order; `run` then returns."""
        self._stopped.set()

    async def run(self) -> Outcome:
        """Register, serve, register again after interruptions; returns how the session ended.

        Raises UnreachableError, RefusedError or PeerError when the session could not begin, RefusedError also when it
        could not resume.
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
        """Leave a tunnel that was greeted: keep the intercept's identity, and allow longer silences after a silence."""
        assert tunnel.hello is not None  # noqa: S101 - a greeted tunnel has a hello
        for each in (absent, busy):
            each.succeeded(lived=tunnel.lived)
        if tunnel.moving is None and tunnel.silent:
            self._limits = self._limits.after_silence()
        self._spec = _resuming(self._spec, tunnel.hello)
        self._observer.interrupted(tunnel.reason)

    @property
    def limits(self) -> TunnelLimits:
        """Limits for the next tunnel."""
        return self._limits

    # --- events of a tunnel
    # ---------------------------------------------------------------------------------------------

    def on_hello(self, hello: Hello) -> None:
        """A tunnel was greeted."""
        if hello.name:
            self._handler.intercept = f"{hello.namespace}/{hello.name}"
        self._observer.registered(hello)
        if note := difference(hello.software):
            self._observer.note(note)

    def on_event(self, tunnel: _Tunnel, event: AnyEvent) -> None:
        """An event has arrived. Pod states of an abandoned tunnel are ignored."""
        if isinstance(event, Moving) or (tunnel is not self._current and isinstance(event, State | Ended)):
            return
        if isinstance(event, Ended) and event.failed:
            return
        self._observer.event(event)

    @property
    def access(self) -> AccessClient | None:
        """What uses the pods' world; None where nothing does."""
        return self._handler.access

    async def hear(self) -> Channel:
        """Return what takes records. Raises RefusedError."""
        return await self._handler.hear()

    async def dial(self, opening: StreamOpening) -> Channel:
        """Connect to the handler. Raises RefusedError."""
        try:
            return await self._handler.dial(opening)
        except RefusedError as error:
            self._observer.handler_refused(opening, str(error))
            raise


class _Tunnel:
    """One connection to a daemon. `left` is set when the session should look for another."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._end = CliEnd(
            dial=session.dial,
            hear=session.hear,
            access=session.access,
            on_hello=self._on_hello,
            on_event=self._on_event,
            limits=session.limits,
        )
        self._greeted_at = 0.0
        self.hello: Hello | None = None
        self.ended: Ended | None = None
        self.moving: Moving | None = None
        self.reason = "the node daemon is gone"
        self.lived = 0.0
        """Seconds from the hello until the tunnel was left."""
        self.silent = False
        """Whether the tunnel was given up because the daemon was silent."""
        self.left = asyncio.Event()

    @property
    def refusal(self) -> SidestepError | None:
        """Why this end does not serve this daemon."""
        return self._end.refusal

    async def connect(self, client: LocalClient, spec: SessionSpec) -> None:
        """Register with the daemon. Raises UnreachableError, RefusedError, PeerError."""
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
    """Return the spec that resumes the intercept of this hello."""
    return msgspec.structs.replace(spec, name=hello.name, resume=hello.intercept, created=hello.created)
