"""The inspection policies of a cluster as `sidestep status` and `list` show them: what is written in the resources.

Whoever may not read policies, and a cluster in which their definitions are not installed, has none to show.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from sidestep.cli.table import table
from sidestep.config.field_error import FieldError
from sidestep.kube.access import ClusterAccess
from sidestep.kube.api import Api
from sidestep.kube.errors import ApiError
from sidestep.kube.policies import PLURALS, ObservedPolicy, collection_path, policy_observer
from sidestep.kube.snapshot import list_all
from sidestep.model.inspection import InspectionPolicy
from sidestep.model.text import harmless

_CONDITIONS = ("Accepted", "Programmed", "Conflicted")
_FINE = {"Accepted": "True", "Programmed": "True", "Conflicted": "False", "RulesLoaded": "True"}


MIB: Final = 1024 * 1024
MAX_GAPS: Final = 10
"""Gaps of a policy that are shown: the latest ones."""


class PolicyGapView(msgspec.Struct, frozen=True):
    """A time in which ports of so many pods of a node were not inspected. `start` and `end` are RFC 3339."""

    node: str
    start: str
    end: str
    reason: str
    pods: int


class PolicyNodeEngineView(msgspec.Struct, frozen=True):
    """The engines of one kind beside the pods of a policy on one node; fields as in `tunnel.views.PolicyEngineView`."""

    node: str
    kind: str
    version: str
    pods: int
    waiting: int
    rules: int
    memory: int
    restarts: int
    judged: int
    p50: int
    p99: int
    missed: int


class PolicyResourceView(msgspec.Struct, frozen=True):
    """An InspectionPolicy, or a ClusterInspectionPolicy, whose namespace is empty.

    `conditions` maps types to statuses; `problem` is the message of the first that is not as it should be. `bypassed`
    counts what was not inspected.
    """

    namespace: str
    name: str
    mode: str
    failure_policy: str
    conditions: dict[str, str]
    programmed_pods: int
    bypassed: int
    problem: str = ""
    gaps: tuple[PolicyGapView, ...] = ()
    engines: tuple[PolicyNodeEngineView, ...] = ()


class InspectedPorts:
    """Which policies apply to which ports, as the statuses of all nodes say.

    `more` are the policies that apply to more workloads than a status has room for.
    """

    def __init__(self, policies: Iterable[ObservedPolicy]) -> None:
        self._names: dict[tuple[str, int], list[str]] = {}
        self._outward: dict[str, list[str]] = {}
        self.more: list[str] = []
        for each in policies:
            mode = each.policy.mode.value if each.policy is not None else "an earlier version"
            name = "/".join(filter(None, each.key))
            entries = [entry for entry in each.status.nodes.values() if entry is not None]
            ports = {(at.workload, port) for entry in entries for at in entry.inspected for port in at.ports}
            for port in ports:
                self._names.setdefault(port, []).append(f"{name} ({mode})")
            for workload in {at.workload for entry in entries for at in entry.inspected if at.egress}:
                self._outward.setdefault(workload, []).append(f"{name} ({mode})")
            if any(entry.inspected_more for entry in entries):
                self.more.append(name)

    def of(self, namespace: str, kind: str, name: str, port: int) -> tuple[str, ...]:
        """The policies of a TCP port of a workload, with their modes, those of the cluster first."""
        return tuple(self._names.get((f"{namespace}/{kind}/{name}", port), ()))

    def outward(self, namespace: str, kind: str, name: str) -> tuple[str, ...]:
        """The policies of the connections that a workload makes, in the same form."""
        return tuple(self._outward.get(f"{namespace}/{kind}/{name}", ()))


async def policies(api: Api, namespace: str) -> tuple[PolicyResourceView, ...]:
    """Return the policies of a namespace, or of all, and those of the cluster. Raises ClusterError."""
    return tuple(_view(each) for each in await _observed(api, namespace))


async def written(access: ClusterAccess, namespace: str) -> list[InspectionPolicy]:
    """Return the policies of a namespace and those of the cluster, as far as they can be read. Raises ClusterError."""
    api = Api(access)
    try:
        return [each.policy for each in await _observed(api, namespace) if each.policy is not None]
    finally:
        await api.aclose()


class InspectedWorkloads(msgspec.Struct, frozen=True):
    """The workloads of a namespace to which policies apply: `kind/name` and one of the ports, "" where they apply only
    to connections that it makes. `is_cut`: a status has no room for all of them."""

    places: dict[str, str]
    is_cut: bool


async def inspected_workloads(access: ClusterAccess, namespace: str) -> InspectedWorkloads:
    """Return what the statuses of policies say of a namespace. Raises ClusterError."""
    api = Api(access)
    try:
        found = await _observed(api, namespace)
    finally:
        await api.aclose()
    entries = [entry for each in found for entry in each.status.nodes.values() if entry is not None]
    places: dict[str, str] = {}
    for at in sorted((at for entry in entries for at in entry.inspected), key=lambda at: at.workload):
        where, _, name = at.workload.partition("/")
        if where == namespace and (at.ports or name not in places):
            places[name] = str(at.ports[0]) if at.ports else ""
    return InspectedWorkloads(places, any(entry.inspected_more for entry in entries))


async def inspected_ports(api: Api, namespace: str) -> InspectedPorts:
    """Return what their statuses say of ports of a namespace, or of all. Raises ClusterError."""
    return InspectedPorts(await _observed(api, namespace))


async def _observed(api: Api, namespace: str) -> list[ObservedPolicy]:
    found: list[ObservedPolicy] = []
    for kind in PLURALS:
        observe = policy_observer(kind)
        try:
            values = await list_all(api, collection_path(kind, "" if kind.startswith("Cluster") else namespace))
        except ApiError as error:
            if error.forbidden or error.status == 404:
                continue
            raise
        for value in values:
            try:
                found.append(observe(value))
            except FieldError:
                continue  # an object without a name cannot be shown
    return sorted(found, key=lambda each: each.key)


def text(views: Sequence[PolicyResourceView]) -> Iterable[str]:
    """The policies as a table; nothing without any."""
    rows = [
        (
            f"{each.namespace}/{each.name}".lstrip("/"),
            " ".join(filter(None, (each.mode, each.failure_policy))),
            *(each.conditions.get(kind, "Unknown") for kind in _CONDITIONS),
            str(each.programmed_pods),
            str(each.bypassed),
            each.problem,
        )
        for each in views
    ]
    if rows:
        head = ("INSPECTION POLICY", "MODE", *map(str.upper, _CONDITIONS), "PODS", "NOT INSPECTED", "MESSAGE")
        yield from table(head, rows)
        for each in views:
            name = f"{each.namespace}/{each.name}".lstrip("/")
            for gap in each.gaps:
                on = f"on {gap.pods} {'pod' if gap.pods == 1 else 'pods'} of node {gap.node}"
                yield harmless(f"  {name}: not inspected {on} from {gap.start} to {gap.end} ({gap.reason})")
        yield ""
        yield from _engines(views)


def _engines(views: Sequence[PolicyResourceView]) -> Iterable[str]:
    """The engines of all policies; nothing without any."""
    rows = [
        (
            f"{each.kind} {each.version}".strip(),
            f"{view.namespace}/{view.name}".lstrip("/"),
            each.node,
            f"{each.pods} of {each.pods + each.waiting}",
            str(each.rules),
            f"{each.memory / MIB:.0f} MiB",
            str(each.restarts),
            _verdicts(each),
            str(each.missed),
        )
        for view in views
        for each in view.engines
    ]
    if rows:
        head = ("INSPECTION ENGINE", "POLICY", "NODE", "RUNNING", "RULES", "MEMORY", "RESTARTS", "VERDICTS", "MISSED")
        yield from table(head, rows)
        yield ""


def _verdicts(engine: PolicyNodeEngineView) -> str:
    if not engine.judged:
        return "-"
    times = [f"{name}<={value}ms" for name, value in (("p50", engine.p50), ("p99", engine.p99)) if value]
    return " ".join([f"judged={engine.judged}", *times])


def _view(observed: ObservedPolicy) -> PolicyResourceView:
    status, policy = observed.status, observed.policy
    gaps = [
        PolicyGapView(node, gap.start, gap.end, gap.reason, gap.pods)
        for node, entry in status.nodes.items()
        if entry is not None
        for gap in entry.gaps
    ]
    bad = [each for each in status.conditions if each.status != _FINE.get(each.type, each.status)]
    return PolicyResourceView(
        namespace=observed.namespace,
        name=observed.name,
        mode=policy.mode.value if policy is not None else "",
        failure_policy=policy.shown_failure_policy if policy is not None else "",
        conditions={each.type: each.status for each in status.conditions},
        programmed_pods=status.programmed_pods,
        bypassed=status.bypassed,
        problem=observed.problem or (bad[0].message if bad else ""),
        engines=tuple(
            PolicyNodeEngineView(node, **msgspec.structs.asdict(engine))
            for node, entry in sorted(status.nodes.items())
            if entry is not None
            for engine in entry.engines
        ),
        gaps=tuple(sorted(gaps, key=lambda gap: (gap.start, gap.node))[-MAX_GAPS:]),
    )
