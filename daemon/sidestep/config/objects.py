"""Converts Kubernetes objects, decoded from YAML or JSON, into model objects.

`converter` returns the function for an API group and kind. It converts one object, or raises `FieldError` with the path
of the field. Properties that need other objects are left empty and filled in by the caller: the annotations of a pod's
owners, and its location (in a cluster no annotation may determine it).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address

import msgspec
from msgspec.structs import replace

from sidestep.config import object_fields as fields
from sidestep.config.field_error import FieldError
from sidestep.config.inspection import cluster_inspection_policy, inspection_policy
from sidestep.config.object_values import LABEL_NAME, NAME, check_name, names, quantity, selector, texts, typed
from sidestep.model.inspection import InspectionPolicy
from sidestep.model.inventory import ConfigMap, Secret
from sidestep.model.pod import ContainerPort, Pod, PodKey, Service, ServicePort, Transport
from sidestep.model.workload import LabelSelector, OwnerReference, Workload, WorkloadKey

MAX_SECRET = 1024 * 1024
"""Bytes of a Secret's data (core/v1 MaxSecretSize)."""

MAX_PORTS = 1024
"""Declared ports read per pod; no more can be steered (`steering.layout`). Further ports count as undeclared and lose
only their names. Each port costs 40 µs in a survey."""

MAX_LABELS = 256
"""Labels read of one namespace; policies of the cluster select namespaces by them."""

MAX_PROBE_PATH = 1024
"""Characters of the path of a probe; requests with a longer one count as any other client's."""

_SECRET_KEY = re.compile(r"[-._a-zA-Z0-9]{1,253}")
_UID = re.compile(r"[-.:/a-zA-Z0-9]{1,128}")
_TRANSPORTS = {"TCP": Transport.TCP, "UDP": Transport.UDP}


class NamespaceObject(msgspec.Struct, frozen=True):
    """A Namespace: name, annotations and the first MAX_LABELS labels, by name."""

    name: str
    annotations: Mapping[str, str]
    labels: Mapping[str, str]


class NodeObject(msgspec.Struct, frozen=True):
    """A Node: name, annotations, and the addresses of its status."""

    name: str
    annotations: Mapping[str, str]
    addresses: tuple[str, ...] = ()


class PodObject(msgspec.Struct, frozen=True):
    """A pod and the references to its owners, which are not linked yet."""

    pod: Pod
    owners: tuple[OwnerReference, ...]


class InvalidPolicy(msgspec.Struct, frozen=True):
    """An inspection policy whose document cannot be used. `namespace` is empty for one of the cluster."""

    namespace: str
    name: str
    reason: str


Converted = (
    PodObject
    | Service
    | Secret
    | ConfigMap
    | NamespaceObject
    | NodeObject
    | Workload
    | InspectionPolicy
    | InvalidPolicy
)


def converter(group: str, kind: str) -> Callable[[Mapping[str, object]], Converted] | None:
    """Return the converter for this API group ("" for core) and kind, or None when Sidestep does not read the kind."""
    return _CONVERTERS.get((group, kind))


def _pod(value: Mapping[str, object]) -> PodObject:
    read = typed(value, fields.PodFields)
    namespace, name = names(read.metadata)
    annotations = texts(read.metadata.annotations, "metadata.annotations")
    phase = read.status.phase if read.status else None
    ended = phase in {"Succeeded", "Failed"}
    # A native sidecar is an init container with restartPolicy Always; other init containers have ended.
    sidecars = [each for each in read.spec.init_containers or () if each.restart_policy == "Always"]
    containers = [*read.spec.containers, *sidecars]
    pod = Pod(
        key=PodKey(namespace, name),
        uid=_uid(read.metadata, f"{namespace}/{name}"),
        ips=_addresses(read.status),
        ports=tuple(itertools.islice(_container_ports(containers), MAX_PORTS)),
        containers=tuple(each.name for each in containers),
        labels=texts(read.metadata.labels, "metadata.labels"),
        annotations=annotations,
        probe_ports=frozenset(port for each in containers for _, port, _ in _probes(each)),
        probes=_probe_requests(containers),
        processors=_processors(read.spec, containers),
        host_network=bool(read.spec.host_network),
        ended=ended,
    )
    return PodObject(pod, _owners(read.metadata))


def _container_ports(containers: list[fields.ContainerFields]) -> Iterator[ContainerPort]:
    """Yield declared TCP and UDP ports; SCTP is not supported."""
    return (
        ContainerPort(port.container_port, _TRANSPORTS[protocol], port.name or "", container.name)
        for container in containers
        for port in container.ports or ()
        if (protocol := port.protocol or "TCP") in _TRANSPORTS
    )


def _probes(container: fields.ContainerFields) -> Iterator[tuple[str, int, fields.ProbeTargetFields]]:
    """Yield kind, port and action of the kubelet's probes. A name refers to a port of the container, otherwise it is a
    number as text.
    """
    for probe in (container.liveness_probe, container.readiness_probe, container.startup_probe):
        actions = (("http", probe.http_get), ("tcp", probe.tcp_socket), ("grpc", probe.grpc)) if probe else ()
        for kind, target in actions:
            if target is None:
                continue
            port = target.port
            if isinstance(port, str):
                named = [each.container_port for each in container.ports or () if each.name == port]
                digits = port.isascii() and port.isdigit() and len(port) <= 5
                port = named[0] if named else int(port) if digits else None
            if port is not None and 1 <= port <= 65535:
                yield kind, port, target


def _probe_requests(containers: list[fields.ContainerFields]) -> dict[int, frozenset[tuple[str, str]]]:
    """Return the requests that the kubelet's probes send, by port (pkg/probe/http and pkg/probe/grpc in Kubernetes)."""
    found: dict[int, set[tuple[str, str]]] = {}
    for container in containers:
        for kind, port, target in _probes(container):
            path = target.path or "/"
            if kind == "http" and len(path) <= MAX_PROBE_PATH:
                found.setdefault(port, set()).add(("GET", path if path.startswith("/") else f"/{path}"))
            elif kind == "grpc":
                found.setdefault(port, set()).add(("POST", "/grpc.health.v1.Health/Check"))
    return {port: frozenset(requests) for port, requests in found.items()}


def _processors(spec: fields.PodSpecFields, containers: list[fields.ContainerFields]) -> float | None:
    """How many processors the containers may use together; None without a limit, or one that cannot be read.

    A limit of the pod counts before those of containers (Kubernetes, "Manage resources for pods and containers").
    """
    places = [spec] if _processor_limit(spec.resources) is not None else containers
    limits = [_processor_limit(each.resources) for each in places]
    return None if not limits or None in limits else sum(each for each in limits if each is not None)


def _processor_limit(resources: fields.ResourcesFields | None) -> float | None:
    return quantity((resources.limits or {}).get("cpu")) if resources is not None else None


def _addresses(status: fields.PodStatusFields | None) -> tuple[IPv4Address | IPv6Address, ...]:
    if status is None:
        return ()
    texts = [(f"status.podIPs[{index}].ip", each.ip) for index, each in enumerate(status.pod_ips or ())]
    if status.pod_ip:
        texts.append(("status.podIP", status.pod_ip))
    addresses = []
    for path, text in texts:
        try:
            addresses.append(ip_address(text))
        except ValueError:
            raise FieldError(path, "not an IP address") from None
    return tuple(dict.fromkeys(addresses))


def _service(value: Mapping[str, object]) -> Service:
    read = typed(value, fields.ServiceFields)
    namespace, name = names(read.metadata)
    ports = []
    for index, port in enumerate(read.spec.ports or ()):
        protocol = port.protocol or "TCP"
        if protocol not in _TRANSPORTS:
            continue
        target = port.target_port or port.port
        if isinstance(target, int) and not 1 <= target <= 65535:
            raise FieldError(f"spec.ports[{index}].targetPort", "must be a port from 1 to 65535")
        ports.append(ServicePort(port.port, target, port.name or "", port.app_protocol or "", _TRANSPORTS[protocol]))
    return Service(namespace, name, texts(read.spec.selector, "spec.selector"), tuple(ports))


def _secret(value: Mapping[str, object]) -> Secret:
    """Return a Secret with a digest in place of its data. The entropy of a key prevents finding it from the digest."""
    secret, data = secret_and_data(value)
    digest = hashlib.sha256()
    for key in sorted(data):
        digest.update(len(key).to_bytes(4, "big") + key.encode() + len(data[key]).to_bytes(4, "big") + data[key])
    return replace(secret, version=digest.hexdigest()[:24])


def secret_and_data(value: Mapping[str, object]) -> tuple[Secret, dict[str, bytes]]:
    """Return a Secret and its decoded data, for the one-shot reader. Raises FieldError."""
    read = typed(value, fields.SecretFields)
    namespace, name = names(read.metadata)
    data: dict[str, bytes] = {}
    for key, text in texts(read.data, "data").items():
        try:
            data[key] = base64.b64decode(text.replace("\n", "").replace("\r", ""), validate=True)
        except (binascii.Error, ValueError):
            raise FieldError(f"data.{key}", "not base64 (plain text belongs in stringData)") from None
    for key, text in texts(read.string_data, "stringData").items():
        data[key] = text.encode()
    for key in data:
        if not _SECRET_KEY.fullmatch(key):
            raise FieldError("data", f"{key[:64]!r} is not a key (letters, digits, '-', '_' and '.')")
    if sum(len(each) for each in data.values()) > MAX_SECRET:
        raise FieldError("data", f"more than {MAX_SECRET} bytes")
    return Secret(namespace, name), data


def _config_map(value: Mapping[str, object]) -> ConfigMap:
    """Return a ConfigMap with those of its values that are texts. Most ConfigMaps are not ours: no error for others."""
    read = typed(value, fields.ConfigMapFields)
    namespace, name = names(read.metadata)
    return ConfigMap(namespace, name, {key: text for key, text in (read.data or {}).items() if isinstance(text, str)})


def _workload(kind: str) -> Callable[[Mapping[str, object]], Workload]:
    def convert_workload(value: Mapping[str, object]) -> Workload:
        read = typed(value, fields.WorkloadFields)
        namespace, name = names(read.metadata)
        chosen = selector(read.spec.selector if read.spec else None, "spec.selector")
        if kind == "job" and not chosen.labels and not chosen.expressions:
            # The API server adds a selector to a Job; without one, the label that the Job gives its pods is used.
            chosen = LabelSelector({"job-name": name})
        annotations = texts(read.metadata.annotations, "metadata.annotations")
        return Workload(WorkloadKey(kind, namespace, name), annotations, chosen, _owners(read.metadata))

    return convert_workload


def _namespace(value: Mapping[str, object]) -> NamespaceObject:
    name, annotations = _cluster_scoped(value, LABEL_NAME)
    labels = texts(typed(value, fields.PlainFields).metadata.labels, "metadata.labels")
    return NamespaceObject(name, annotations, dict(sorted(labels.items())[:MAX_LABELS]))


def _node(value: Mapping[str, object]) -> NodeObject:
    status = typed(value, fields.NodeFields).status
    given = (status.addresses if status is not None else None) or ()
    return NodeObject(*_cluster_scoped(value, NAME), tuple(filter(_is_address, (each.address for each in given))))


def _is_address(text: str) -> bool:
    """Whether it is an IP address; a Node has names among its addresses, too."""
    try:
        return ip_address(text) is not None
    except ValueError:
        return False


def _cluster_scoped(value: Mapping[str, object], pattern: re.Pattern[str]) -> tuple[str, Mapping[str, str]]:
    metadata = typed(value, fields.PlainFields).metadata
    check_name(metadata.name, "metadata.name", pattern)
    return metadata.name, texts(metadata.annotations, "metadata.annotations")


def _uid(metadata: fields.MetadataFields, default: str) -> str:
    uid = metadata.uid or default
    if not _UID.fullmatch(uid) and uid != default:
        raise FieldError("metadata.uid", "not a UID")
    return uid


def _owners(metadata: fields.MetadataFields) -> tuple[OwnerReference, ...]:
    """Return the owner references with the controller first, which decides."""
    references = sorted(metadata.owner_references or (), key=lambda each: not each.controller)
    return tuple(OwnerReference(each.kind.lower(), each.name) for each in references)


CONFIG_MAP = _config_map
"""The converter of ConfigMaps."""

_CONVERTERS: dict[tuple[str, str], Callable[[Mapping[str, object]], Converted]] = {
    ("", "Pod"): _pod,
    ("", "Service"): _service,
    ("", "Secret"): _secret,
    ("", "ConfigMap"): _config_map,
    ("", "Namespace"): _namespace,
    ("", "Node"): _node,
    ("apps", "Deployment"): _workload("deployment"),
    ("apps", "StatefulSet"): _workload("statefulset"),
    ("apps", "DaemonSet"): _workload("daemonset"),
    ("apps", "ReplicaSet"): _workload("replicaset"),
    ("batch", "Job"): _workload("job"),
    ("sidestep.dev", "InspectionPolicy"): inspection_policy,
    ("sidestep.dev", "ClusterInspectionPolicy"): cluster_inspection_policy,
}
