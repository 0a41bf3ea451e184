"""Keeps one pod proxy alive: holds its desired state and the workers that have been told of it.

Methods change the *desired* state and return once the living processes have acknowledged it. When a process crashes,
hangs or stops answering, `ProxyWorker` starts the next one within milliseconds and tells it the whole desired state;
the listeners belong to the daemon, so clients wait in their accept queues meanwhile. No key is kept here: a
`CredentialSource` is read each time.

A proxy has one worker, unless `apply` asks for more, or lets the load decide (`load`). They have the same listeners and
accept from the same queues: when one ends, its connections end with it, and the others go on. A worker that is not
needed any more leaves: its connections stay until they end by themselves, at most a day.

The state is that of the worker that is best off, of those that do not leave. A crash loop of all makes it FAILED, and
the target unsteers its ports. Starts are then tried rarely; the first that succeeds makes the state RUNNING again.

Invariants of several workers

  * What is desired is acknowledged once every process that accepts connections has it, and one of them is RUNNING that
    stays. A worker that is starting is not waited for: its own replay tells it everything. What only the first worker
    does (datagrams, connections that the pod makes) waits for the first.
  * All workers, those that leave included, are at most twice as many as `SupervisorSettings.workers`, and divide what a
    proxy may use. While many leave, fewer than wanted serve.
  * A worker leaves only when one that stays is RUNNING: somebody always takes what is in the queues.

`ProxyDispatcher` handles what the proxy sends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterable, Mapping

import msgspec
from msgspec.structs import replace

from sidestep.aio.channel import DeadlineError
from sidestep.aio.packets import ChannelClosed
from sidestep.aio.patience import patience
from sidestep.aio.tasks import Tasks
from sidestep.aio.time_limit import time_limit
from sidestep.config.proxy_workers import MOST as MAX_WORKERS
from sidestep.config.proxy_workers import ONE, Workers
from sidestep.model.errors import BugError, SidestepError
from sidestep.node.proxies.backoff import Backoff
from sidestep.node.proxies.desired import Acknowledged, CredentialSource, Desired, DestinationTable
from sidestep.node.proxies.dials import Dialled
from sidestep.node.proxies.dispatcher import ProxyDispatcher
from sidestep.node.proxies.load import Load
from sidestep.node.proxies.memory_cgroups import MemoryCgroups
from sidestep.node.proxies.processor_time import ProcessorUse
from sidestep.node.proxies.proxy_handler import ProxyHandler, ProxyState
from sidestep.node.proxies.proxy_process import Placement, ProxyLimits, ProxyProcess
from sidestep.node.proxies.proxy_worker import ProxyWorker
from sidestep.node.proxies.zygote import Zygote
from sidestep.proxy.control import messages
from sidestep.proxy.control.messages import OUTBOUND, OUTBOUND_TRANSPORT, Configure, Dial, UseNetwork
from sidestep.snapshots.egress import EgressSnapshot
from sidestep.snapshots.ports import PortSnapshot

LOOK = 1.0
"""Seconds between two looks at the load, where it decides."""


class SupervisorSettings(msgspec.Struct, frozen=True):
    """Limits and deadlines of all pod proxies (seconds)."""

    limits: ProxyLimits = msgspec.field(default_factory=ProxyLimits)
    backoff: Backoff = msgspec.field(default_factory=Backoff)
    open_deadline: float = 10.0
    """For a handler to be connected; below the proxy's own."""
    source_deadline: float = 15.0
    """For a credential source."""
    dial_deadline: float = 30.0
    """For a connection from the pod to be made; above the proxy's own (`proxy.access.connecting`)."""
    apply_deadline: float = 20.0
    """For `apply`, `listen`, `unlisten`, restarts of the process included."""
    workers: int = min(MAX_WORKERS, max(2, os.cpu_count() or 1))
    """Processes of one proxy that serve, whatever its pod asks for: more than the node has processors are of no use."""
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
        self._tasks = Tasks(f"pod proxy {placement.name}", on_crash=self._broken)
        self._desired = Desired()
        self._state = ProxyState.STOPPED
        self._dispatcher = ProxyDispatcher(handler, tasks=self._tasks, open_deadline=settings.open_deadline)
        self._dials = self._dispatcher.dials
        self._dialling = asyncio.Lock()
        self._workers = [self._new_worker(0)]
        """Worker 0 first; it never leaves."""
        self._wanted = 1
        """Workers that are to serve."""
        self._load: Load | None = None
        """What decides that, if the load is to."""
        self._use = ProcessorUse()
        self._unwatched = 0.0
        """Seconds since the load was last looked at."""
        self._turn = asyncio.Event()
        """Set when a worker's state changes; another one takes its place then."""
        self._restarts = 0
        """Of workers that have left."""
        self._started = False
        self.broken = False
        """It has met a bug of its own and is of no use any more."""

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
        """The present process, the first one of several."""
        return next(iter(self.pids), None)

    @property
    def pids(self) -> tuple[int, ...]:
        """All present processes."""
        return tuple(each.pid for each in self._workers if each.pid is not None)

    @property
    def quiet(self) -> float:
        """Seconds since the last sign of life of any process that takes connections."""
        return min((each.quiet for each in self._serving if each.process is not None), default=0.0)

    @property
    def restarts(self) -> int:
        """How often a process has taken the place of one that had ended."""
        return self._restarts + sum(each.restarts for each in self._workers)

    async def start(self) -> None:
        """Start the first process; once. Raises SidestepError when it cannot be started, and nothing is left then."""
        if self._started:
            raise BugError(f"the pod proxy {self.name} was started twice")
        self._started = True
        first = self._workers[0]
        await first.start()
        self._tasks.start(first.keep_alive(), name="keep alive")

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
        workers: Workers = ONE,
    ) -> Mapping[str, str]:
        """Make this the configuration; returns why credentials could not be used, by name (empty: all are).

        `workers` serve, at most `SupervisorSettings.workers`.

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
        self._want(workers)
        self._employ()
        return await self._tell_current()

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
            await self._tell_current(transport)
        except BaseException:
            self._desired.listeners.pop(key, None)
            raise

    async def unlisten(self, port: int, transport: str) -> None:
        """Stop accepting for a port, after the queue is empty. Raises SidestepError like `apply`."""
        if self._desired.listeners.pop((port, transport), None) is not None:
            await self._tell_current(transport)

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
        worker = self._ready_worker
        try:
            async with patience(self._settings.dial_deadline, of=lambda: worker.pid):
                process = await worker.running()
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

        It is no part of the desired state: an IDS ends with the process that feeds it. A pod that has one, or an
        inspector, has one worker that serves.
        """
        await self._workers[0].hand(messages.FeedIds(0), fd, doing="feed an IDS")

    async def use_inspector(self, fd: int) -> None:
        """The same for the socket of an inspector, which it asks about requests from then on."""
        await self._workers[0].hand(messages.UseInspector(0), fd, doing="use an inspector")

    async def drain(self, timeout: float) -> None:  # noqa: ASYNC109 - part of the protocol: the proxy gets it, too
        """Stop accepting, let what is in flight finish within `timeout` seconds, and end. Returns when it is gone."""
        self._dispatcher.closed = True
        for worker in self._workers:
            worker.expect_end()
        processes = [each.process for each in self._workers if each.process is not None]
        await asyncio.gather(*(_drain(each, timeout) for each in processes))
        await self.aclose()

    def kill(self) -> None:
        """End all processes now, for good; `aclose` waits for that."""
        self._dispatcher.closed = True
        for worker in self._workers:
            worker.kill("it was stopped")
        self._tasks.cancel()

    async def aclose(self) -> None:
        """End all processes now and wait until they are gone. Closing twice is the same as once."""
        self.kill()
        await self._tasks.aclose()
        for worker in self._workers:
            await worker.ended()
        self._desired.clear()

    def watch(self, elapsed: float) -> None:
        """Look for the heartbeats; called by the supervisor."""
        for worker in self._workers:
            worker.watch(elapsed)
        if self._load is not None and not self._dispatcher.closed:
            self._unwatched += elapsed
            if self._unwatched >= LOOK:
                self._look_at_load(self._load, self._unwatched)
                self._unwatched = 0.0

    # --- workers ---

    @property
    def _serving(self) -> list[ProxyWorker]:
        return [each for each in self._workers if not each.leaving]

    @property
    def _serving_processes(self) -> list[ProxyProcess]:
        return [each.process for each in self._serving if each.process is not None]

    @property
    def _has_processes(self) -> bool:
        return any(each.is_there for each in self._workers)

    @property
    def _ready_worker(self) -> ProxyWorker:
        """One that is RUNNING, if there is one."""
        return next((each for each in self._serving if each.state is ProxyState.RUNNING), self._workers[0])

    def _want(self, workers: Workers) -> None:
        """Have so many serve; if the load decides, as many as it did before, within the number."""
        most = min(workers.most, self._settings.workers)
        if not workers.automatic:
            self._load = None
            self._wanted = most
            return
        self._load = self._load or Load(most)
        self._load.limit(most)
        self._wanted = self._load.wanted

    def _look_at_load(self, load: Load, elapsed: float) -> None:
        """Have more or fewer serve, if the load says so. Those that leave take processors, too."""
        running = [each for each in self._serving if each.state is ProxyState.RUNNING]
        pids = tuple(each.pid for each in running if each.pid is not None)
        leaving = len(self._workers) - len(self._serving)
        if load.observe(self._use.since_last(pids), elapsed, leaving=leaving):
            self._wanted = load.wanted
            self._employ()
            self._tasks.start(self._tell_soon(), name="follow the load")

    def _employ(self) -> None:
        """Have as many workers serve as are wanted, and tell each how many there are. Those that leave still count."""
        serving = self._serving
        if any(each.state is ProxyState.RUNNING for each in serving[: self._wanted]):
            for worker in serving[self._wanted :]:
                worker.leave()
        if self._started and not self._dispatcher.closed:
            free = min(MAX_WORKERS, 2 * self._settings.workers) - len(self._workers)
            for _ in range(min(self._wanted - len(serving), free)):
                taken = {each.number for each in self._workers}
                number = next(each for each in range(MAX_WORKERS) if each not in taken)
                worker = self._new_worker(number)
                self._workers.append(worker)
                self._tasks.start(worker.keep_alive(), name=f"keep worker {number} alive")
        if self._desired.configuration is not None:
            self._desired.configuration = replace(self._desired.configuration, workers=len(self._workers))
        self._restate("its processes changed")

    async def _tell_current(self, transport: str = "tcp") -> Mapping[str, str]:
        """Return when the desired state has been told (see the invariants); `transport` says whose listener changed.

        Returns the failures of credentials. Raises SidestepError as `apply` does.
        """
        first = self._workers[0]
        if len(self._workers) == 1:
            return dict((await first.tell_current()).failures)
        try:
            async with patience(self._settings.apply_deadline, of=lambda: self.pid):
                while True:
                    turn = self._turn
                    told = await self._tell_present()
                    needed = self._serving if transport == "tcp" else [first]
                    if any(each in told and each.state is ProxyState.RUNNING for each in needed):
                        return _joined(told.values())
                    if all(each.state in (ProxyState.FAILED, ProxyState.STOPPED) for each in needed):
                        raise ChannelClosed(f"the pod proxy {self.name} is {needed[0].state.value}")
                    await turn.wait()
        except TimeoutError as error:
            raise DeadlineError(f"telling the pod proxy {self.name}", self._settings.apply_deadline) from error

    async def _tell_present(self) -> dict[ProxyWorker, Acknowledged]:
        """Tell every process that accepts connections; return what those know that serve. Raises ProxyError of one."""
        workers = tuple(self._workers)
        outcomes = await asyncio.gather(*(each.tell_present() for each in workers), return_exceptions=True)
        told: dict[ProxyWorker, Acknowledged] = {}
        for worker, outcome in zip(workers, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                if not (worker.leaving and isinstance(outcome, SidestepError)):
                    raise outcome
            elif outcome is not None and not worker.leaving:
                told[worker] = outcome
        return told

    def _restate(self, reason: str) -> None:
        """The state of the one that is best off is the proxy's. Its processes divide what they may use."""
        for worker in self._workers:
            if worker.process is not None:
                worker.process.divide(len(self._workers))
        serving = [each.number for each in self._serving if each.state is ProxyState.RUNNING]
        self._dispatcher.workers(serving=serving, leaving=[each.number for each in self._workers if each.leaving])
        states = {each.state for each in self._serving}
        state = next(each for each in ProxyState if each in states)
        if state is not self._state:
            self._state = state
            self._handler.on_state(state, reason)

    # --- they tell (proxy_worker.WorkerOwner) ---

    def worker_changed(self, reason: str, /) -> None:
        """Another state of the proxy, and others may leave if one serves now."""
        self._turn.set()
        self._turn = asyncio.Event()
        self._restate(reason)
        is_enough = self._state is ProxyState.RUNNING and len(self._serving) > self._wanted
        if is_enough and not self._dispatcher.closed:
            self._employ()
            self._tasks.start(self._tell_soon(), name="have others leave")

    def worker_left(self, worker: ProxyWorker, /) -> None:
        """Its share of what the pod's proxy may use is the others' again."""
        self._workers.remove(worker)
        self._restarts += worker.restarts
        self._employ()
        self._tasks.start(self._tell_soon(), name="divide anew")

    def process_ended(self, process: ProxyProcess, reason: str, /) -> None:
        """What it was asked for will not come."""
        self._dispatcher.process_ended(process, reason, others=self._has_processes)

    def credentials_told(self, failures: Mapping[str, str], /) -> None:
        """Tell the pod's owner what any of those that serve cannot use."""
        if len(self._workers) > 1:
            self._handler.on_credentials({**_joined(each.told for each in self._serving_processes), **failures})
        elif failures:
            self._handler.on_credentials(failures)

    # --- inside ---

    async def _tell_soon(self) -> None:
        with contextlib.suppress(SidestepError):  # whoever asks next is told
            await self._tell_current()

    def _new_worker(self, number: int) -> ProxyWorker:
        return ProxyWorker(
            self.name,
            number,
            begin=lambda: self._begin(number),
            desired=self._desired,
            owner=self,
            backoff=self._settings.backoff,
            apply_deadline=self._settings.apply_deadline,
            source_deadline=self._settings.source_deadline,
        )

    async def _begin(self, number: int) -> ProxyProcess:
        try:
            return await ProxyProcess.begin(
                self._zygote,
                self._placement,
                limits=self._settings.limits,
                on_message=self._dispatcher.received,
                cgroups=self._settings.cgroups,
                worker=number,
            )
        except SidestepError:
            self._dispatcher.start_failed(number, others=self._has_processes)
            raise

    def _broken(self, task: str, error: BaseException) -> None:
        """One of our own tasks crashed: the owner makes another one; let the event loop report the bug."""
        self.broken = self._dispatcher.closed = True
        for worker in self._workers:
            worker.broken(f"a bug: {error!r}")
        asyncio.get_running_loop().call_exception_handler({"message": f"{task} crashed", "exception": error})


def _joined(told: Iterable[Acknowledged]) -> dict[str, str]:
    """Why any of these processes cannot use credentials, by name."""
    return {name: reason for each in told for name, reason in each.failures.items()}


async def _drain(process: ProxyProcess, timeout: float) -> None:  # noqa: ASYNC109 - as `PodProxy.drain`
    try:
        await process.tell(messages.Drain(0, timeout), doing="drain")
        async with time_limit(timeout + 1.0):
            await process.ended()
    except (TimeoutError, SidestepError):
        pass  # It is killed by `aclose`.
