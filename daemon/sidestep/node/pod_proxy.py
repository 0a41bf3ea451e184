"""One pod proxy kept alive: its desired state, and an incarnation that has been told of it.

Methods change the *desired* state and return once a living process has acknowledged it. When the process crashes, hangs
or stops answering, the next one is started within milliseconds and told the whole desired state again; the listeners
are the daemon's, so clients wait in their accept queues meanwhile. Keys are not kept: a `CredentialSource` is asked
each time.

A crash loop makes the state FAILED: `on_state` lets the reconciler unsteer. Tries go on rarely; the next success makes
the state RUNNING again.

What a proxy says is not trusted beyond its own pod: it may ask for streams of, and report requests for, the rules of
its own configuration only, and `heard` bounds what it says.
"""

from __future__ import annotations

import asyncio
import enum
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from sidestep.aio.channel import DeadlineError
from sidestep.aio.packets import ChannelClosed
from sidestep.aio.tasks import Tasks
from sidestep.model.errors import BugError, PeerError, RefusedError, SidestepError
from sidestep.node import heard
from sidestep.node.backoff import Backoff, CrashHistory
from sidestep.node.desired import CredentialSource, Desired, ProxyError, Told, rule_uids, tell_difference
from sidestep.node.incarnation import Abode, Incarnation, ProxyLimits
from sidestep.node.zygote import Zygote
from sidestep.proxy import messages
from sidestep.proxy.messages import (
    Configure,
    ForgetClient,
    FromProxy,
    Heartbeat,
    NameClient,
    NoApp,
    Open,
    PortSnapshot,
    Probed,
    Report,
    Requests,
    Reset,
)

_MAX_OPENING = 1024
"""Streams of one proxy that may be waiting for their handler at once."""


class ProxyState(enum.Enum):
    """What `on_state` reports."""

    RUNNING = "running"
    RESTARTING = "restarting"
    FAILED = "failed"
    STOPPED = "stopped"


class ProxyHandler(Protocol):
    """The pod's owner, called in the event loop. The `on_` functions return at once and do not raise."""

    async def open_stream(self, request: Open, /) -> socket.socket:
        """Return one end of a stream socketpair to the handler; RefusedError (or any SidestepError) says why not."""

    def on_reset(self, message: Reset, /) -> None:
        """The connection of an earlier `open_stream` is to break for its handler."""

    def on_requests(self, requests: Requests, /) -> None:
        """Take log lines."""

    def on_report(self, report: Report, /) -> None:
        """Take a condition."""

    def on_name_client(self, message: NameClient, /) -> None:
        """Name a connection that the proxy is about to make. May raise SidestepError: the proxy is told."""

    def on_forget_client(self, message: ForgetClient, /) -> None:
        """A named connection is over. May raise SidestepError."""

    def on_probed(self, probed: Probed, /) -> None:
        """Learn what a probe of the app found."""

    def on_no_app(self, no_app: NoApp, /) -> None:
        """Learn that nothing listens behind a port."""

    def on_heartbeat(self, beat: Heartbeat, /) -> None:
        """Take the counters of the present process; they begin anew with each."""

    def on_state(self, state: ProxyState, reason: str, /) -> None:
        """Learn that the state has changed."""

    def on_credentials(self, failures: Mapping[str, str], /) -> None:
        """Learn which credentials a *replay* could not use, and why (`apply` returns its own)."""


@dataclass(frozen=True, slots=True)
class SupervisorSettings:
    """Limits and deadlines of all pod proxies (seconds)."""

    limits: ProxyLimits = field(default_factory=ProxyLimits)
    backoff: Backoff = field(default_factory=Backoff)
    open_deadline: float = 10.0
    """For a handler to be connected; below the proxy's own."""
    source_deadline: float = 10.0
    """For a credential source."""
    settle_deadline: float = 20.0
    """For `apply`, `listen`, `unlisten`, restarts of the process included."""


class PodProxy:
    """The proxy of one target pod. Make it with `ProxySupervisor.proxy`, then `await start()`; end it with `aclose`."""

    def __init__(self, zygote: Zygote, abode: Abode, handler: ProxyHandler, settings: SupervisorSettings) -> None:
        self._zygote = zygote
        self._abode = abode
        self._handler = handler
        self._settings = settings
        self._history = CrashHistory(settings.backoff)
        self._tasks = Tasks(f"pod proxy {abode.name}", on_crash=self._broken)
        self._desired = Desired()
        self._telling = asyncio.Lock()
        self._life: Incarnation | None = None
        self._state = ProxyState.STOPPED
        self._turn = asyncio.Event()
        self._opening = 0
        self._uids: tuple[frozenset[str], frozenset[str]] = (frozenset(), frozenset())
        self._ports: frozenset[int] = frozenset()
        self._started = False
        self._stopping = False
        self.restarts = 0

    @property
    def name(self) -> str:
        """The pod's name, as given."""
        return self._abode.name

    @property
    def state(self) -> ProxyState:
        """The present state."""
        return self._state

    @property
    def pid(self) -> int | None:
        """The present process, for `status`."""
        return None if self._life is None else self._life.process.pid

    async def start(self) -> None:
        """Start the first process; once. Raises SidestepError when it cannot be started, and nothing is left then."""
        if self._started:
            raise BugError(f"the pod proxy {self.name} was started twice")
        self._started = True
        life = await self._begin()
        if self._stopping:
            life.kill("it was stopped")
            await life.ended()
            raise ChannelClosed(f"the pod proxy {self.name} was stopped")
        self._life = life
        self._set_state(ProxyState.RUNNING, "started")
        self._tasks.start(self._keep_alive(life), name="keep alive")

    async def apply(
        self,
        credentials: Mapping[str, CredentialSource],
        *,
        generation: int,
        ports: tuple[PortSnapshot, ...],
        detection_timeout: float = 1.0,
        drain_timeout: float = 30.0,
        client_sources: str = "",
    ) -> Mapping[str, str]:
        """Make this the configuration; returns why credentials could not be used, by name (empty: all are).

        Ports whose credentials failed are served without interception. Raises SidestepError when no process can be
        told (the state is FAILED or STOPPED, the deadline passed); the desired state stays, and is told when one can.
        """
        configuration = Configure(
            0,
            generation=generation,
            ports=ports,
            detection_timeout=detection_timeout,
            drain_timeout=drain_timeout,
            client_sources=client_sources,
        )
        self._uids = (rule_uids(ports), self._uids[0])
        self._ports = frozenset(port.number for port in ports)
        self._desired.credentials = dict(credentials)
        self._desired.configuration = configuration
        told = await self._settle()
        return dict(told.failures)

    async def listen(self, port: int, transport: str, sock: socket.socket) -> None:
        """Accept on this listener for a port. It stays the caller's and stays open until `unlisten` or the end.

        Raises SidestepError like `apply`; when the proxy refuses it (ProxyError), it is as if it had not been asked.
        """
        key = (port, transport)
        if self._desired.listeners.get(key, sock) is not sock:
            raise BugError(f"port {port}/{transport} of {self.name} has another listener")
        self._desired.listeners[key] = sock
        try:
            await self._settle()
        except ProxyError:
            self._desired.listeners.pop(key, None)
            raise

    async def unlisten(self, port: int, transport: str) -> None:
        """Stop accepting for a port, after the queue is empty. Raises SidestepError like `apply`."""
        if self._desired.listeners.pop((port, transport), None) is not None:
            await self._settle()

    async def drain(self, timeout: float) -> None:  # noqa: ASYNC109 - part of the protocol: the proxy gets it, too
        """Stop accepting, let what is in flight finish within `timeout` seconds, and end. Returns when it is gone."""
        self._stopping = True
        life = self._life
        if life is not None:
            try:
                await life.tell(messages.Drain(0, timeout), doing="drain")
                async with asyncio.timeout(timeout + 1.0):
                    await life.ended()
            except (TimeoutError, SidestepError):
                pass  # It is killed below.
        await self.aclose()

    def kill(self) -> None:
        """End the process now, for good; `aclose` waits for that."""
        self._stopping = True
        if self._life is not None:
            self._life.kill("it was stopped")
        self._tasks.cancel()

    async def aclose(self) -> None:
        """End the process now and wait until it is gone. Closing twice is the same as once."""
        self.kill()
        await self._tasks.aclose()
        if self._life is not None:
            await self._life.ended()
            self._life = None
        self._desired = Desired()
        self._set_state(ProxyState.STOPPED, "stopped")

    def watch(self, elapsed: float) -> None:
        """Look for the heartbeat; called by the supervisor."""
        if self._life is not None:
            self._life.watch(elapsed)

    # --- lives ---

    async def _begin(self) -> Incarnation:
        return await Incarnation.begin(
            self._zygote, self._abode, limits=self._settings.limits, on_message=self._received
        )

    async def _keep_alive(self, life: Incarnation) -> None:
        loop = asyncio.get_running_loop()
        while True:
            reason = await life.ended()
            self._life = None
            if self._stopping:
                return
            lived = loop.time() - life.began
            while True:
                verdict = self._history.crashed(loop.time(), lived=lived)
                state = ProxyState.FAILED if verdict.looping else ProxyState.RESTARTING
                self._set_state(state, reason)
                await asyncio.sleep(verdict.pause)
                lived = 0.0
                try:
                    life = await self._resume()
                    break
                except SidestepError as error:
                    reason = str(error)
            self.restarts += 1
            self._life = life
            self._set_state(ProxyState.RUNNING, f"restarted ({reason})")

    async def _resume(self) -> Incarnation:
        """Start a process and tell it everything."""
        life = await self._begin()
        try:
            await self._tell(life)
        except BaseException:
            life.kill("it could not be told its state")
            await life.ended()
            raise
        if life.told.failures:
            self._handler.on_credentials(dict(life.told.failures))
        return life

    def _set_state(self, state: ProxyState, reason: str) -> None:
        if state is not self._state:
            self._state = state
            self._turn.set()
            self._turn = asyncio.Event()
            self._handler.on_state(state, reason)

    def _broken(self, task: str, error: BaseException) -> None:
        """One of our own tasks crashed: release the pod, and let the event loop report the bug."""
        self._stopping = True
        if self._life is not None:
            self._life.kill(f"the daemon's {task} crashed")
        self._set_state(ProxyState.FAILED, f"a bug: {error!r}")
        asyncio.get_running_loop().call_exception_handler({"message": f"{task} crashed", "exception": error})

    # --- desired and told ---

    async def _settle(self) -> Told:
        """Return when the present process, or the one after it, has been told the desired state."""
        try:
            async with asyncio.timeout(self._settings.settle_deadline):
                while True:
                    life = await self._running()
                    try:
                        await self._tell(life)
                    except (ChannelClosed, DeadlineError):
                        await life.ended()
                        await asyncio.sleep(0)  # Let `_keep_alive` see it first.
                    else:
                        return life.told
        except TimeoutError as error:
            raise DeadlineError(f"telling the pod proxy {self.name}", self._settings.settle_deadline) from error

    async def _running(self) -> Incarnation:
        while self._life is None or self._state is not ProxyState.RUNNING:
            if self._stopping or self._state in (ProxyState.FAILED, ProxyState.STOPPED):
                raise ChannelClosed(f"the pod proxy {self.name} is {self._state.value}")
            await self._turn.wait()
        return self._life

    async def _tell(self, life: Incarnation) -> None:
        async with self._telling:
            await tell_difference(life, self._desired, life.told, source_deadline=self._settings.source_deadline)

    # --- what the proxy says ---

    def _received(self, life: Incarnation, message: FromProxy) -> None:
        match message:
            case Heartbeat():
                self._handler.on_heartbeat(heard.heartbeat(message, ports=self._ports))
            case Open():
                self._open(life, message)
            case Reset():
                self._handler.on_reset(message)
            case Requests():
                self._handler.on_requests(heard.requests(message, uids=self._uids[0] | self._uids[1]))
            case Report():
                self._handler.on_report(message)
            case NameClient():
                self._handler.on_name_client(message)
            case ForgetClient():
                self._handler.on_forget_client(message)
            case Probed():
                self._handler.on_probed(heard.probed(message))
            case NoApp():
                self._handler.on_no_app(message)
            case _:
                raise PeerError(f"a pod proxy does not send {type(message).__name__}")

    def _open(self, life: Incarnation, request: Open) -> None:
        if self._stopping:
            raise RefusedError("the pod proxy is being stopped")
        if self._opening >= _MAX_OPENING:
            raise RefusedError("too many connections are waiting for their handlers")
        self._opening += 1
        self._tasks.start(self._answer_open(life, request), name=f"open {request.stream}")

    async def _answer_open(self, life: Incarnation, request: Open) -> None:
        sock: socket.socket | None = None
        reason = ""
        try:
            if request.uid not in self._uids[0]:
                raise RefusedError("the intercept is not on this pod any more")
            async with asyncio.timeout(self._settings.open_deadline):
                sock = await self._handler.open_stream(request)
        except TimeoutError:
            reason = f"the handler did not answer within {self._settings.open_deadline:g} s"
        except SidestepError as error:
            reason = str(error)
        finally:
            self._opening -= 1
        try:
            if sock is None:
                await life.tell(messages.Refused(0, request.stream, reason), doing="take a refusal")
            else:
                await life.tell(messages.Opened(0, request.stream), sock.fileno(), doing="take a stream")
        except SidestepError:
            pass  # The process is gone, or has given the stream up; closing our end tells the handler.
        finally:
            if sock is not None:
                sock.close()
