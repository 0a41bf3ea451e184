"""Converts objects of the API server into model objects, with the converters used for manifests, and drops unused
parts.

Of annotations only those that Sidestep reads are kept. Annotations of a ReplicaSet owned by a Deployment are dropped:
the Deployment controller copies them there and never removes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sidestep.config import objects
from sidestep.kube.endpoints import slice_of
from sidestep.kube.watch import KubeObject
from sidestep.model.workload import Workload

KEPT_ANNOTATIONS = ("telepresence.io/", "sidestep.dev/")
"""Prefixes of the annotations that are kept; others can be large."""


@dataclass(frozen=True, slots=True)
class ObservedPod:
    """A pod as received from the API server. `containers` maps container ids, without the runtime's prefix, to
    names.
    """

    object: objects.PodObject
    containers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Collection:
    """A collection of the API. `paths` are relative to /apis or /api, with {} for the scope; newest version first."""

    name: str
    paths: tuple[str, ...]
    convert: Callable[[KubeObject], Any]
    metadata_only: bool = False

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
    return ObservedPod(replace(found, pod=replace(found.pod, leaving=leaving)), container_ids(value))


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
NOT_BY_SELECTOR = "endpointslice.kubernetes.io/managed-by!=endpointslice-controller.k8s.io"
"""Label selector that excludes EndpointSlices which the endpoint controller derives from a Service's selector."""
