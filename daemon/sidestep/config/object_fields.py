"""Strict structs for the fields of Kubernetes objects that Sidestep reads; other fields are ignored.

Names and meanings follow the Kubernetes API reference (core/v1, apps/v1, batch/v1). null means absent, as in that API.
String maps are decoded as `Any`, because the decoder's error path could not name the key otherwise; `objects` checks
their values.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from sidestep.model.workload import SelectorOperator

PortNumber = Annotated[int, msgspec.Meta(ge=1, le=65535)]
PortName = Annotated[str, msgspec.Meta(max_length=63)]
Text = Annotated[str, msgspec.Meta(max_length=253)]


class ObjectFields(msgspec.Struct, rename="camel", frozen=True):
    """Base struct: camelCase names, immutable."""


class OwnerReferenceFields(ObjectFields, frozen=True):
    """metav1 OwnerReference."""

    kind: Text
    name: Text
    controller: bool | None = None


class MetadataFields(ObjectFields, frozen=True):
    """metav1 ObjectMeta."""

    name: str
    namespace: str | None = None
    uid: str | None = None
    labels: dict[str, Any] | None = None
    annotations: dict[str, Any] | None = None
    owner_references: list[OwnerReferenceFields] | None = None


class PortFields(ObjectFields, frozen=True):
    """core/v1 ContainerPort."""

    container_port: PortNumber
    name: PortName | None = None
    protocol: str | None = None


class ProbeTargetFields(ObjectFields, frozen=True):
    """The action of a probe; `exec` has no port, and only `httpGet` a path."""

    port: int | str | None = None
    path: str | None = None


class ProbeFields(ObjectFields, frozen=True):
    """core/v1 Probe."""

    http_get: ProbeTargetFields | None = None
    tcp_socket: ProbeTargetFields | None = None
    grpc: ProbeTargetFields | None = None


class ResourcesFields(ObjectFields, frozen=True):
    """core/v1 ResourceRequirements."""

    limits: dict[str, Any] | None = None


class ContainerFields(ObjectFields, frozen=True):
    """core/v1 Container."""

    name: Text
    ports: list[PortFields] | None = None
    liveness_probe: ProbeFields | None = None
    readiness_probe: ProbeFields | None = None
    startup_probe: ProbeFields | None = None
    restart_policy: str | None = None
    resources: ResourcesFields | None = None


class PodSpecFields(ObjectFields, frozen=True):
    """core/v1 PodSpec."""

    containers: list[ContainerFields]
    init_containers: list[ContainerFields] | None = None
    host_network: bool | None = None
    resources: ResourcesFields | None = None


class PodIpFields(ObjectFields, frozen=True):
    """core/v1 PodIP."""

    ip: str


class PodStatusFields(ObjectFields, frozen=True):
    """core/v1 PodStatus."""

    phase: str | None = None
    pod_ip: str | None = msgspec.field(default=None, name="podIP")
    pod_ips: list[PodIpFields] | None = msgspec.field(default=None, name="podIPs")


class PodFields(ObjectFields, frozen=True):
    """core/v1 Pod."""

    metadata: MetadataFields
    spec: PodSpecFields
    status: PodStatusFields | None = None


class ServicePortFields(ObjectFields, frozen=True):
    """core/v1 ServicePort."""

    port: PortNumber
    target_port: int | str | None = None
    name: PortName | None = None
    app_protocol: Text | None = None
    protocol: str | None = None


class ServiceSpecFields(ObjectFields, frozen=True):
    """core/v1 ServiceSpec."""

    selector: dict[str, Any] | None = None
    ports: list[ServicePortFields] | None = None


class ServiceFields(ObjectFields, frozen=True):
    """core/v1 Service."""

    metadata: MetadataFields
    spec: ServiceSpecFields


class ConfigMapFields(ObjectFields, frozen=True):
    """core/v1 ConfigMap; `binaryData` is not read."""

    metadata: MetadataFields
    data: dict[str, Any] | None = None


class SecretFields(ObjectFields, frozen=True):
    """core/v1 Secret."""

    metadata: MetadataFields
    data: dict[str, Any] | None = None
    string_data: dict[str, Any] | None = None


class RequirementFields(ObjectFields, frozen=True):
    """metav1 LabelSelectorRequirement."""

    key: str
    operator: SelectorOperator
    values: list[str] | None = None


class SelectorFields(ObjectFields, frozen=True):
    """metav1 LabelSelector."""

    match_labels: dict[str, Any] | None = None
    match_expressions: list[RequirementFields] | None = None


class WorkloadSpecFields(ObjectFields, frozen=True):
    """Fields that the specs of all workloads have in common."""

    selector: SelectorFields | None = None


class WorkloadFields(ObjectFields, frozen=True):
    """A Deployment, StatefulSet, DaemonSet, ReplicaSet (apps/v1) or Job (batch/v1)."""

    metadata: MetadataFields
    spec: WorkloadSpecFields | None = None


class PlainFields(ObjectFields, frozen=True):
    """A Namespace or Node: the metadata."""

    metadata: MetadataFields


class NodeAddressFields(ObjectFields, frozen=True):
    """v1 NodeAddress: of a type like InternalIP, ExternalIP or Hostname."""

    address: str = ""


class NodeStatusFields(ObjectFields, frozen=True):
    """v1 NodeStatus."""

    addresses: list[NodeAddressFields] | None = None


class NodeFields(ObjectFields, frozen=True):
    """The status of a Node."""

    status: NodeStatusFields | None = None
