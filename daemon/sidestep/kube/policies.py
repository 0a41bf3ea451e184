"""InspectionPolicies and ClusterInspectionPolicies as resources (sidestep.dev/v1alpha1): what is read of them.

`deploy/inspection.yaml` has their schema. Documents are parsed by `config.inspection`, as in local mode. One that
cannot be parsed is kept with the reason, because its earlier version may be in force.

    spec    what is inspected, written by whoever has role sidestep-inspector
    status  written by the node daemons: each patches its own entry of `nodes`, one of them the rest
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from sidestep.config.field_error import FieldError
from sidestep.config.inspection import cluster_inspection_policy, inspection_policy
from sidestep.config.schema_fault import fault_of
from sidestep.kube.paths import escape
from sidestep.kube.resource_fields import GROUP, VERSION, ResourceFields
from sidestep.kube.watch import KubeObject
from sidestep.model.inspection import InspectionPolicy

PLURALS = {"InspectionPolicy": "inspectionpolicies", "ClusterInspectionPolicy": "clusterinspectionpolicies"}
"""Kinds of policies, and the names of their collections."""

MAX_PARSED = 512
"""Policies of a kind of which it is remembered what was parsed."""
MAX_FAILING = 10
"""Failing pods, and conflicts, of one node in a status."""

MAX_GAPS = 10
"""Gaps of one node in a status: the latest ones."""
MAX_INSPECTED, MAX_INSPECTED_PORTS = 32, 16
"""Workloads of one node in a status, and ports of each; with more than 32 nodes less ..."""
MAX_INSPECTED_ALL = 1024
"""... so that those of all nodes together stay this few."""

PolicyKey = tuple[str, str]
"""(namespace, name); the namespace of a ClusterInspectionPolicy is empty."""


class DaemonEntry(ResourceFields, frozen=True, omit_defaults=False):
    """`status.nodes.NODE.daemon`: who wrote the entry. `started` orders two daemons of one node."""

    namespace: str
    pod: str
    started: str


class FailingPod(ResourceFields, frozen=True, omit_defaults=False):
    """`status.nodes.NODE.failingPods[]`. `pod` is `namespace/name`."""

    pod: str
    state: str = ""
    reason: str = ""


class InspectedWorkload(ResourceFields, frozen=True, omit_defaults=False):
    """`status.nodes.NODE.inspected[]`. `workload` is `NAMESPACE/KIND/NAME`; `egress`: the connections that it makes."""

    workload: str
    ports: tuple[int, ...] = ()
    egress: bool = False


class Gap(ResourceFields, frozen=True, omit_defaults=False):
    """`status.nodes.NODE.gaps[]`: ports of so many pods were not inspected from `start` to `end` (RFC 3339)."""

    start: str
    end: str
    reason: str
    pods: int = 0


class EngineEntry(ResourceFields, frozen=True, omit_defaults=False):
    """`status.nodes.NODE.engines[]`: the engines of one kind beside the pods of the policy, as `PolicyEngineView`.

    `memory` is in bytes, `p50` and `p99` in milliseconds.
    """

    kind: str
    version: str = ""
    pods: int = 0
    waiting: int = 0
    rules: int = 0
    memory: int = 0
    restarts: int = 0
    judged: int = 0
    p50: int = 0
    p99: int = 0
    missed: int = 0


class NodeEntry(ResourceFields, frozen=True, omit_defaults=False):
    """`status.nodes.NODE`: what one node does with the policy.

    `failing_pods` are at most 10 of the `failing` pods that the policy selects and does not apply to (yet). `bypassed`
    and `closed` count what could not be read, by reason, since the pod proxies began. `inspected` are the workloads to
    whose ports it applies, and `inspected_more` says how many there are beyond those. `gaps` are the last times in
    which nobody inspected, for reasons that outlast a node daemon.
    """

    daemon: DaemonEntry
    observed_generation: int
    accepted: bool
    problem: str = ""
    programmed: int = 0
    failing: int = 0
    failing_pods: tuple[FailingPod, ...] = ()
    bypassed: dict[str, int] = msgspec.field(default_factory=dict)
    closed: dict[str, int] = msgspec.field(default_factory=dict)
    conflicts: tuple[str, ...] = ()
    inspected: tuple[InspectedWorkload, ...] = ()
    inspected_more: int = 0
    gaps: tuple[Gap, ...] = ()
    engines: tuple[EngineEntry, ...] = ()
    rules_problem: str = ""
    """Why an engine does not have the rules that a ConfigMap has for it."""


class StatusCondition(ResourceFields, frozen=True, omit_defaults=False):
    """`status.conditions[]` (meta/v1 Condition)."""

    type: str
    status: str
    reason: str
    message: str
    last_transition_time: str
    observed_generation: int = 0


class StatusFields(ResourceFields, frozen=True):
    """`status`."""

    observed_generation: int = 0
    programmed_pods: int = 0
    bypassed: int = 0
    conditions: tuple[StatusCondition, ...] = ()
    nodes: dict[str, NodeEntry | None] = msgspec.field(default_factory=dict)


class _MetadataFields(ResourceFields, frozen=True):
    name: str
    uid: str
    namespace: str = ""
    generation: int = 0
    resource_version: str = ""


class _Envelope(ResourceFields, frozen=True):
    metadata: _MetadataFields
    status: Any = None


class ObservedPolicy(msgspec.Struct, frozen=True):
    """A policy as received. `policy` is None when its document cannot be parsed; `problem` is the reason."""

    kind: str
    namespace: str
    name: str
    uid: str
    generation: int
    resource_version: str
    policy: InspectionPolicy | None
    problem: str
    status: StatusFields

    @property
    def key(self) -> PolicyKey:
        """Its identity in an inventory."""
        return (self.namespace, self.name)

    @property
    def path(self) -> str:
        """Path of the resource at the API server."""
        return f"{collection_path(self.kind, self.namespace)}/{escape(self.name)}"


def collection_path(kind: str, namespace: str = "") -> str:
    """Return the path of all policies of a kind, in one namespace or in all."""
    scope = f"/namespaces/{escape(namespace)}" if namespace else ""
    return f"/apis/{GROUP}/{VERSION}{scope}/{PLURALS[kind]}"


def policy_observer(kind: str) -> Callable[[KubeObject], ObservedPolicy]:
    """Return what reads policies of a kind. It raises FieldError for an object without name or UID."""
    parsed = _Parsed(
        {"InspectionPolicy": inspection_policy, "ClusterInspectionPolicy": cluster_inspection_policy}[kind]
    )

    def observe(value: KubeObject) -> ObservedPolicy:
        try:
            metadata = msgspec.convert(value, _Envelope).metadata
        except msgspec.ValidationError as error:
            raise FieldError("metadata", fault_of(error)) from error
        policy, problem = parsed.of(metadata.uid, value)
        return ObservedPolicy(
            kind=kind,
            namespace=metadata.namespace,
            name=metadata.name,
            uid=metadata.uid,
            generation=metadata.generation,
            resource_version=metadata.resource_version,
            policy=policy,
            problem=problem,
            status=status_of(value),
        )

    return observe


class _Parsed:
    """Remembers what was parsed last of each of MAX_PARSED policies.

    Every node's counts in a status are another version of the resource. Parsing 256 rules takes 4 ms, and recognising
    them a tenth of that.
    """

    def __init__(self, parse: Callable[[Mapping[str, object]], InspectionPolicy]) -> None:
        self._parse = parse
        self._known: dict[str, tuple[bytes, InspectionPolicy | None, str]] = {}

    def of(self, uid: str, value: KubeObject) -> tuple[InspectionPolicy | None, str]:
        """Return the policy, or None and why it could not be parsed."""
        metadata = value.get("metadata") or {}
        names = [metadata.get("namespace"), metadata.get("name")]
        digest = hashlib.sha256(msgspec.json.encode([names, value.get("spec")])).digest()
        known = self._known.pop(uid, None)
        if known is None or known[0] != digest:
            known = (digest, *self._parsed(value))
        self._known[uid] = known
        while len(self._known) > MAX_PARSED:
            del self._known[next(iter(self._known))]
        return known[1], known[2]

    def _parsed(self, value: KubeObject) -> tuple[InspectionPolicy | None, str]:
        try:
            return self._parse(value), ""
        except FieldError as error:
            return None, f"{error.path}: {error.reason}" if error.path else error.reason


def status_of(value: KubeObject) -> StatusFields:
    """Return the status of an object; an empty one where it is not of the right form."""
    try:
        return msgspec.convert(value.get("status") or {}, StatusFields)
    except msgspec.ValidationError:
        return StatusFields()
