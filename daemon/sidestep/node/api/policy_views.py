"""The inspection policies of this node as status, conditions of resources and metrics show them.

A pod is *programmed* with a policy once its proxy has acknowledged the planned version on every port of the pod to
which the policy applies, and each of these ports is steered or has no app. Any other pod that the policy selects is
failing: `failed` with a reason that somebody has to remove, or `pending`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING

import msgspec

from sidestep.model.condition import ConditionType
from sidestep.model.pod import PodKey, Transport
from sidestep.node.inspectors.pod_inspector import ENGINE, verdict_times
from sidestep.node.planning.inspection_times import NO_DAEMON
from sidestep.tunnel.messages import PodState
from sidestep.tunnel.views import MAX_FAILING, EngineView, GapView, InspectedView, PolicyEngineView, PolicyView

if TYPE_CHECKING:
    from sidestep.node.conditions import Conditions
    from sidestep.node.planning.plan import Plan, PortPlan
    from sidestep.node.pods.reconciler import Reconciler
    from sidestep.node.pods.target import Target
    from sidestep.node.policies import PolicyEntry, PolicyStore

_ENGINES = frozenset((ConditionType.IDS_RULES_INVALID, ConditionType.WAF_RULES_INVALID))
"""Conditions about the rules that a policy has for an engine."""
_HIT, _BYPASSED, _CLOSED = "inspection_", "inspection_bypassed_", "inspection_closed_"
"""Prefixes of counters (`proxy.connection.inspection_counts`)."""


def policy_views(
    store: PolicyStore, plan: Plan, reconciler: Reconciler, conditions: Conditions
) -> tuple[PolicyView, ...]:
    """The views of all policies that are written, those of the cluster first."""
    applying: dict[str, dict[PodKey, list[int]]] = {}
    for key, ports in plan.inspected.items():
        for number, names in ports.items():
            for name in names:
                applying.setdefault(name, {}).setdefault(key, []).append(number)
    outward: dict[str, set[PodKey]] = {}
    for key, names in plan.outward.items():
        for name in names:
            outward.setdefault(name, set()).add(key)
    selected = [*plan.inspected, *(key for key in plan.outward if key not in plan.inspected)]
    engines = {key: target.engines() for key in selected if (target := reconciler.target(key)) is not None}
    refused: dict[str, dict[PodKey, str]] = {}
    for (name, key), reason in plan.not_inspected.items():
        refused.setdefault(name, {})[key] = reason
    return tuple(
        msgspec.structs.replace(
            _view(
                entry,
                plan,
                reconciler,
                applying.get(entry.display, {}),
                refused.get(entry.display, {}),
                outward.get(entry.display, set()),
            ),
            engines=_engines(
                entry.display,
                [*dict.fromkeys((*applying.get(entry.display, ()), *sorted(outward.get(entry.display, ()))))],
                engines,
                reconciler,
            ),
            rules_problem=_rules_problem(entry, conditions),
        )
        for entry in store.entries
    )


def _rules_problem(entry: PolicyEntry, conditions: Conditions) -> str:
    about = conditions.about(f"{'InspectionPolicy' if entry.name[0] else 'ClusterInspectionPolicy'} {entry.display}")
    return next((each.text for each in about if each.type in _ENGINES), "")


def _view(
    entry: PolicyEntry,
    plan: Plan,
    reconciler: Reconciler,
    applying: Mapping[PodKey, list[int]],
    refused: Mapping[PodKey, str],
    outward: AbstractSet[PodKey],
) -> PolicyView:
    programmed: list[str] = []
    failing: list[PodState] = []
    counters: dict[str, int] = {}
    for key in sorted(applying.keys() | refused.keys() | outward):
        numbers = applying.get(key, [])
        target = reconciler.target(key)
        if key in refused:
            failing.append(PodState(str(key), "failed", refused[key]))
        elif (pending := _pending(key, numbers, plan, reconciler, target)) is not None:
            failing.append(PodState(str(key), "pending", pending))
        elif key in outward and (waiting := _pending_outward(key, plan, reconciler, target)) is not None:
            failing.append(waiting)
        else:
            programmed.append(str(key))
        counted = target.counters.ports if target is not None else {}
        found = [counted.get(number, {}) for number in numbers]
        if key in outward and target is not None:
            found.append(target.counters.outbound)
        for counts in found:
            for name, count in counts.items():
                counters[name] = counters.get(name, 0) + count
    policy = entry.in_force.policy if entry.in_force is not None else None
    return PolicyView(
        namespace=entry.name[0],
        name=entry.name[1],
        mode=policy.mode.value if policy is not None else "",
        failure_policy=policy.shown_failure_policy if policy is not None else "",
        accepted=not entry.problem,
        problem=entry.problem,
        in_force=policy is not None,
        programmed=tuple(programmed),
        failing=tuple(failing[:MAX_FAILING]),
        failing_pods=len(failing),
        bypassed=_counted(counters, _BYPASSED),
        closed=_counted(counters, _CLOSED),
        hits={
            name: count
            for name, count in _counted(counters, _HIT).items()
            if not name.startswith(("bypassed_", "closed_"))
        },
        inspected=_inspected(applying, outward, plan),
        gaps=_gaps(applying, reconciler),
    )


def _engines(
    policy: str,
    applying: Iterable[PodKey],
    engines: Mapping[PodKey, tuple[EngineView, ...]],
    reconciler: Reconciler,
) -> tuple[PolicyEngineView, ...]:
    """The engines that a policy has beside its pods, by kind."""
    found: dict[str, list[tuple[PodKey, EngineView]]] = {}
    for key in applying:
        for each in engines.get(key, ()):
            if policy in each.policies:
                found.setdefault(each.kind, []).append((key, each))
    return tuple(_engine(kind, beside, reconciler) for kind, beside in sorted(found.items()))


def _engine(kind: str, beside: Sequence[tuple[PodKey, EngineView]], reconciler: Reconciler) -> PolicyEngineView:
    views = [each for _, each in beside]
    times: dict[str, int] = {}
    if kind == ENGINE:
        for key, _ in beside:
            target = reconciler.target(key)
            for name, count in target.counters.of_engine("waf_verdicts").items() if target is not None else ():
                times[name] = times.get(name, 0) + count
    verdicts = verdict_times(times)
    missed = sum(sum(each.bypassed.values()) for each in views)
    missed += sum(each.connections.get("unfed", 0) + each.connections.get("cut", 0) for each in views)
    running = sum(each.state == "running" for each in views)
    return PolicyEngineView(
        kind=kind,
        version=max(each.version for each in views),
        pods=running,
        waiting=len(views) - running,
        rules=max(each.rules for each in views),
        memory=max(each.memory for each in views),
        restarts=sum(each.restarts for each in views),
        missed=missed,
        **verdicts,
    )


def _inspected(
    applying: Mapping[PodKey, list[int]], outward: AbstractSet[PodKey], plan: Plan
) -> tuple[InspectedView, ...]:
    """The workloads of these pods, with all of their ports, and of those pods whose own connections are meant."""
    found: dict[str, set[int]] = {}
    for key in [*applying, *outward]:
        found.setdefault(_workload(key, plan), set()).update(applying.get(key, ()))
    egress = {_workload(key, plan) for key in outward}
    return tuple(InspectedView(name, tuple(sorted(numbers)), name in egress) for name, numbers in sorted(found.items()))


def _workload(key: PodKey, plan: Plan) -> str:
    pod = plan.surveys[key].pod if key in plan.surveys else None
    kind, name = (pod.owners[-1].kind, pod.owners[-1].name) if pod is not None and pod.owners else ("pod", key.name)
    return f"{key.namespace}/{kind}/{name}"


def _gaps(applying: Mapping[PodKey, list[int]], reconciler: Reconciler) -> tuple[GapView, ...]:
    """The time in which no daemon ran, if a port of these pods was not inspected in it."""
    missed = [(each, numbers) for key, numbers in applying.items() if (each := reconciler.missed(key)) is not None]
    absences = [absence for (absence, ports), numbers in missed if not set(ports).isdisjoint(numbers)]
    if not absences:
        return ()
    return (GapView(absences[0].start, absences[0].end, NO_DAEMON.reason, len(absences)),)


def _pending(key: PodKey, numbers: list[int], plan: Plan, reconciler: Reconciler, target: Target | None) -> str | None:
    """Why a pod is not programmed yet, possibly empty; None when it is."""
    if key in plan.waiting:
        return "the pod has not been started, or its certificate has not been read yet"
    planned = plan.pods.get(key)
    ports: dict[int, PortPlan] = {}
    if planned is not None:
        ports = {port.number: port for port in planned.ports if port.transport is Transport.TCP}
    for number in numbers:
        port = ports.get(number)
        if target is None or port is None or not target.inspects(number, port.snapshot.policies):
            return reconciler.problem(key)
        if not target.takes(number, Transport.TCP) and not target.waits_for_app(number):
            return target.why_left(number, Transport.TCP)
        if reason := target.why_unjudged(port.snapshot.policies):
            return reason
    return None


def _pending_outward(key: PodKey, plan: Plan, reconciler: Reconciler, target: Target | None) -> PodState | None:
    """Why connections that a pod makes are not inspected yet, or cannot be; None when they are."""
    planned = plan.pods.get(key)
    if target is None or planned is None:
        return PodState(str(key), "pending", reconciler.problem(key))
    if target.egress.problem:
        return PodState(str(key), "failed", f"connections that the pod makes: {target.egress.problem}")
    if not target.egress.inspects(planned.egress):
        return PodState(str(key), "pending", target.absence())
    if reason := target.why_unjudged(tuple(each.policy for each in planned.egress)):
        return PodState(str(key), "pending", reason)
    return None


def _counted(counters: Mapping[str, int], prefix: str) -> dict[str, int]:
    return {name.removeprefix(prefix): count for name, count in sorted(counters.items()) if name.startswith(prefix)}
