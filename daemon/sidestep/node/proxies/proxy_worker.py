"""One worker of a pod proxy: a process that is replaced when it ends, and what the process has been told.

    STOPPED     not started yet, or over
    RUNNING     the process has been told a whole desired state: it serves
    RESTARTING  it has ended; the next one starts within milliseconds
    FAILED      a crash loop: the next one starts after a long pause

    STOPPED --start--> RUNNING --ends--> RESTARTING --told everything--> RUNNING
    RESTARTING --crashes again and again--> FAILED --told everything--> RUNNING
    any --stop--> STOPPED

A worker that was added to others begins as RESTARTING. One that is to `leave` them takes no new connections, is told
the configuration for its old ones, and is over when these have ended by themselves, or after LEAVING.

Invariants

  * A process becomes RUNNING only after it was told the desired state whole, changes meanwhile included.
  * A process that has a listener is the *accepting* one: `tell_present` tells it changes at once, RUNNING or not, so
    that nobody accepts connections by an older configuration than the others.
  * One `tell_difference` talks to a process at a time.
  * A worker whose own code raises is `broken`: its owner is told, and starts no other process.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from sidestep.aio.channel import DeadlineError
from sidestep.aio.packets import ChannelClosed
from sidestep.aio.patience import patience
from sidestep.aio.time_limit import time_limit
from sidestep.model.errors import SidestepError
from sidestep.node.proxies.backoff import Backoff, CrashHistory
from sidestep.node.proxies.desired import Acknowledged, Desired, is_told, tell_difference
from sidestep.node.proxies.proxy_handler import ProxyState
from sidestep.node.proxies.proxy_process import ProxyProcess
from sidestep.proxy.control import messages

LEAVING = 86_400.0
"""Seconds that connections of a worker that leaves may last, before they are reset."""


class WorkerOwner(Protocol):
    """The pod proxy that has the worker."""

    def worker_changed(self, reason: str, /) -> None:
        """A worker's state has changed."""

    def process_ended(self, process: ProxyProcess, reason: str, /) -> None:
        """A process has ended: one that was RUNNING, or one that failed before."""

    def worker_left(self, worker: ProxyWorker, /) -> None:
        """A worker that was to leave is over."""

    def credentials_told(self, failures: Mapping[str, str], /) -> None:
        """A process that was started in place of another, or beside it, was sent its credentials; why it cannot use
        some, by name."""


class ProxyWorker:
    """One worker. Run `keep_alive` in a task, for the first one after `await start()`; `kill` ends it.

    `number` is unique among the workers of the pod; `begin` forks a process that has it. `apply_deadline` and
    `source_deadline` are those of `SupervisorSettings`.
    """

    def __init__(
        self,
        name: str,
        number: int,
        *,
        begin: Callable[[], Awaitable[ProxyProcess]],
        desired: Desired,
        owner: WorkerOwner,
        backoff: Backoff,
        apply_deadline: float,
        source_deadline: float,
    ) -> None:
        self.name = name
        self.number = number
        self._begin = begin
        self._desired = desired
        self._owner = owner
        self._history = CrashHistory(backoff)
        self._apply_deadline = apply_deadline
        self._source_deadline = source_deadline
        self._telling = asyncio.Lock()
        self._turn = asyncio.Event()
        self._stopping = False
        self._is_to_leave = asyncio.Event()
        self._told_to_leave: ProxyProcess | None = None
        self._accepting: ProxyProcess | None = None
        """The process that has listeners, or is about to get them."""
        self.leaving = False
        """It is to take no more connections; change it with `leave`."""
        self.process: ProxyProcess | None = None
        """The present process, if there is one."""
        self.state = ProxyState.RESTARTING if number else ProxyState.STOPPED
        self.restarts = 0

    @property
    def pid(self) -> int | None:
        """The present process's number."""
        return None if self.process is None else self.process.process.pid

    @property
    def is_there(self) -> bool:
        """Whether any process of it accepts connections, or is about to."""
        return self._accepting is not None

    @property
    def quiet(self) -> float:
        """Seconds since the last sign of life of the present process."""
        return 0.0 if self.process is None else self.process.quiet

    async def start(self) -> None:
        """Start the first process; once. Raises SidestepError when it cannot be started, and nothing is left then."""
        process = await self._begin()
        if self._stopping:
            process.kill("it was stopped")
            await process.ended()
            raise ChannelClosed(f"the pod proxy {self.name} was stopped")
        self.process = self._accepting = process
        self._set_state(ProxyState.RUNNING, "started")

    async def keep_alive(self) -> None:
        """Start another process whenever one has ended, until `kill`, or until it has left."""
        if self.process is None:
            await self._replace("another one", crashed=False)
        while self.process is not None:
            process = self.process
            reason = await process.ended()
            self.process = self._accepting = None
            self._owner.process_ended(process, reason)
            await self._replace(reason, lived=asyncio.get_running_loop().time() - process.began)
            self.restarts += self.process is not None
        if not self._stopping:
            self._set_state(ProxyState.STOPPED, "it has left")
            self._owner.worker_left(self)

    async def _replace(self, reason: str, *, lived: float = 0.0, crashed: bool = True) -> None:
        """Start a process that takes the place of another, however often it takes; none if the worker is to end."""
        while not self._is_ending():
            if crashed:
                verdict = self._history.crashed(asyncio.get_running_loop().time(), lived=lived)
                self._set_state(ProxyState.FAILED if verdict.looping else ProxyState.RESTARTING, reason)
                with contextlib.suppress(TimeoutError):
                    async with time_limit(verdict.pause):
                        await self._is_to_leave.wait()
                if self._is_ending():
                    return
            try:
                process = await self._resume()
            except SidestepError as error:
                reason, lived, crashed = str(error), 0.0, True
                continue
            if self._stopping:
                process.kill("it was stopped")
                await process.ended()
                return
            self.process = process
            self._set_state(ProxyState.RUNNING, f"restarted ({reason})")
            return

    async def _resume(self) -> ProxyProcess:
        """Start a process and tell it everything, what changes meanwhile included."""
        process = await self._begin()
        try:
            await self._tell(process, before_listening=True)
            self._accepting = process
            while not self._knows_all(process):
                await self._tell(process)
        except BaseException:
            process.kill("it could not be told its state")
            reason = await process.ended()
            self._accepting = None
            if not self._stopping:
                self._owner.process_ended(process, reason)
            raise
        self._owner.credentials_told(dict(process.told.failures))
        return process

    async def tell_current(self) -> Acknowledged:
        """Return when the present process, or the one after it, has been told the desired state. Raises SidestepError:
        it is FAILED or STOPPED, the deadline has passed."""
        try:
            async with patience(self._apply_deadline, of=lambda: self.pid):
                while (told := await self._told(await self.running())) is None:
                    pass
                return told
        except TimeoutError as error:
            raise DeadlineError(f"telling the pod proxy {self.name}", self._apply_deadline) from error

    async def tell_present(self) -> Acknowledged | None:
        """Tell the accepting process the desired state; None: there is none, or it has ended meanwhile, and its
        successor will be told everything. Raises ProxyError."""
        return None if self._accepting is None else await self._told(self._accepting)

    async def hand(self, message: messages.ToProxy, fd: int, *, doing: str) -> None:
        """Tell the present process something that is no part of the desired state. Raises SidestepError."""
        try:
            async with patience(self._apply_deadline, of=lambda: self.pid):
                process = await self.running()
                async with self._telling:
                    await process.tell(message, fd, doing=doing)
        except TimeoutError as error:
            raise DeadlineError(f"having {self.name} {doing}", self._apply_deadline) from error

    async def running(self) -> ProxyProcess:
        """The present process once it is RUNNING. Raises ChannelClosed when none will be soon."""
        while self.process is None or self.state is not ProxyState.RUNNING:
            is_over = self._stopping or (self.leaving and self.process is None)
            if is_over or self.state in (ProxyState.FAILED, ProxyState.STOPPED):
                raise ChannelClosed(f"the pod proxy {self.name} is {self.state.value}")
            await self._turn.wait()
        return self.process

    def watch(self, elapsed: float) -> None:
        """Look for the heartbeat (`ProxyProcess.watch`)."""
        if self.process is not None:
            self.process.watch(elapsed)

    def _is_ending(self) -> bool:
        return self.leaving or self._stopping

    def leave(self) -> None:
        """Take no more connections, once that is told (`tell_current`)."""
        self.leaving = True
        self._is_to_leave.set()

    def expect_end(self) -> None:
        """Start no other process when the present one ends."""
        self._stopping = True

    def kill(self, cause: str) -> None:
        """End the process now, for good; `ended` waits for that."""
        self._stopping = True
        if self.process is not None:
            self.process.kill(cause)

    async def ended(self) -> None:
        """Wait for the end of the process of a worker that was killed, and whose `keep_alive` runs no more."""
        if self.process is not None:
            await self.process.ended()
            self.process = None
        self._set_state(ProxyState.STOPPED, "stopped")

    def broken(self, reason: str) -> None:
        """A bug of the daemon's own: end it for good."""
        self.kill(reason)
        self._set_state(ProxyState.FAILED, reason)

    def _knows_all(self, process: ProxyProcess) -> bool:
        if self.leaving and process is not self._told_to_leave:
            return False
        return is_told(self._desired.of_worker(self.number, leaving=self.leaving), process.told)

    async def _told(self, process: ProxyProcess) -> Acknowledged | None:
        """Tell a process the desired state; None: it has ended meanwhile. Raises ProxyError."""
        try:
            await self._tell(process)
        except (ChannelClosed, DeadlineError):
            await process.ended()
            await asyncio.sleep(0)  # Let `keep_alive` see it first.
            return None
        return process.told

    async def _tell(self, process: ProxyProcess, *, before_listening: bool = False) -> None:
        """Tell a process what it is to know, or only what it has to know before it gets listeners."""
        async with self._telling:
            if self.leaving and process is not self._told_to_leave:
                await process.tell(messages.Drain(0, LEAVING, leave=True), doing="leave the others")
                self._told_to_leave = process
                process.told.listeners.clear()
            desired = self._desired.of_worker(self.number, leaving=self.leaving)
            if before_listening:
                desired = desired.before_listening()
            await tell_difference(process, desired, process.told, source_deadline=self._source_deadline)

    def _set_state(self, state: ProxyState, reason: str) -> None:
        if state is not self.state:
            self.state = state
            self._turn.set()
            self._turn = asyncio.Event()
            self._owner.worker_changed(reason)
