"""Keeps an inspector alive beside the proxy of one pod, as long as policies of the pod have `waf`.

States

    off         no policy wants one
    starting    one is being made, or its socket is being handed to the proxy
    running     the proxy asks it
    pausing     it has ended, or could not be made; the next try comes after a short pause (BACKOFF)
    released    the pod is a target no longer: nothing is made any more; what runs ends with its socket

Invariants

  * The daemon holds the process, the proxy holds the socket: when either lets go, the inspector ends.
  * An inspector that misses a deadline is killed (`late`). Nothing else interrupts it, and the proxy cannot signal it.
  * It is replaced for ever, and soon: a request that ends inspectors is judged as `failurePolicy` says, and the next
    client's is inspected again. BACKOFF bounds what that costs.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Final

from sidestep.aio.tasks import Tasks
from sidestep.model.condition import Condition, ConditionType
from sidestep.model.errors import SidestepError
from sidestep.node.inspectors.inspectors import GROUP_MEMORY, MEMORY
from sidestep.node.proxies.backoff import Backoff, CrashHistory
from sidestep.node.resident_memory import resident_bytes
from sidestep.protocols.waf_messages import MAX_PROFILES
from sidestep.tunnel.views import EngineView

if TYPE_CHECKING:
    from sidestep.model.pod import PodKey
    from sidestep.node.conditions import Statements
    from sidestep.node.inspectors.inspectors import InspectorProcess, Inspectors
    from sidestep.node.proxies.memory_cgroups import MemoryCgroups

ENGINE: Final = "inspector"
BACKOFF: Final = Backoff(first=0.002, longest=0.02, window=10.0, crashes=1_000_000_000)
"""Making one takes some 10 ms of processor time."""
FAILED: Final = 1.0
"""Seconds after which it is tried again where one could not be made, or handed over."""


class PodInspector:
    """See the module. `hand_over` gives the proxy a copy of the socket; it raises SidestepError.

    `on_state` is told why there is none, "" once there is one. Each is moved into a memory cgroup of its own, where
    there are `cgroups`; nothing waits for that.
    """

    def __init__(
        self,
        name: str,
        uid: int,
        inspectors: Inspectors,
        *,
        hand_over: Callable[[int], Awaitable[None]],
        on_state: Callable[[str], None] = lambda _reason: None,
        cgroups: MemoryCgroups | None = None,
    ) -> None:
        self._name = name
        self._uid = uid
        self._inspectors = inspectors
        self._hand_over = hand_over
        self._on_state = on_state
        self._cgroups = cgroups
        self._history = CrashHistory(BACKOFF)
        self._policies: tuple[str, ...] = ()
        self._problem = ""
        self._is_wanted = False
        self._has_served = False
        """One was handed over since one is wanted."""
        self._changed = asyncio.Event()
        self._present: InspectorProcess | None = None
        self._tasks: Tasks | None = None
        self._is_released = False
        self.ended = 0
        """How often one ended that was wanted."""

    @property
    def pid(self) -> int | None:
        """The process id of the present one."""
        return None if self._present is None else self._present.process.pid

    def engine(self, counters: Mapping[str, int]) -> EngineView | None:
        """What is shown of it; None while no policy wants one. `counters` are those of verdicts (`verdict_times`)."""
        if not self._is_wanted:
            return None
        pid = self.pid
        state = "running" if pid is not None else "paused" if self._problem else "starting"
        return EngineView(
            kind=ENGINE,
            state=state,
            pid=pid or 0,
            version=self._inspectors.version,
            policies=self._policies,
            rules=len(self._inspectors.names),
            memory=resident_bytes(pid) if pid is not None else 0,
            memory_limit=MEMORY,
            restarts=self.ended,
            verdicts=verdict_times(counters),
            problem=self._problem,
        )

    def follow(self, policies: tuple[str, ...]) -> None:
        """These policies want one, or none does. Never raises."""
        is_wanted = bool(policies)
        self._policies = policies
        if is_wanted is self._is_wanted or self._is_released:
            return
        self._is_wanted = is_wanted
        self._has_served = False
        if is_wanted:
            self._inspectors.want(self)
        else:
            self._inspectors.release(self)
            self._state("")
        self._changed.set()
        if self._tasks is None:
            self._tasks = Tasks(f"inspector {self._name}", on_crash=self._crashed)
            self._tasks.start(self._keep(), name="keep alive")

    @property
    def why_absent(self) -> str:
        """Why requests are not judged yet, as far as it has not been there at all; empty otherwise."""
        if self._has_served or not self._is_wanted:
            return ""
        return self._problem or "its inspector is being made"

    def retry(self) -> None:
        """Whatever kept one from being made or handed over may be over. Never raises."""
        if self._present is None:
            self._changed.set()

    def late(self) -> None:
        """The present one has missed a deadline: end it. Never raises."""
        if self._present is not None:
            with contextlib.suppress(SidestepError):
                self._present.process.kill()

    def release(self) -> None:
        """Make nothing any more. Never raises."""
        self._is_released = True
        self._inspectors.release(self)

    async def aclose(self) -> None:
        """End everything now. Never raises."""
        self.release()
        if self._tasks is not None:
            await self._tasks.aclose()

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._is_over():
            self._changed.clear()
            if self._is_off():
                await self._changed.wait()
                continue
            began = loop.time()
            try:
                await self._live()
            except SidestepError as error:
                self._state(str(error))
                pause = FAILED
            else:
                if self._is_off():
                    continue
                self.ended += 1
                pause = self._history.crashed(loop.time(), lived=loop.time() - began).pause
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), pause)

    def _is_over(self) -> bool:
        return self._is_released

    def _is_off(self) -> bool:
        return not self._is_wanted or self._is_released

    async def _live(self) -> None:
        """Make one, hand it over, and wait until it has ended or is not wanted. Raises SidestepError."""
        made = await self._inspectors.spawn(self._uid)
        self._present = made
        if self._cgroups is not None:
            self._cgroups.enter(made.process, GROUP_MEMORY)
        try:
            try:
                await self._hand_over(made.sock.fileno())
            finally:
                made.sock.close()
            self._has_served = True
            self._state("")
            waiting = {asyncio.ensure_future(made.process.wait()), asyncio.ensure_future(self._changed.wait())}
            try:
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for each in waiting:
                    each.cancel()
        finally:
            self._present = None
            made.close()
            if self._cgroups is not None:
                self._cgroups.leave(made.process.pid)

    def _state(self, reason: str) -> None:
        self._problem = reason
        self._on_state(reason)

    def _crashed(self, task: str, error: BaseException) -> None:
        """One of our own tasks crashed: the pod goes on without one; let the event loop report the bug."""
        self._state(f"a bug: {error!r}")
        asyncio.get_running_loop().call_exception_handler({"message": f"{task} crashed", "exception": error})


def verdict_times(counters: Mapping[str, int]) -> dict[str, int]:
    """How many verdicts there were, and within how many milliseconds half of them and 99 of 100 came.

    `counters` are called by upper bounds, `4ms`, and `longer`; of a time beyond the last bound 0 is told.
    """
    bounds = [(int(name.removesuffix("ms")), count) for name, count in counters.items() if name[:-2].isdecimal()]
    judged = sum(count for _, count in bounds) + counters.get("longer", 0)
    found = {"judged": judged}
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        so_far, found[name] = 0, 0
        for bound, count in sorted(bounds):
            so_far += count
            if so_far >= share * judged > 0:
                found[name] = bound
                break
    return found


def state_inspector(statements: Statements, pod: PodKey, reason: str) -> None:
    """State why the inspector of a pod does not run; "": it does."""
    conditions = []
    if reason:
        text = f"its inspector does not run and is made again: {reason}; requests are judged as failurePolicy says"
        conditions.append(Condition(ConditionType.WAF_NOT_RUNNING, f"pod {pod}", text))
    statements.state(None, "waf", conditions)


def state_profiles(statements: Statements, pod: PodKey, count: int) -> None:
    """State that a pod's inspector has no room for all settings of firewalls; `count` is `waf.most_profiles`."""
    conditions = []
    if count > MAX_PROFILES:
        text = (
            f"its policies have up to {count} different settings of firewalls, and an inspector takes {MAX_PROFILES}: "
            "requests of the others are judged as failurePolicy says"
        )
        conditions.append(Condition(ConditionType.NOT_INSPECTED, f"pod {pod}", text))
    statements.state(None, "waf profiles", conditions)
