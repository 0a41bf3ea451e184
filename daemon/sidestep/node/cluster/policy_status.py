"""Status of an inspection policy: this node's entry, and the aggregate of the entries of all nodes. Pure.

A node has an entry while it has pods that the policy selects. The rest of the status is a function of all entries. One
node writes it: the first by name of those with an entry, or, while there is none, the first that notices.

    Accepted     the document as it is written is in force; False with the reason, even while an earlier version applies
    Programmed   every pod that it selects is inspected by it
    Conflicted   somebody asks for what it rules out: an intercept of a whole port on which it enforces
    RulesLoaded  False while an engine (`ids`, `waf`) lacks the rules of a ConfigMap, with the reason. There is no such
                 condition on a policy that never had one
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from sidestep.kube.policies import (
    MAX_FAILING,
    MAX_GAPS,
    MAX_INSPECTED,
    MAX_INSPECTED_ALL,
    MAX_INSPECTED_PORTS,
    DaemonEntry,
    EngineEntry,
    FailingPod,
    Gap,
    InspectedWorkload,
    NodeEntry,
    ObservedPolicy,
    StatusCondition,
    StatusFields,
)
from sidestep.model.condition import ConditionType
from sidestep.model.inspection import Mode
from sidestep.model.text import harmless
from sidestep.node.planning.plan import Plan
from sidestep.node.policies import CHECKING
from sidestep.policy.survey import port_subject
from sidestep.tunnel.views import PolicyView

FAILED: Final = "failed"
"""State of a pod that stays without inspection until somebody acts."""

Nodes = Mapping[str, NodeEntry | None]


def entry_of(
    view: PolicyView,
    generation: int,
    own: DaemonEntry,
    conflicts: Sequence[str],
    present: NodeEntry | None = None,
    *,
    nodes: int = 1,
) -> NodeEntry | None:
    """Return what this node says of a policy; None while it has no pod that the policy selects.

    `present` is its entry as it stands, whose gaps are kept. `nodes` is how many nodes have entries.
    """
    if not view.programmed and not view.failing_pods:
        return None
    named = view.inspected[: min(MAX_INSPECTED, max(1, MAX_INSPECTED_ALL // max(1, nodes)))]
    return NodeEntry(
        daemon=own,
        observed_generation=generation,
        accepted=view.accepted,
        problem=harmless(view.problem),
        programmed=len(view.programmed),
        failing=view.failing_pods,
        failing_pods=tuple(
            FailingPod(each.pod, each.state, harmless(each.detail)) for each in view.failing[:MAX_FAILING]
        ),
        bypassed=dict(view.bypassed),
        closed=dict(view.closed),
        conflicts=tuple(conflicts[:MAX_FAILING]),
        inspected=tuple(
            InspectedWorkload(each.workload, each.ports[:MAX_INSPECTED_PORTS], each.egress) for each in named
        ),
        inspected_more=len(view.inspected) - len(named),
        gaps=_gaps(view, () if present is None else present.gaps),
        engines=tuple(EngineEntry(**msgspec.structs.asdict(each)) for each in view.engines),
        rules_problem=harmless(view.rules_problem),
    )


def _gaps(view: PolicyView, before: Sequence[Gap]) -> tuple[Gap, ...]:
    """The gaps that earlier daemons have written and those that this one knows, the latest, in order of time.

    The pods of a gap are found one after the other in the first minute of a daemon, and may be gone later.
    """
    found = {(each.start, each.reason): each for each in before}
    for each in view.gaps:
        start, end = _time(each.start), _time(each.end)
        known = found.get((start, each.reason))
        pods = max(each.pods, 0 if known is None else known.pods)
        found[start, each.reason] = Gap(start, end, each.reason, pods)
    return tuple(sorted(found.values(), key=lambda each: (each.start, each.reason)))[-MAX_GAPS:]


def _time(seconds: float) -> str:
    """RFC 3339, in UTC, to the millisecond."""
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def conflicts_of(plan: Plan, views: Sequence[PolicyView]) -> dict[str, list[str]]:
    """Return, by the name of each policy that enforces, the ports of pods on which an intercept is refused."""
    enforcing = {_display(each) for each in views if each.mode == Mode.ENFORCE}
    found: dict[str, list[str]] = {}
    for key, ports in sorted(plan.inspected.items()):
        subjects = {each.subject for each in plan.conditions.get(key, ()) if each.type is ConditionType.POLICY_ENFORCED}
        for number, names in ports.items():
            if port_subject(key, number) in subjects:
                for name in enforcing.intersection(names):
                    found.setdefault(name, []).append(f"an intercept of {port_subject(key, number)} is refused")
    return found


def without_counts(entry: NodeEntry | None) -> NodeEntry | None:
    """Return an entry without what changes with traffic, and is therefore written less often."""
    return None if entry is None else msgspec.structs.replace(entry, bypassed={}, closed={}, engines=())


def patch_of(entry: NodeEntry | None, present: NodeEntry | None) -> dict[str, Any] | None:
    """Return the merge patch that makes the entry out of the present one: counts that are gone are null."""
    if entry is None:
        return None
    value: dict[str, Any] = msgspec.to_builtins(entry)
    if present is not None:
        for name, before in (("bypassed", present.bypassed), ("closed", present.closed)):
            value[name] = {**dict.fromkeys(before), **value[name]}
    return value


def is_ours(entry: NodeEntry | None, own: DaemonEntry) -> bool:
    """Whether this daemon may write the node's entry: it is absent, its own, or that of one that started earlier."""
    return entry is None or entry.daemon == own or (entry.daemon.started, entry.daemon.pod) < (own.started, own.pod)


def reporting_node(nodes: Nodes) -> str:
    """Return the node that writes the aggregate; "" while no node has an entry."""
    return min((name for name, entry in nodes.items() if entry is not None), default="")


def aggregate(observed: ObservedPolicy, view: PolicyView, nodes: Nodes, *, now: str) -> dict[str, Any]:
    """Return the fields of the status other than `nodes`; `now` is RFC 3339. Unchanged conditions keep their time.

    `view` is this node's own; its word on whether the policy is accepted counts while no node has an entry.
    """
    before, generation = observed.status, observed.generation
    there = [entry for _, entry in sorted(nodes.items()) if entry is not None]
    programmed = sum(entry.programmed for entry in there)
    accepted = _accepted(view, there, generation, before)
    texts = {
        "Accepted": accepted,
        "Programmed": _programmed(there, programmed, generation, is_accepted=accepted[0] == "True"),
        "Conflicted": _conflicted(there),
    }
    loaded = _rules_loaded(there, before)
    if loaded is not None:
        texts["RulesLoaded"] = loaded
    return {
        "observedGeneration": generation,
        "programmedPods": programmed,
        "bypassed": sum(sum(entry.bypassed.values()) for entry in there),
        "conditions": msgspec.to_builtins(
            [_condition(kind, *text, generation, before=before, now=now) for kind, text in texts.items()]
        ),
    }


def differs(wanted: Mapping[str, Any], status: StatusFields, *, with_counts: bool) -> bool:
    """Whether the fields of `aggregate` differ from those of the status."""
    present = {
        "observedGeneration": status.observed_generation,
        "programmedPods": status.programmed_pods,
        "bypassed": status.bypassed if with_counts else wanted["bypassed"],
        "conditions": msgspec.to_builtins(list(status.conditions)),
    }
    return wanted != present


# --- conditions -----------------------------------------------------------------------------------------------------

_Text = tuple[str, str, str]
"""Status, reason and message of a condition."""


def _accepted(view: PolicyView, there: Sequence[NodeEntry], generation: int, before: StatusFields) -> _Text:
    said = [(entry.accepted, entry.problem) for entry in there if entry.observed_generation == generation]
    if not there:
        known = _known(before, "Accepted")
        if known is not None and known.observed_generation == generation and known.status != "Unknown":
            return known.status, known.reason, known.message  # nodes whose probes disagree do not take turns
        said = [(view.accepted, view.problem)]
    problems = [problem for accepted, problem in said if not accepted and problem != CHECKING]
    if problems:
        return "False", "Invalid", problems[0]
    if said and all(accepted for accepted, _ in said):
        return "True", "Accepted", "it is in force"
    return "Unknown", "Pending", CHECKING


def _programmed(there: Sequence[NodeEntry], programmed: int, generation: int, *, is_accepted: bool) -> _Text:
    earlier = "" if is_accepted else "an earlier version: "
    if not there:
        if not is_accepted:
            return "False", "NotAccepted", "no version of it is in force"
        return "False", "NoPods", "it selects no pod that a node daemon serves"
    failing = [pod for entry in there for pod in entry.failing_pods]
    selected = programmed + sum(entry.failing for entry in there)
    on = f"{earlier}on {programmed} of {selected} {'pod' if selected == 1 else 'pods'}"
    if failing:
        first = next((pod for pod in failing if pod.state == FAILED), failing[0])
        text = f"{on}; {first.pod} is {first.state}" + (f": {first.reason}" if first.reason else "")
        return "False", "Failing" if first.state == FAILED else "Pending", text
    if any(entry.observed_generation != generation for entry in there):
        return "False", "Pending", f"{on}; a node has not taken the latest version yet"
    return ("True", "Programmed", on) if is_accepted else ("False", "NotAccepted", on)


def _conflicted(there: Sequence[NodeEntry]) -> _Text:
    conflicts = [each for entry in there for each in entry.conflicts]
    if not conflicts:
        return "False", "NoConflict", "nothing contradicts it"
    more = f" (and {len(conflicts) - 1} more)" if len(conflicts) > 1 else ""
    return "True", "InterceptRefused", f"{conflicts[0]}{more}"


def _rules_loaded(there: Sequence[NodeEntry], before: StatusFields) -> _Text | None:
    problem = next((entry.rules_problem for entry in there if entry.rules_problem), "")
    if problem:
        return "False", "Invalid", problem
    if _known(before, "RulesLoaded") is None:
        return None
    return "True", "Loaded", "its engines have its rules"


def _condition(
    kind: str, status: str, reason: str, message: str, generation: int, *, before: StatusFields, now: str
) -> StatusCondition:
    old = _known(before, kind)
    since = now if old is None or old.status != status else old.last_transition_time
    return StatusCondition(kind, status, reason, harmless(message), since, generation)


def _known(status: StatusFields, kind: str) -> StatusCondition | None:
    return next((each for each in status.conditions if each.type == kind), None)


def _display(view: PolicyView) -> str:
    """As `InspectionPolicy.display`."""
    return f"{view.namespace}/{view.name}" if view.namespace else view.name
