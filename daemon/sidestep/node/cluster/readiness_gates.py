"""Keeps pods unready until they are inspected, where their spec asks for it: readiness gate `sidestep.dev/inspected`.

A new pod is open until its policies are programmed in it. A pod whose spec names this gate becomes ready, and gets
traffic from Services, only once they are (https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/,
"Pod readiness"). The daemon of its node writes the pod's condition of that type:

    True     every policy that selects the pod is programmed, or none does. A policy that cannot be carried out in the
             pod and does not fail closed is not waited for
    False    some policy is not programmed, or fails closed and cannot be carried out

It becomes true only when the pod's containers are ready and `SETTLING` has passed since, in which a port that has begun
to listen is noticed and steered. Once true it becomes false only after `PATIENCE`, so that a pod proxy that is replaced
changes nothing.
Writing it takes the role sidestep-readiness, which nobody has unless it is bound in the pod's namespace.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from sidestep.kube.api import Api
from sidestep.kube.conversion import READINESS_GATE, ObservedPod
from sidestep.kube.errors import ApiError
from sidestep.kube.paths import escape
from sidestep.kube.resources import micro_time
from sidestep.model.condition import Condition, ConditionType
from sidestep.model.errors import ClusterError
from sidestep.model.inspection import FailurePolicy, Mode
from sidestep.model.pod import PodKey
from sidestep.model.text import harmless
from sidestep.node.cluster.policy_publisher import Planned, PolicyViews
from sidestep.node.conditions import Conditions, Source
from sidestep.node.planning.plan import Plan
from sidestep.node.policies import CHECKING
from sidestep.observability.logs import get_logger
from sidestep.tunnel.views import PolicyView

TICK: Final = 0.5
"""Seconds between two looks."""
SETTLING: Final = 1.0
"""Seconds for which an open gate has to stay open before that is written; listeners are looked for twice a second."""
PATIENCE: Final = 5.0
"""Seconds for which a pod has to be uninspected before its condition becomes false again."""
REFUSED_AGAIN: Final = 15.0
"""Seconds before a condition is written again that the API server has refused."""
FAILED_AGAIN: Final = 5.0
"""Seconds without writes while the API server cannot be reached."""
STRATEGIC_MERGE: Final = "application/strategic-merge-patch+json"
"""Merges conditions by their type, which RFC 7386 does not."""


class GateState(msgspec.Struct, frozen=True):
    """The condition as it should be."""

    is_open: bool
    reason: str
    message: str


def gate_state(key: PodKey, plan: Plan, views: Sequence[PolicyView]) -> GateState | None:
    """Return the state of a pod's gate; None while it is not known: the pod or a new policy is being looked at."""
    views = [each for each in views if each.namespace in ("", key.namespace)]  # no other namespace's select it
    if key not in plan.surveys or any(each.problem == CHECKING and not each.in_force for each in views):
        return None
    selecting = {name for names in plan.inspected.get(key, {}).values() for name in names}
    applied = []
    for view in views:
        name = f"{view.namespace}/{view.name}" if view.namespace else view.name
        refusal = plan.not_inspected.get((name, key))
        if refusal is None and name not in selecting:
            continue
        if refusal is None and str(key) not in view.programmed:
            return GateState(False, "NotProgrammed", f"policy {name} is not programmed yet")
        if refusal is None:
            applied.append(name)
        elif view.mode == Mode.ENFORCE and view.failure_policy == FailurePolicy.FAIL:
            return GateState(False, "NotInspected", f"policy {name} cannot be carried out: {refusal}")
    text = f"inspected by {', '.join(applied)}" if applied else "no policy is carried out in it"
    return GateState(True, "Inspected" if applied else "NoPolicy", text)


@dataclass(slots=True)
class _Progress:
    """What is known of one pod that has the gate."""

    since: float = 0.0
    is_open: bool | None = None
    """What the gate should be, since when."""
    not_before: float = 0.0
    """Time of the next write."""


@dataclass(slots=True)
class ReadinessGates:
    """See the module. `service_account` is `namespace:name`, for the command that grants the right."""

    api: Api
    pods: Callable[[], tuple[ObservedPod, ...]]
    controller: Planned
    views: PolicyViews
    conditions: Conditions
    service_account: str
    now: Callable[[], float]
    _progress: dict[PodKey, _Progress] = field(default_factory=dict)

    async def run(self) -> None:
        """Write conditions until cancelled."""
        log = get_logger("readiness")
        while True:
            try:
                await self.once()
            except ClusterError as error:
                log.warning("readiness gate not written", reason=str(error))
                await asyncio.sleep(FAILED_AGAIN)
            await asyncio.sleep(TICK)

    async def once(self) -> None:
        """Write the conditions that differ now. Raises ClusterError."""
        gated = {
            each.object.pod.key: each for each in self.pods() if each.gate is not None and not each.object.pod.ended
        }
        for key in self._progress.keys() - gated.keys():
            del self._progress[key]
            self.conditions.state(_source(key), ())
        views = self.views.policies() if gated else ()
        for key, pod in gated.items():
            state = gate_state(key, self.controller.plan, views)
            if state is not None:
                await self._look_at(pod, state, self._progress.setdefault(key, _Progress()))

    async def _look_at(self, pod: ObservedPod, state: GateState, progress: _Progress) -> None:
        now, gate = self.now(), pod.gate
        if gate is None:
            return
        is_open = state.is_open and (gate.containers_ready or gate.status == "True")
        if progress.is_open is not is_open:
            progress.is_open, progress.since = is_open, now
        wanted = "True" if is_open else "False"
        pause = SETTLING if is_open else PATIENCE if gate.status == "True" else 0.0
        if gate.status == wanted or now < progress.not_before or now - progress.since < pause:
            return
        progress.not_before = now + REFUSED_AGAIN
        if state.is_open and not is_open:
            state = GateState(False, "ContainersNotReady", "the containers are not ready yet")
        if await self._write(pod, wanted, state):
            progress.not_before = now + TICK  # the watch may not have shown it yet

    async def _write(self, pod: ObservedPod, status: str, state: GateState) -> bool:
        """Write the condition; returns whether that was possible. Raises ClusterError."""
        key = pod.object.pod.key
        condition = {
            "type": READINESS_GATE,
            "status": status,
            "reason": state.reason,
            "message": harmless(state.message),
            "lastTransitionTime": micro_time(dt.datetime.now(dt.UTC))[:19] + "Z",
        }
        body = {"metadata": {"uid": pod.object.pod.uid}, "status": {"conditions": [condition]}}
        path = f"/api/v1/namespaces/{escape(key.namespace)}/pods/{escape(key.name)}/status"
        try:
            await self.api.patch(path, msgspec.json.encode(body), kind=STRATEGIC_MERGE)
        except ApiError as error:
            if error.status in {404, 409}:
                return False  # another pod of this name
            if error.forbidden:
                self.conditions.state(_source(key), [self._advice(key)])
            else:
                get_logger("readiness").warning("readiness gate not written", pod=str(key), reason=str(error))
            return False  # which holds up no other pod
        self.conditions.state(_source(key), ())
        return True

    def _advice(self, key: PodKey) -> Condition:
        text = (
            f"the pod waits for readiness gate {READINESS_GATE}, which this daemon may not write; an administrator "
            f"allows it with: kubectl create rolebinding sidestep-readiness --clusterrole=sidestep-readiness "
            f"--serviceaccount={self.service_account} -n {key.namespace}"
        )
        return Condition(ConditionType.READINESS_FORBIDDEN, f"pod {key}", text)


def _source(key: PodKey) -> Source:
    return Source("readiness", key)
