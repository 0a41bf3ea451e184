"""Converts objects of the API server into model objects, with the converters used for manifests, and drops unused
parts.

Of annotations only those that Sidestep reads are kept. Annotations of a ReplicaSet owned by a Deployment are dropped:
the Deployment controller copies them there and never removes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from sidestep.config import objects
from sidestep.kube.endpoints import slice_of
from sidestep.kube.policies import PLURALS, collection_path, policy_observer
from sidestep.kube.watch import KubeObject
from sidestep.model.workload import Workload

READINESS_GATE = "sidestep.dev/inspected"
"""Type of the condition of a pod that is true once the pod is inspected (core/v1 PodReadinessGate)."""
KEPT_ANNOTATIONS = ("telepresence.io/", "sidestep.dev/")
"""Prefixes of the annotations that are kept; others can be large."""


class ReadinessGate(msgspec.Struct, frozen=True):
    """What a pod's status says: `status` of the condition READINESS_GATE ("" while there is none)."""

    status: str
    containers_ready: bool


class ObservedPod(msgspec.Struct, frozen=True):
    """A pod as received from the API server. `containers` maps container ids, without the runtime's prefix, to
    names.
    """

    object: objects.PodObject
    containers: Mapping[str, str]
    gate: ReadinessGate | None = None
    """Set if the pod's spec asks for READINESS_GATE."""


class Collection(msgspec.Struct, frozen=True):
    """A collection of the API. `paths` are relative to /apis or /api, with {} for the scope; newest version first."""

    name: str
    paths: tuple[str, ...]
    convert: Callable[[KubeObject], Any]
    metadata_only: bool = False
    optional: bool = False
    """Whether its definition may not be installed."""

    def scoped(self, namespace: str = "") -> tuple[str, ...]:
        """Return the paths for one namespace, or for all namespaces."""
        scope = f"namespaces/{namespace}/" if namespace else ""
        return tuple(path.format(scope) for path in self.paths)


def trimmed(value: KubeObject) -> dict[str, Any]:
    """Return the object without the fields that are never read."""
    metadata = dict(value.get("metadata") or {})
    metadata.pop("managedFields", None)
    annotations = metadata.get("annotations") or {}
    metadata["annotations"] = {name: text for name, text in annotations.items() if name.startswith(KEPT_ANNOTATIONS)}
    return {**value, "metadata": metadata}


def converted(group: str, kind: str) -> Callable[[KubeObject], objects.Converted]:
    """Return the converter of a known kind. The converter raises FieldError."""
    found = objects.converter(group, kind)
    assert found is not None, kind  # noqa: S101 - the kinds above are all known
    return found


def workload(group: str, kind: str) -> Callable[[KubeObject], objects.Converted]:
    """Return a workload converter that drops the annotations a ReplicaSet has copied. The converter raises
    FieldError.
    """
    convert = converted(group, kind)

    def without_copies(value: KubeObject) -> objects.Converted:
        found = convert(value)
        if isinstance(found, Workload) and kind == "ReplicaSet" and found.owners:
            return replace(found, annotations={})
        return found

    return without_copies


def pod(value: KubeObject) -> ObservedPod:
    """Convert a pod, with the ids of its running containers. Raises FieldError."""
    found = converted("", "Pod")(value)
    assert isinstance(found, objects.PodObject)  # noqa: S101 - the converter of pods
    leaving = bool((value.get("metadata") or {}).get("deletionTimestamp"))
    return ObservedPod(replace(found, pod=replace(found.pod, leaving=leaving)), container_ids(value), _gate(value))


def _gate(value: KubeObject) -> ReadinessGate | None:
    gates = (value.get("spec") or {}).get("readinessGates") or ()
    if not any(isinstance(each, dict) and each.get("conditionType") == READINESS_GATE for each in gates):
        return None
    conditions = (value.get("status") or {}).get("conditions") or ()
    known = {each.get("type"): str(each.get("status")) for each in conditions if isinstance(each, dict)}
    return ReadinessGate(known.get(READINESS_GATE, ""), known.get("ContainersReady") == "True")


def container_ids(value: KubeObject) -> dict[str, str]:
    """Map the ids of a pod's running containers ("containerd://<id>" in its status), without prefix, to names."""
    status = value.get("status") or {}
    found = {}
    for kind in ("initContainerStatuses", "ephemeralContainerStatuses", "containerStatuses"):
        for each in status.get(kind) or ():
            if not isinstance(each, dict) or "running" not in (each.get("state") or {}):
                continue
            if isinstance(identity := each.get("containerID"), str) and identity:
                found[identity.rpartition("/")[2]] = str(each.get("name", ""))
    return found


PODS = Collection("pods", ("/api/v1/{}pods",), pod)
SERVICES = Collection("services", ("/api/v1/{}services",), converted("", "Service"))
ENDPOINT_SLICES = Collection(
    "endpointslices",
    ("/apis/discovery.k8s.io/v1/{}endpointslices", "/apis/discovery.k8s.io/v1beta1/{}endpointslices"),
    slice_of,
)
NAMESPACES = Collection("namespaces", ("/api/v1/namespaces",), converted("", "Namespace"), metadata_only=True)
NODES = Collection("nodes", ("/api/v1/nodes",), converted("", "Node"))
WORKLOADS = tuple(
    Collection(
        f"{kind.lower()}s", (f"/apis/{group}/v1/{{}}{kind.lower()}s",), workload(group, kind), metadata_only=True
    )
    for group, kind in (
        ("apps", "Deployment"),
        ("apps", "StatefulSet"),
        ("apps", "DaemonSet"),
        ("apps", "ReplicaSet"),
        ("batch", "Job"),
    )
)
"""Workload kinds whose metadata is read."""
POLICIES = tuple(
    Collection(plural, (collection_path(kind),), policy_observer(kind), optional=True)
    for kind, plural in PLURALS.items()
)
"""Inspection policies, of namespaces and of the cluster."""
NOT_BY_SELECTOR = "endpointslice.kubernetes.io/managed-by!=endpointslice-controller.k8s.io"
"""Label selector that excludes EndpointSlices which the endpoint controller derives from a Service's selector."""
