"""Which inspection policies apply to which ports of which pods. Pure.

A policy applies to the TCP ports that it names, in each pod that it selects. One that names none applies to every port
that may speak HTTP: those that containers declare, those that Services lead to, and those that an intercept takes. One
that is only about connections that pods make (`egress`) applies to none.
Policies stand in `InspectionPolicy.order` everywhere: those of the cluster first.

What a pod is told is bounded, because its proxy compiles and holds each of them: beyond `MAX_POLICIES` policies,
`MAX_BYTES` bytes or `MAX_INSTRUCTIONS` the later ones are left out, and a condition says so. Those of the cluster come
first, so that nobody in a namespace can crowd them out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from sidestep.model.errors import RefusedError
from sidestep.model.filter import HeaderTest
from sidestep.model.inspection import ExistingConnections, InspectionPolicy, Mode, selects
from sidestep.model.pod import ContainerPort, PodKey, Transport
from sidestep.policy.pod_ports import ports_of
from sidestep.policy.workloads import canonical_kind, pods_of

if TYPE_CHECKING:
    from sidestep.model.intercept import Intercept, WorkloadRef
    from sidestep.model.inventory import Inventory
    from sidestep.model.pod import Pod
    from sidestep.model.workload import LabelSelector
    from sidestep.policy.survey import PodSurvey
    from sidestep.policy.waf import PolicyWaf
    from sidestep.snapshots.egress import EgressSnapshot
    from sidestep.snapshots.inspection import PolicySnapshot

MAX_POLICIES = 16
"""Policies that apply to one pod. Each takes some 10 ms to compile, in which its proxy serves nobody ..."""
MAX_INSTRUCTIONS = 128 * 1024
"""... and besides about 2 microseconds for each of these, the instructions of RE2's programs for its regexes."""
MAX_BYTES = 4 * 1024 * 1024
"""Bytes of all policies of all ports of one pod, as its proxy is told (`aio.packets.MAX_PAYLOAD` bounds a message)."""

MAX_PORTS = 256
"""Ports of one pod that are inspected. The kernel's maps (`steering.layout`) have room for twice as many in two address
families. A pod with more would have no port steered at all, and whoever writes a pod decides how many it declares."""


class PlannedPolicy(msgspec.Struct, frozen=True, eq=False):
    """An accepted policy: what it selects, and what pod proxies are told of it, which has `size` bytes.

    `instructions` are those of its regexes (`AcceptedPolicy.instructions`). `waf` is what it says of a web application
    firewall, with the custom rules that are in force, `egress` what pod proxies are told of connections that pods make,
    and `egress_waf` what it says of a firewall of those.

    Compared by identity: whoever accepts policies keeps the object while the policy is the same.
    """

    policy: InspectionPolicy
    snapshot: PolicySnapshot
    size: int
    instructions: int = 0
    waf: PolicyWaf | None = None
    egress: EgressSnapshot | None = None
    egress_waf: PolicyWaf | None = None

    @property
    def display(self) -> str:
        """As `InspectionPolicy.display`."""
        return self.policy.display


Policies = tuple[PlannedPolicy, ...]
"""In `InspectionPolicy.order`."""


class Selections:
    """Whether policies' pod selectors select pods. Answers are kept while a pod has the same labels.

    Pods change all the time, and authors of policies decide how long it takes: 256 selectors of 64 expressions take
    half a second for 100 pods.
    """

    def __init__(self) -> None:
        self._last: dict[PodKey, tuple[Mapping[str, str], dict[PlannedPolicy, bool]]] = {}
        self._now: dict[PodKey, tuple[Mapping[str, str], dict[PlannedPolicy, bool]]] = {}

    def begin(self) -> None:
        """Begin a round. Answers that it does not ask for are forgotten after it."""
        self._last, self._now = self._now, {}

    def select(self, each: PlannedPolicy, chosen: LabelSelector, pod: Pod) -> bool:
        """Whether the policy's pod selector, `chosen`, selects the pod."""
        present = self._now.get(pod.key)
        if present is None:
            present = self._now[pod.key] = (pod.labels, {})
        before = self._last.get(pod.key)
        known = before[1].get(each) if before is not None and before[0] == pod.labels else None
        found = present[1][each] = selects(chosen, pod.labels) if known is None else known
        return found


class Placements:
    """Which policies select which pods, and apply to which of their ports. Found anew only when something is other."""

    def __init__(self) -> None:
        self._known: tuple[Inventory, Policies, Mapping[PodKey, Policies]] | None = None
        self._selections = Selections()
        self.undeclared: Mapping[PodKey, set[ContainerPort]] = {}
        """As `ports_meant`, for all pods that the policies last asked about select."""
        self._pods: dict[PodKey, tuple[PodSurvey, Policies, InspectedPod]] = {}

    def of(self, inventory: Inventory, policies: Policies) -> Mapping[PodKey, Policies]:
        """As `placed`."""
        known = self._known
        if known is None or known[0] is not inventory or known[1] != policies:
            self._selections.begin()
            known = self._known = (inventory, policies, placed(inventory, policies, self._selections))
            self.undeclared = {
                key: ports_meant(inventory.pods[key], inventory, selecting) for key, selecting in known[2].items()
            }
        return known[2]

    def inspected(
        self, placed: Mapping[PodKey, Policies], surveyed: Mapping[PodKey, PodSurvey]
    ) -> dict[PodKey, InspectedPod]:
        """As `inspected_pod`, for all pods that policies select."""
        before, self._pods = self._pods, {}
        for key, policies in placed.items():
            known = before.get(key)
            if known is None or known[0] is not surveyed[key] or known[1] != policies:
                known = (surveyed[key], policies, inspected_pod(surveyed[key], policies))
            self._pods[key] = known
        return {key: known[2] for key, known in self._pods.items()}


def placed(inventory: Inventory, policies: Policies, selections: Selections | None = None) -> Mapping[PodKey, Policies]:
    """The policies that select each pod; pods that have ended, and those that none selects, are left out.

    `selections` are those of earlier questions, which change what an answer costs and never what it says.
    """
    if not policies:
        return {}
    selections = Selections() if selections is None else selections
    by_namespace: dict[str, list[Pod]] = {}
    for pod in inventory.index.living:
        by_namespace.setdefault(pod.key.namespace, []).append(pod)
    found: dict[PodKey, list[PlannedPolicy]] = {}
    for each in policies:
        for pod in _selected(each, inventory, by_namespace, selections):
            found.setdefault(pod.key, []).append(each)
    return {key: tuple(selecting) for key, selecting in found.items()}


def _selected(
    each: PlannedPolicy, inventory: Inventory, by_namespace: Mapping[str, Sequence[Pod]], selections: Selections
) -> Iterable[Pod]:
    policy = each.policy
    if policy.workload is not None:
        return _pods_of(policy.workload, policy.namespace, inventory)
    chosen = policy.pod_selector
    if chosen is None:
        return ()
    namespaces: Iterable[str] = (policy.namespace,)
    if policy.of_cluster:
        wide = policy.namespace_selector
        namespaces = [name for name in by_namespace if wide is not None and selects(wide, inventory.labels_of(name))]
    pods = (pod for name in namespaces for pod in by_namespace.get(name, ()))
    return [pod for pod in pods if selections.select(each, chosen, pod)]


def _pods_of(workload: WorkloadRef, namespace: str, inventory: Inventory) -> Iterable[Pod]:
    """The pods of a workload; where several kinds carry a name that is given without a kind, those of all of them.

    Whoever may create an object of that name, such as a Job, takes no pod out of a policy by it.
    """
    kinds = inventory.index.kinds(namespace, workload.name)
    if workload.kind:
        kinds &= {canonical_kind(workload.kind)}
    pods = (pod for kind in kinds for pod in inventory.index.covered(namespace, kind, workload.name))
    return {pod.key: pod for pod in pods}.values()


def ports_meant(pod: Pod, inventory: Inventory, policies: Policies) -> set[ContainerPort]:
    """The TCP ports that policies may apply to although no container declares them: by number, or through a Service."""
    inward = [each.policy for each in policies if each.policy.is_inward]
    found = {ContainerPort(port) for policy in inward for port in policy.ports if isinstance(port, int)}
    if any(not policy.ports for policy in inward):
        found.update(ports_of(pod, inventory).service_targets(Transport.TCP))
    declared = {port.number for port in pod.ports if port.transport is Transport.TCP}
    return {port for port in found if port.number not in declared}


@dataclass(slots=True)
class InspectedPod:
    """The policies of each TCP port of a pod. `problems`: by the reason, the names of policies that are not carried out
    on all of its ports."""

    ports: dict[int, Policies] = field(default_factory=dict)
    problems: dict[str, list[str]] = field(default_factory=dict)

    @property
    def closing(self) -> frozenset[int]:
        """The ports on which a policy fails closed."""
        return frozenset(number for number, applying in self.ports.items() if closes(applying))

    @property
    def strictness(self) -> int:
        """How much is lost where the pod's ports are not inspected (`strictness`)."""
        return strictness(each.policy for applying in self.ports.values() for each in applying)


def strictness(policies: Iterable[InspectionPolicy]) -> int:
    """How much is lost where policies are not carried out: 2 if one fails closed, 1 if one enforces, else 0."""
    return max((2 if each.closes else int(each.mode is Mode.ENFORCE) for each in policies), default=0)


def inspected_pod(found: PodSurvey, policies: Policies) -> InspectedPod:
    """Say which of the policies that select a pod apply to which of its ports."""
    policies = tuple(each for each in policies if each.policy.is_inward)
    ports: dict[int, list[PlannedPolicy]] = {}
    problems: dict[str, list[str]] = {}
    room, instructions = MAX_BYTES, MAX_INSTRUCTIONS
    possible = _possible(found, policies[:MAX_POLICIES])
    for count, each in enumerate(policies):
        meant, lacking = _numbers(found, each.policy)
        wanted = frozenset(meant)
        numbers = [number for number in possible if number in wanted]
        problem = f"the pod has no TCP port {', '.join(lacking)}" if lacking else ""
        if len(numbers) < len(meant):
            problem = f"more than {MAX_PORTS} ports of the pod would be inspected"
        fitting = numbers[: room // max(each.size, 1)]
        if count >= MAX_POLICIES:
            numbers, problem = [], f"more than {MAX_POLICIES} policies select the pod"
        elif each.instructions > instructions:
            numbers, problem = [], "the regexes of the policies that select the pod are too large together"
        elif len(fitting) < len(numbers):
            numbers, problem = fitting, f"the policies of its ports have more than {MAX_BYTES // 2**20} MiB together"
        if numbers:
            room, instructions = room - each.size * len(numbers), instructions - each.instructions
        for number in numbers:
            ports.setdefault(number, []).append(each)
        if problem:
            problems.setdefault(problem, []).append(each.display)
    return InspectedPod({number: tuple(applying) for number, applying in sorted(ports.items())}, problems)


def _possible(found: PodSurvey, policies: Policies) -> list[int]:
    """The ports that are inspected, and in which order where there is no room for all.

    Those that policies of the cluster mean come first, then those that a policy names, then those that Services lead
    to, then the others by number.
    """
    tiers: dict[tuple[bool, bool], set[int]] = {}
    for each in policies:
        tier = (not each.policy.of_cluster, not each.policy.ports)
        tiers.setdefault(tier, set()).update(_numbers(found, each.policy)[0])
    led_to = {each.port.number for each in found.ports if each.resolved.service_ports}
    possible: dict[int, None] = {}
    for _, numbers in sorted(tiers.items()):
        possible.update(dict.fromkeys(sorted(numbers, key=lambda number: (number not in led_to, number))))
    return [*possible][:MAX_PORTS]


def _numbers(found: PodSurvey, policy: InspectionPolicy) -> tuple[list[int], list[str]]:
    """The ports that a policy means in a pod, and the names that mean none."""
    surveyed = [each for each in found.ports if each.port.transport is Transport.TCP]
    if not policy.ports:
        return [each.port.number for each in surveyed if each.protocol.http_filters], []
    numbers: dict[int, None] = {}
    lacking = []
    for port in policy.ports:
        meant = [each.port.number for each in surveyed if port in (each.port.number, each.port.name)]
        numbers.update(dict.fromkeys(meant))
        if not meant:
            lacking.append(str(port))
    return list(numbers), lacking


def enforcing(policies: Policies) -> PlannedPolicy | None:
    """The first policy that enforces."""
    return next((each for each in policies if each.policy.mode is Mode.ENFORCE), None)


def closes(policies: Policies) -> bool:
    """Whether what cannot be inspected is closed."""
    return any(each.policy.closes for each in policies)


def resets(policies: Policies) -> frozenset[str]:
    """Names for the policies that want older connections to be reset, which no uid of an intercept equals."""
    return frozenset(
        f"policy {each.display}" for each in policies if each.policy.existing_connections is ExistingConnections.RESET
    )


def is_overruled(
    intercept: Intercept, inventory: Inventory, placed: Mapping[PodKey, Policies], look: Callable[..., PodSurvey]
) -> bool:
    """Whether policies that enforce leave a global intercept no port in any pod: then it stands in nobody's way.

    `look` makes the survey of a pod with further ports.
    """
    if not placed or not intercept.takes_whole or intercept.transport is not Transport.TCP:
        return False
    try:
        pods = pods_of(intercept, inventory)
        for pod in pods:
            policies = placed.get(pod.key, ())
            if enforcing(policies) is None:
                return False
            meant = [each.port for each in ports_of(pod, inventory).resolve(intercept.port)]
            ports = inspected_pod(look(pod, extra_ports=meant), policies).ports
            if any(enforcing(ports.get(port.number, ())) is None for port in meant):
                return False
    except RefusedError:
        return False
    return bool(pods)


def filter_refusal(intercept: Intercept, policies: Policies, number: int) -> str:
    """Why an inspection is refused on a port to which these policies apply; empty if it is not.

    Its records hide the value of a header that a policy redacts. Which requests it tells must not give that away: a
    filter on the value is tried letter by letter.
    """
    if not intercept.records:
        return ""
    asked = {_plain(each.name) for each in intercept.filter.headers if each.test is not HeaderTest.PRESENT}
    for each in policies if asked else ():
        for name in each.policy.redaction.headers:
            if _plain(name) in asked:
                return (
                    f"inspection policy {each.display} redacts {name} on port {number}: an inspection may ask whether "
                    "a request has it, not for its value"
                )
    return ""


def _plain(name: str) -> str:
    """A header's name as it is compared: apps take `_` for `-`."""
    return name.lower().replace("_", "-")


def intercept_refusal(policy: InspectionPolicy, number: int) -> str:
    """Why a global intercept is refused on a port."""
    return (
        f"inspection policy {policy.display} enforces on port {number}, and a global intercept would carry its "
        "connections unread: add a filter, or end the policy"
    )
