"""Keeps one pod proxy alive: holds its desired state and the process that has been told of it.

Methods change the *desired* state and return once a living process has acknowledged it. When the process crashes, hangs
or stops answering, the next one is started within milliseconds and told the whole desired state; the listeners belong
to the daemon, so clients wait in their accept queues meanwhile. No key is kept here: a `CredentialSource` is read each
time.

A crash loop makes the state FAILED, and the target unsteers its ports. Starts are then tried rarely; the first that
succeeds makes the state RUNNING again.

`ProxyDispatcher` handles what the proxy sends.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

from sidestep.aio.channel import DeadlineError
from sidestep.aio.packets import ChannelClosed
from sidestep.aio.patience import patience
from sidestep.aio.tasks import Tasks
from sidestep.aio.time_limit import time_limit
from sidestep.model.errors import BugError, SidestepError
from sidestep.node.proxies.backoff import Backoff, CrashHistory
from sidestep.node.proxies.desired import Acknowledged, CredentialSource, Desired, DestinationTable, tell_difference
from sidestep.node.proxies.dials import Dialled
from sidestep.node.proxies.dispatcher import ProxyDispatcher
from sidestep.node.proxies.memory_cgroups import MemoryCgroups
from sidestep.node.proxies.proxy_handler import ProxyHandler, ProxyState
from sidestep.node.proxies.proxy_process import Placement, ProxyLimits, ProxyProcess
from sidestep.node.proxies.zygote import Zygote
from sidestep.proxy.control import messages
from sidestep.proxy.control.messages import OUTBOUND, OUTBOUND_TRANSPORT, Configure, Dial, UseNetwork
from sidestep.snapshots.egress import EgressSnapshot
from sidestep.snapshots.ports import PortSnapshot


@dataclass(frozen=True, slots=True)
class SupervisorSettings:
    """Limits and deadlines of all pod proxies (seconds)."""

    limits: ProxyLimits = field(default_factory=ProxyLimits)
    backoff: Backoff = field(default_factory=Backoff)
    open_deadline: float = 10.0
    """For a handler to be connected; below the proxy's own."""
    source_deadline: float = 15.0
    """For a credential source."""
    dial_deadline: float = 30.0
    """For a connection from the pod to be made; above the proxy's own (`proxy.access.connecting`)."""
    apply_deadline: float = 20.0
    """For `apply`, `listen`, `unlisten`, restarts of the process included."""
    cgroups: MemoryCgroups | None = None
    """Where processes get memory cgroups; the supervisor's to close."""


class PodProxy:
    """The proxy of one target pod. Make it with `ProxySupervisor.proxy`, then `await start()`; end it with `aclose`."""

    def __init__(
        self, zygote: Zygote, placement: Placement, handler: ProxyHandler, settings: SupervisorSettings
    ) -> None:
        self._zygote = zygote
        self._placement = placement
        self._handler = handler
        self._settings = settings
        self._history = CrashHistory(settings.backoff)
        self._tasks = Tasks(f"pod proxy {placement.name}", on_crash=self._broken)
        self._desired = Desired()
        self._telling = asyncio.Lock()
        self._process: ProxyProcess | None = None
        self._state = ProxyState.STOPPED
        self._turn = asyncio.Event()
        self._dispatcher = ProxyDispatcher(handler, tasks=self._tasks, open_deadline=settings.open_deadline)
        self._dials = self._dispatcher.dials
        self._dialling = asyncio.Lock()
        self._started = False
        self._stopping = False
        self.broken = False
        """It has met a bug of its own and is of no use any more."""
        self.restarts = 0

    @property
    def name(self) -> str:
        """The pod's name, as given."""
        return self._placement.name

    @property
    def state(self) -> ProxyState:
        """The present state."""
        return self._state

    @property
    def pid(self) -> int | None:
        """The present process, for `status`."""
        return None if self._process is None else self._process.process.pid

    @property
    def quiet(self) -> float:
        """Seconds since the last sign of life of the present process."""
        return 0.0 if self._process is None else self._process.quiet

    async def start(self) -> None:
        """Start the first process; once. Raises SidestepError when it cannot be started, and nothing is left then."""
        if self._started:
            raise BugError(f"the pod proxy {self.name} was started twice")
        self._started = True
        process = await self._begin()
        if self._stopping:
            process.kill("it was stopped")
            await process.ended()
            raise ChannelClosed(f"the pod proxy {self.name} was stopped")
        self._process = process
        self._set_state(ProxyState.RUNNING, "started")
        self._tasks.start(self._keep_alive(process), name="keep alive")

    async def apply(
        self,
        credentials: Mapping[str, CredentialSource],
        *,
        generation: int,
        ports: tuple[PortSnapshot, ...],
        drain_timeout: float = 30.0,
        client_sources: str = "",
        records: bool = False,
        egress: tuple[EgressSnapshot, ...] = (),
        outbound: PortSnapshot | None = None,
    ) -> Mapping[str, str]:
        """Make this the configuration; returns why credentials could not be used, by name (empty: all are).

        Ports whose credentials failed are served without interception. Raises SidestepError when no process can be
        told (the state is FAILED or STOPPED, the deadline passed); the desired state stays, and is told when one can.
        """
        configuration = Configure(
            0,
            generation=generation,
            ports=ports,
            drain_timeout=drain_timeout,
            client_sources=client_sources,
            records=records,
            egress=egress,
            outbound=outbound,
        )
        self._dispatcher.allow(ports, egress, outbound)
        self._desired.credentials = dict(credentials)
        self._desired.configuration = configuration
        told = await self._tell_current()
        return dict(told.failures)

    async def listen(self, port: int, transport: str, sock: socket.socket) -> None:
        """Accept on this listener for a port. It stays the caller's and stays open until `unlisten` or the end.

        Raises SidestepError like `apply`. Then it is as if it had not been asked, for the caller closes the listener,
        and a closed one could be told to no process: the next would not come to process.
        """
        key = (port, transport)
        if self._desired.listeners.get(key, sock) is not sock:
            raise BugError(f"port {port}/{transport} of {self.name} has another listener")
        self._desired.listeners[key] = sock
        try:
            await self._tell_current()
        except BaseException:
            self._desired.listeners.pop(key, None)
            raise

    async def unlisten(self, port: int, transport: str) -> None:
        """Stop accepting for a port, after the queue is empty. Raises SidestepError like `apply`."""
        if self._desired.listeners.pop((port, transport), None) is not None:
            await self._tell_current()

    async def listen_outbound(self, table: DestinationTable, sock: socket.socket) -> None:
        """Accept connections that the pod makes on this listener, as `listen`; the table says where they were to go."""
        self._desired.table = table
        try:
            await self.listen(OUTBOUND, OUTBOUND_TRANSPORT, sock)
        except BaseException:
            self._desired.table = None
            raise

    async def unlisten_outbound(self) -> None:
        """Stop accepting them, as `unlisten`."""
        self._desired.table = None
        await self.unlisten(OUTBOUND, OUTBOUND_TRANSPORT)

    async def dial(self, dial: Dial, network: UseNetwork) -> Dialled:
        """Have the process make a connection from the pod; returns a stream socket for its bytes, or capsules.

        It is no part of the desired state: the connection ends with the process. Closing the socket ends it, too.
        Raises SidestepError: RefusedError with the process's own reason.
        """
        try:
            async with patience(self._settings.dial_deadline, of=lambda: self.pid):
                process = await self._running()
                async with self._dialling:
                    if process.told.network != network:
                        process.told.network = None  # until it has taken it: this caller may give up meanwhile
                        await process.tell(network, doing="take what connections from the pod need")
                        process.told.network = network
                return await self._dials.make(process, dial)
        except TimeoutError as error:
            raise DeadlineError(f"connecting from {self.name}", self._settings.dial_deadline) from error

    async def feed_ids(self, fd: int) -> None:
        """Have the present process feed an IDS through this pipe, which stays the caller's. Raises SidestepError.

        It is no part of the desired state: an IDS ends with the process that feeds it.
        """
        await self._hand(messages.FeedIds(0), fd, doing="feed an IDS")

    async def use_inspector(self, fd: int) -> None:
        """The same for the socket of an inspector, which it asks about requests from then on."""
        await self._hand(messages.UseInspector(0), fd, doing="use an inspector")

    async def _hand(self, message: messages.ToProxy, fd: int, *, doing: str) -> None:
        deadline = self._settings.apply_deadline
        try:
            async with patience(deadline, of=lambda: self.pid):
                process = await self._running()
                async with self._telling:
                    await process.tell(message, fd, doing=doing)
        except TimeoutError as error:
            raise DeadlineError(f"having {self.name} {doing}", deadline) from error

    async def drain(self, timeout: float) -> None:  # noqa: ASYNC109 - part of the protocol: the proxy gets it, too
        """Stop accepting, let what is in flight finish within `timeout` seconds, and end. Returns when it is gone."""
        self._stopping = self._dispatcher.closed = True
        process = self._process
        if process is not None:
            try:
                await process.tell(messages.Drain(0, timeout), doing="drain")
                async with time_limit(timeout + 1.0):
                    await process.ended()
            except (TimeoutError, SidestepError):
                pass  # It is killed below.
        await self.aclose()

    def kill(self) -> None:
        """End the process now, for good; `aclose` waits for that."""
        self._stopping = self._dispatcher.closed = True
        if self._process is not None:
            self._process.kill("it was stopped")
        self._tasks.cancel()

    async def aclose(self) -> None:
        """End the process now and wait until it is gone. Closing twice is the same as once."""
        self.kill()
        await self._tasks.aclose()
        if self._process is not None:
            await self._process.ended()
            self._process = None
        self._desired = Desired()
        self._set_state(ProxyState.STOPPED, "stopped")

    def watch(self, elapsed: float) -> None:
        """Look for the heartbeat; called by the supervisor."""
        if self._process is not None:
            self._process.watch(elapsed)

    # --- processes ---

    async def _begin(self) -> ProxyProcess:
        return await ProxyProcess.begin(
            self._zygote,
            self._placement,
            limits=self._settings.limits,
            on_message=self._dispatcher.received,
            cgroups=self._settings.cgroups,
        )

    async def _keep_alive(self, process: ProxyProcess) -> None:
        loop = asyncio.get_running_loop()
        while True:
            reason = await process.ended()
            self._process = None
            self._dials.process_ended()
            if self._stopping:
                return
            lived = loop.time() - process.began
            while True:
                verdict = self._history.crashed(loop.time(), lived=lived)
                state = ProxyState.FAILED if verdict.looping else ProxyState.RESTARTING
                self._set_state(state, reason)
                await asyncio.sleep(verdict.pause)
                lived = 0.0
                try:
                    process = await self._resume()
                    break
                except SidestepError as error:
                    reason = str(error)
            self.restarts += 1
            self._process = process
            self._set_state(ProxyState.RUNNING, f"restarted ({reason})")

    async def _resume(self) -> ProxyProcess:
        """Start a process and tell it everything."""
        process = await self._begin()
        try:
            await self._tell(process)
        except BaseException:
            process.kill("it could not be told its state")
            await process.ended()
            raise
        if process.told.failures:
            self._handler.on_credentials(dict(process.told.failures))
        return process

    def _set_state(self, state: ProxyState, reason: str) -> None:
        if state is not self._state:
            self._state = state
            self._turn.set()
            self._turn = asyncio.Event()
            self._handler.on_state(state, reason)

    def _broken(self, task: str, error: BaseException) -> None:
        """One of our own tasks crashed: the owner makes another one; let the event loop report the bug."""
        self.broken = True
        self._stopping = self._dispatcher.closed = True
        if self._process is not None:
            self._process.kill(f"the daemon's {task} crashed")
        self._set_state(ProxyState.FAILED, f"a bug: {error!r}")
        asyncio.get_running_loop().call_exception_handler({"message": f"{task} crashed", "exception": error})

    # --- desired and told ---

    async def _tell_current(self) -> Acknowledged:
        """Return when the present process, or the one after it, has been told the desired state."""
        try:
            async with patience(self._settings.apply_deadline, of=lambda: self.pid):
                while True:
                    process = await self._running()
                    try:
                        await self._tell(process)
                    except (ChannelClosed, DeadlineError):
                        await process.ended()
                        await asyncio.sleep(0)  # Let `_keep_alive` see it first.
                    else:
                        return process.told
        except TimeoutError as error:
            raise DeadlineError(f"telling the pod proxy {self.name}", self._settings.apply_deadline) from error

    async def _running(self) -> ProxyProcess:
        while self._process is None or self._state is not ProxyState.RUNNING:
            if self._stopping or self._state in (ProxyState.FAILED, ProxyState.STOPPED):
                raise ChannelClosed(f"the pod proxy {self.name} is {self._state.value}")
            await self._turn.wait()
        return self._process

    async def _tell(self, process: ProxyProcess) -> None:
        async with self._telling:
            await tell_difference(process, self._desired, process.told, source_deadline=self._settings.source_deadline)
