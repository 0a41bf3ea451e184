"""EndpointSlices without selector (discovery.k8s.io/v1 and v1beta1), which assign pods to a Service without selector.

The endpoints of such a Service are written by hand or by a controller. Pods of this node that are endpoints become pods
of the Service, with the ports and appProtocols of the slice. Where the Service defines a port of the same name, its
definition takes precedence, in particular its port number, which clients use.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from sidestep.config.field_error import FieldError
from sidestep.config.object_fields import MetadataFields
from sidestep.config.schema_fault import fault_of
from sidestep.kube.watch import KubeObject
from sidestep.model.pod import Pod, PodKey, Service, ServicePort, Transport

SERVICE_NAME = "kubernetes.io/service-name"


class _Target(msgspec.Struct):
    kind: str = ""
    name: str = ""


class _Endpoint(msgspec.Struct, rename="camel"):
    addresses: list[str] = []
    target_ref: _Target | None = None


class _Port(msgspec.Struct, rename="camel"):
    name: str | None = None
    port: int | None = None
    protocol: str | None = None
    app_protocol: str | None = None


class _Slice(msgspec.Struct):
    metadata: MetadataFields
    endpoints: list[_Endpoint] | None = None
    ports: list[_Port] | None = None


class EndpointSlice(msgspec.Struct, frozen=True):
    """The part of a slice that concerns pods. `ports` have the endpoint's port as number and target."""

    namespace: str
    service: str
    pods: frozenset[str]
    addresses: frozenset[str]
    ports: tuple[ServicePort, ...]


def slice_of(value: KubeObject) -> EndpointSlice:
    """Convert an EndpointSlice object. Raises FieldError."""
    try:
        read = msgspec.convert(value, _Slice)
    except msgspec.ValidationError as error:
        raise FieldError("endpointslice", fault_of(error)) from None
    labels: Mapping[str, Any] = read.metadata.labels or {}
    endpoints = read.endpoints or ()
    return EndpointSlice(
        namespace=read.metadata.namespace or "default",
        service=str(labels.get(SERVICE_NAME, "")),
        pods=frozenset(
            each.target_ref.name for each in endpoints if each.target_ref is not None and each.target_ref.kind == "Pod"
        ),
        addresses=frozenset(address for each in endpoints for address in each.addresses),
        ports=tuple(
            ServicePort(port.port, port.port, port.name or "", port.app_protocol or "", _transport(port))
            for port in read.ports or ()
            if port.port is not None and 1 <= port.port <= 65535 and (port.protocol or "TCP") in {"TCP", "UDP"}
        ),
    )


def with_slices(
    services: Iterable[Service], slices: Iterable[EndpointSlice], pods: Mapping[PodKey, Pod]
) -> tuple[Service, ...]:
    """Return the services, with those without selector completed by their slices."""
    by_service: dict[tuple[str, str], list[EndpointSlice]] = {}
    for each in slices:
        if each.service:
            by_service.setdefault((each.namespace, each.service), []).append(each)
    return tuple(_completed(service, by_service, pods) for service in services)


def _completed(
    service: Service, by_service: Mapping[tuple[str, str], list[EndpointSlice]], pods: Mapping[PodKey, Pod]
) -> Service:
    mine = by_service.get((service.namespace, service.name), ()) if not service.selector else ()
    members = frozenset(
        key
        for key, pod in pods.items()
        if key.namespace == service.namespace
        and any(key.name in each.pods or each.addresses & {str(address) for address in pod.ips} for each in mine)
    )
    if not members:
        return service
    stated = {(port.name, port.transport): port for port in service.ports}
    ports: dict[tuple[str, Transport, str | int], ServicePort] = {}
    for each in mine:
        for port in each.ports:
            outer = stated.get((port.name, port.transport), port)
            app_protocol = outer.app_protocol or port.app_protocol
            ports[port.name, port.transport, port.target] = replace(
                port, number=outer.number, app_protocol=app_protocol
            )
    return replace(service, ports=tuple(ports.values()) or service.ports, pods=members)


def _transport(port: _Port) -> Transport:
    return Transport.UDP if port.protocol == "UDP" else Transport.TCP
