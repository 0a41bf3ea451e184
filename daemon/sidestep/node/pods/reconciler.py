"""Carries the plan out with one task per pod: a pod has one change at a time, and no pod waits for another.

`apply` takes a plan and wakes the tasks of pods whose part of it changed. A task makes, changes or releases its
`Target`. When a step fails, the target undoes it, a condition says why, and the task tries again after a growing pause;
no exception leaves this module. A release detaches at once and drains in the background, so that the pod can become a
target again meanwhile.

The pause holds whichever step failed and whatever else wakes the task (a failing step makes its target report a
change): only another plan for the pod, or something to release, ends it early. It starts at its shortest again after
`CALM` seconds without a failure, so that a target which is made and lost is not made in a tight loop.

What a plan says of closed ports is done at once, whatever the task of the pod waits for: a policy that is deleted opens
its ports even while a proxy does not answer. Until a target is programmed, the time counts as uninspected
(`planning.inspection_times`).

One tick serves all pods: every `TICK` seconds it checks whether each namespace is still there (holding one open after
its pod has gone keeps the veth alive, so it is closed within a second) and which apps listen. A timer per pod would
cost an idle node a measurable part of a core.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from sidestep.aio.tasks import Tasks
from sidestep.model.condition import Condition, ConditionType
from sidestep.model.errors import BugError, ConfigurationError, KernelError, RefusedError, SidestepError
from sidestep.model.pod import NetnsId, PodKey
from sidestep.node.conditions import Conditions, Source
from sidestep.node.planning.inspection_times import InspectionTimes, Uninspected
from sidestep.node.planning.plan import Plan, PodPlan
from sidestep.node.pods.pod_netns import AbsentError, netns_path
from sidestep.node.pods.target import Target
from sidestep.node.pods.toolbox import Toolbox
from sidestep.node.proxy_uids import ProxyUids
from sidestep.node.records.presence import Absence, Inspected
from sidestep.observability.logs import get_logger

TICK = 0.5
"""Seconds between two looks at the namespaces and at which apps listen."""

FIRST_RETRY = 0.1
LAST_RETRY = 5.0
"""Seconds before the first retry of what failed, doubling up to the last."""

CALM = 30.0
"""Seconds without a failure after which the pause starts again at FIRST_RETRY."""

ABSENT = 10.0
"""Seconds for which a pod may have no process before a condition says so: pods start, and end."""

PARALLEL = 8
"""Targets that are opened at the same time; more would only queue at the zygote."""


class SteeringLostError(SidestepError):
    """A target was detached although nobody released it."""

    def __init__(self) -> None:
        super().__init__("its steering was lost; it is made anew")


@dataclass(slots=True)
class _Worker:
    """The desired and the present state of one pod."""

    key: PodKey
    desired: PodPlan | None = None
    closing: frozenset[int] = frozenset()
    """The ports that policies close: those of `desired`, or fewer while the pod waits for a newer plan."""
    applied: PodPlan | None = None
    target: Target | None = None
    gone: bool = False
    """The pod has ended or its namespace is gone: its target is abandoned without draining."""
    claimed: NetnsId | None = None
    """The namespace of the present target, or of the one that is being opened."""
    again: bool = False
    """The last try failed: the plan is applied even if it is the same."""
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    pause: float = FIRST_RETRY
    failed_at: float = float("-inf")
    retry: asyncio.TimerHandle | None = None
    """The timer of the next try, while a failure waits for it."""
    problem: str = ""
    absent_since: float | None = None
    times: InspectionTimes = field(default_factory=InspectionTimes)
    """For how long its ports with policies were not inspected."""
    missed: tuple[int, ...] = ()
    """Those of its ports that were not inspected while no daemon ran."""

    @property
    def backs_off(self) -> bool:
        """Whether there is nothing to do before the retry: nothing is to be released, and the plan is what failed."""
        if self.retry is None or self.desired is None or self.gone:
            return False
        return self.target is None or (self.target.attached and not self.target.broken)

    def follow_policies(self, *, at_most: frozenset[int] | None = None) -> None:
        """Close the ports that the desired plan closes, of these `at_most`; open all others. Never raises."""
        closing = self.desired.closing if self.desired is not None else frozenset[int]()
        if at_most is not None:
            closing &= at_most
        if closing != self.closing:
            self.closing = closing
            if self.target is not None:
                self.target.follow_policies(closing)

    def stop_waiting(self) -> None:
        """Cancel the timer: its time has come, or something else is done now."""
        if self.retry is not None:
            self.retry.cancel()
            self.retry = None


class Reconciler:
    """All targets of the node. `on_change` is called when what they do may have changed."""

    def __init__(
        self,
        *,
        tools: Callable[[Callable[[PodKey], None]], Toolbox],
        conditions: Conditions,
        on_change: Callable[[], None],
        on_crash: Callable[[str, BaseException], None],
        absence: Absence | None = None,
    ) -> None:
        self._tools = tools(self._changed)
        self._absence = absence
        self._conditions = conditions
        self._on_change = on_change
        self._tasks = Tasks("reconciler", on_crash=on_crash)
        self._workers: dict[PodKey, _Worker] = {}
        self._draining: set[Target] = set()
        self._uids = ProxyUids()
        self._opening = asyncio.Semaphore(PARALLEL)
        self._drain_timeout = 30.0
        self._closing = False
        self._log = get_logger("reconciler")

    def start(self) -> None:
        """Begin to tick."""
        self._tasks.start(self._tick(), name="tick")

    def apply(self, plan: Plan, *, drain_timeout: float) -> None:
        """Make this plan the desired state. Returns at once. `drain_timeout` is in seconds."""
        if self._closing:
            return
        self._drain_timeout = drain_timeout
        for key in self._workers.keys() | plan.pods.keys():
            worker = self._workers.get(key)
            if key in plan.waiting:
                if worker is not None:
                    worker.follow_policies(at_most=plan.closing.get(key, frozenset()))
                continue
            desired = plan.pods.get(key)
            if worker is None:
                worker = self._workers[key] = _Worker(key)
                self._tasks.start(self._work(worker), name=str(key))
            if desired != worker.desired or (desired is None and worker.target is not None):
                worker.desired = desired
                worker.times.want(desired.inspected if desired is not None else (), asyncio.get_running_loop().time())
                self._count_absence(worker)
                worker.gone = worker.gone or (desired is None and key in plan.ended)
                worker.pause = FIRST_RETRY
                worker.stop_waiting()
                worker.wake.set()
            worker.follow_policies()

    def target(self, key: PodKey) -> Target | None:
        """The target of a pod, while there is one."""
        worker = self._workers.get(key)
        return worker.target if worker is not None else None

    def targets(self) -> tuple[Target, ...]:
        """All targets, sorted by pod; those that only drain are not among them."""
        return tuple(worker.target for _, worker in sorted(self._workers.items()) if worker.target is not None)

    def uninspected(self, key: PodKey) -> dict[Uninspected, float]:
        """The seconds for which ports of a pod that have policies were not inspected."""
        worker = self._workers.get(key)
        return worker.times.totals(asyncio.get_running_loop().time()) if worker is not None else {}

    def missed(self, key: PodKey) -> tuple[Absence, tuple[int, ...]] | None:
        """The time before this daemon in which no other ran, and the ports of a pod that were not inspected in it."""
        worker = self._workers.get(key)
        if self._absence is None or worker is None or not worker.missed:
            return None
        return self._absence, worker.missed

    def inspected(self) -> tuple[Inspected, ...]:
        """The pods to which policies apply, with their ports, sorted."""
        pods = ((worker.desired.pod, worker.times.wanted) for worker in self._workers.values() if worker.desired)
        return tuple(sorted(Inspected(*pod.key, pod.uid, ports) for pod, ports in pods if ports))

    def closed(self, key: PodKey) -> tuple[int, ...]:
        """The ports of a pod whose clients are refused now because they cannot be inspected."""
        worker = self._workers.get(key)
        return worker.times.closed() if worker is not None else ()

    def problem(self, key: PodKey) -> str:
        """Why a pod is not, or not yet, the target that the plan wants; empty when it is."""
        worker = self._workers.get(key)
        return worker.problem if worker is not None else ""

    def redo(self, key: PodKey) -> None:
        """Detach a target that does not match the kernel, and make it anew."""
        worker = self._workers.get(key)
        if worker is not None and worker.target is not None:
            worker.target.detach()
            worker.wake.set()

    def freeze(self) -> None:
        """Stop attaching, changing and repairing; what is steered stays so until `close` or `abandon`."""
        self._closing = True

    async def close(self) -> None:
        """Unsteer everything at once, let the proxies finish, give everything back. Returns when nothing is left."""
        self._closing = True
        targets = [worker.target for worker in self._workers.values() if worker.target is not None]
        for target in targets:
            target.detach()
        self._on_change()
        await self._tasks.aclose()
        self._workers.clear()
        await asyncio.gather(*(target.drain(self._drain_timeout) for target in [*targets, *self._draining]))

    def abandon(self) -> None:
        """Unsteer everything now, because the daemon is about to end in whatever way. Never raises."""
        self._closing = True
        for worker in self._workers.values():
            if worker.target is not None:
                worker.target.detach()

    def _count_absence(self, worker: _Worker) -> None:
        """Count the time in which no daemon ran, once, if the pod was inspected before and is to be again."""
        if self._absence is None or worker.desired is None or not worker.times.wanted:
            return
        pod = worker.desired.pod
        if ports := self._absence.take(pod, worker.times.wanted):
            worker.missed = ports
            worker.times.missed(len(ports), self._absence.seconds)
            self._tools.records.missed(pod, ports, self._absence)

    # --- one pod ----------------------------------------------------------------------------------------------------

    async def _work(self, worker: _Worker) -> None:
        while True:
            await worker.wake.wait()
            worker.wake.clear()
            if worker.backs_off:
                self._on_change()
                continue
            worker.stop_waiting()
            try:
                await self._converge(worker)
            except SidestepError as error:
                self._failed(worker, error)
            else:
                self._state_problem(worker, None)
                worker.absent_since = None
                if worker.desired is None and worker.target is None and not worker.wake.is_set():
                    del self._workers[worker.key]
                    self._on_change()
                    return
            self._on_change()

    async def _converge(self, worker: _Worker) -> None:
        """Bring the target in line with what is desired. Raises SidestepError."""
        if self._closing:
            return  # another daemon may be at work on the pod already
        target, desired = worker.target, worker.desired
        broken = target is not None and target.broken
        lost = target is not None and not worker.gone and not target.attached
        if target is not None and (desired is None or worker.gone or broken or lost or _moved(target, desired)):
            target.detach()
            worker.target = worker.applied = worker.claimed = None
            self._release(target, gone=worker.gone)
            target = None
        worker.gone = False
        if desired is None:
            return
        if broken:
            raise BugError("its pod proxy was given up because of a bug, which the log tells; another is made soon")
        if lost:
            raise SteeringLostError
        if target is None:
            target = await self._opened(worker, desired)
        if worker.applied != desired or worker.again or target.outdated:
            worker.applied, worker.again = None, False
            await target.apply(desired, drain_timeout=self._drain_timeout)
            worker.applied = desired
        else:
            target.look()

    async def _opened(self, worker: _Worker, desired: PodPlan) -> Target:
        target = Target(desired.pod, self._uids.allocate(), self._tools, times=worker.times)
        try:
            async with self._opening:
                await target.open(claim=partial(self._claim, worker), closing=worker.closing)
        except BaseException:
            await target.abandon()
            worker.claimed = None
            self._uids.release(target.uid)
            raise
        worker.target = target
        target.follow_policies(worker.closing)  # which may be others than when this began
        return target

    def _claim(self, worker: _Worker, netns: NetnsId) -> None:
        """Reserve a namespace for one target: two pods in it would steer each other's ports. Raises RefusedError."""
        for other in self._workers.values():
            if other is not worker and other.claimed == netns:
                raise RefusedError(f"its network namespace is that of pod {other.key}, which is a target already")
        worker.claimed = netns

    def _release(self, target: Target, *, gone: bool) -> None:
        self._draining.add(target)
        self._tasks.start(self._drained(target, gone=gone), name=f"drain {target.pod.key}")

    async def _drained(self, target: Target, *, gone: bool) -> None:
        try:
            if gone:
                await target.abandon()
            else:
                await target.drain(self._drain_timeout)
        finally:
            if target.netns is None:
                self._draining.discard(target)
                self._uids.release(target.uid)

    def _failed(self, worker: _Worker, error: SidestepError) -> None:
        worker.again = True
        self._state_problem(worker, None if isinstance(error, AbsentError) and self._expects_absence(worker) else error)
        loop = asyncio.get_running_loop()
        if isinstance(error, BugError):
            worker.pause = LAST_RETRY
        elif loop.time() - worker.failed_at > CALM:
            worker.pause = FIRST_RETRY
        worker.failed_at = loop.time()
        worker.retry = loop.call_later(worker.pause, self._retry, worker)
        worker.pause = min(2 * worker.pause, LAST_RETRY)

    @staticmethod
    def _retry(worker: _Worker) -> None:
        worker.retry = None
        worker.wake.set()

    def _expects_absence(self, worker: _Worker) -> bool:
        """True while a missing process is expected: the pod is starting or terminating."""
        now = asyncio.get_running_loop().time()
        if worker.absent_since is None:
            worker.absent_since = now
        leaving = worker.desired is not None and worker.desired.pod.leaving
        return leaving or now - worker.absent_since < ABSENT

    def _state_problem(self, worker: _Worker, error: SidestepError | None) -> None:
        worker.problem = str(error) if error is not None else ""
        source = Source("target", worker.key)
        if error is None:
            self._conditions.state(source, ())
            return
        kind = ConditionType.PROXY_CRASH_LOOP
        if isinstance(error, RefusedError):
            kind = ConditionType.POD_REFUSED
        elif isinstance(error, SteeringLostError):
            kind = ConditionType.STEERING_FAILED
        elif isinstance(error, ConfigurationError | KernelError):
            kind = ConditionType.NETNS_UNAVAILABLE
        self._conditions.state(source, [Condition(kind, f"pod {worker.key}", str(error))])

    def _changed(self, key: PodKey) -> None:
        """A target has changed by itself."""
        worker = self._workers.get(key)
        if worker is not None:
            worker.wake.set()

    # --- the tick ---------------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            for worker in list(self._workers.values()):
                target = worker.target
                if target is None:
                    continue
                if not target.attached:
                    worker.wake.set()
                elif not target.alive():
                    self._log.info("network namespace gone", pod=str(worker.key))
                    target.detach()
                    worker.gone = True
                    worker.wake.set()
                else:
                    if self._closing:
                        target.hand_over()
                    target.look()
                    target.sweep()
            for target in [each for each in self._draining if each.netns is not None]:
                if target.alive():
                    target.sweep()
                else:
                    await target.abandon()


def _moved(target: Target, desired: PodPlan) -> bool:
    """Whether the pod was replaced by another one, or has another namespace."""
    old, new = target.pod, desired.pod
    return (old.uid, old.ips, netns_path(old.location)) != (new.uid, new.ips, netns_path(new.location))
