"""The ports of one pod as its Services and its containers name them, looked up rather than searched for.

Service ports come first, by name or number, then container ports. A number that neither knows is an undeclared
container port (declarations are informational in Kubernetes).

A pod's author chooses how many ports it declares and a namespace's users how many Services select it. `PodPorts` reads
each of the two lists once, when it is made; a lookup then costs the same whatever their length.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

import msgspec

from sidestep.config.annotations import PortTls
from sidestep.model.errors import RefusedError
from sidestep.model.intercept import Intercept
from sidestep.model.inventory import Inventory
from sidestep.model.inventory_index import Memo
from sidestep.model.pod import ContainerPort, Pod, PodKey, Service, ServicePort, Transport
from sidestep.policy.protocol_choice import PortFacts

MAX_LISTED = 12
"""Names that an error lists."""

_NO_PORT = ContainerPort(0)


class ResolvedPort(msgspec.Struct, frozen=True):
    """A container port that an intercept means. `service_ports` are all the service ports that lead to it, `services`
    the same as `service:port`."""

    port: ContainerPort
    service_ports: tuple[ServicePort, ...] = ()
    declared: bool = True
    services: tuple[str, ...] = ()

    @property
    def app_protocol(self) -> str:
        """The appProtocol of the first service port (services by name) that states one; empty when none does."""
        return next((each.app_protocol for each in self.service_ports if each.app_protocol), "")

    def facts(self, tls: PortTls | None = None) -> PortFacts:
        """Return the input of `protocol_choice.choose`."""
        names = {self.port.name, *(each.name for each in self.service_ports)} - {""}
        settings = tls or PortTls(self.port.number)
        return PortFacts(
            number=self.port.number,
            transport=self.port.transport,
            app_protocol=self.app_protocol,
            names=frozenset(names),
            numbers=frozenset({self.port.number, *(each.number for each in self.service_ports)}),
            certificate=settings.certificate_scope,
            certificate_annotation=settings.downstream.annotation if settings.downstream else "",
            certificate_problem=settings.downstream_problem,
        )


class PodPorts:
    """Made of a pod and the services that select it (`Inventory.services_of`)."""

    def __init__(self, pod: Pod, services: Iterable[Service]) -> None:
        self._pod = pod
        self._services = tuple(sorted(services, key=lambda service: service.name))
        self._by_number: dict[tuple[int, Transport], ContainerPort] = {}
        self._by_name: dict[tuple[str, Transport], ContainerPort] = {}
        self._by_text: dict[tuple[str, Transport], ContainerPort] = {}
        for port in pod.ports:
            self._by_number.setdefault((port.number, port.transport), port)
            self._by_name.setdefault((port.name, port.transport), port)
            for text in {port.name, str(port.number)} - {""}:
                self._by_text.setdefault((text, port.transport), port)
        self._leading: dict[tuple[int, Transport], list[tuple[str, ServicePort]]] = {}
        self._by_service: dict[tuple[str, Transport], dict[int, ContainerPort]] = {}
        for service in self._services:
            for each in service.ports:
                self._enter(service.name, each)

    @property
    def weight(self) -> int:
        """Entries held: declared ports and service ports."""
        return len(self._pod.ports) + sum(len(service.ports) for service in self._services)

    def resolve(self, port: str, *, transport: Transport = Transport.TCP) -> tuple[ResolvedPort, ...]:
        """Container ports that `port` (service or container port, name or number) means; mostly one.

        Service ports come first: a name and a number cannot be confused, names hold a letter. Several ports come back
        when the services give one name to different container ports. Raises RefusedError listing the ports there are
        when nothing fits.
        """
        found = self._by_service.get((port, transport))
        if not found and (port, transport) in self._by_text:
            only = self._by_text[port, transport]
            found = {only.number: only}
        if not found and port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535:
            found = {int(port): ContainerPort(int(port), transport)}
        if not found:
            raise RefusedError(
                f"pod {self._pod.key} has no {transport.upper()} port {port[:64]!r} (ports there are: {self.texts})"
            )
        return tuple(self.describe(each) for each in found.values())

    def service_targets(self, transport: Transport) -> tuple[ContainerPort, ...]:
        """The container ports of a transport that Services lead to, declared or not."""
        return tuple(
            self._by_number.get((number, each), ContainerPort(number, each))
            for number, each in self._leading
            if each is transport
        )

    def describe(self, port: ContainerPort) -> ResolvedPort:
        """A container port with all the service ports that lead to it, whichever of them a person named."""
        key = (port.number, port.transport)
        leading = self._leading.get(key, ())
        return ResolvedPort(
            port,
            tuple(each for _, each in leading),
            key in self._by_number,
            tuple(f"{name}:{each.number}" for name, each in leading),
        )

    def claimed(self, intercepts: Iterable[Intercept]) -> dict[tuple[int, Transport], list[Intercept]]:
        """By container port, those of these intercepts, which cover the pod, that mean this port."""
        claimed: dict[tuple[int, Transport], list[Intercept]] = {}
        for intercept in intercepts:
            if not intercept.has_port:
                continue
            try:
                found = self.resolve(intercept.port, transport=intercept.transport)
            except RefusedError:
                continue  # a condition of its own says so
            for each in found:
                claimed.setdefault((each.port.number, each.port.transport), []).append(intercept)
        return claimed

    def _enter(self, service: str, each: ServicePort) -> None:
        target = self._target(each)
        if not target.number:
            return
        self._leading.setdefault((target.number, each.transport), []).append((service, each))
        for text in {each.name, str(each.number)} - {""}:
            self._by_service.setdefault((text, each.transport), {}).setdefault(target.number, target)

    def _target(self, each: ServicePort) -> ContainerPort:
        """The container port behind a service port; number 0 when a named target is not in the pod."""
        if isinstance(each.target, str):
            return self._by_name.get((each.target, each.transport), _NO_PORT)
        found = self._by_number.get((each.target, each.transport))
        return found or ContainerPort(each.target, each.transport)

    @cached_property
    def texts(self) -> str:
        """The ports there are, for an error."""
        ports = [
            f"{_port_text(each.number, each.name, each.transport)} of service {service.name}"
            for service in self._services
            for each in service.ports
        ]
        return listed([*ports, *(_port_text(each.number, each.name, each.transport) for each in self._pod.ports)])


def ports_of(pod: Pod, inventory: Inventory) -> PodPorts:
    """Return the ports of a pod; those of a pod of this inventory are made once."""
    if inventory.pods.get(pod.key) is not pod:
        return PodPorts(pod, inventory.services_of(pod))
    memo: Memo[PodKey, PodPorts] = inventory.index.memos.setdefault("ports", Memo())
    return memo.get(pod.key, lambda: PodPorts(pod, inventory.services_of(pod)), weight=lambda ports: ports.weight)


def listed(texts: list[str] | tuple[str, ...]) -> str:
    """Return the first MAX_LISTED texts and the number of the others, for an error."""
    more = f" and {len(texts) - MAX_LISTED} more" if len(texts) > MAX_LISTED else ""
    return (", ".join(texts[:MAX_LISTED]) + more) or "none"


def _port_text(number: int, name: str, transport: Transport) -> str:
    suffix = "" if transport is Transport.TCP else f"/{transport.upper()}"
    return f"{number}{suffix}" + (f" ({name})" if name else "")
