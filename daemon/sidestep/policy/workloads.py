"""Which pods an intercept covers, and which container ports its `port` means there.

A workload is found by kind and name, or by name alone when only one kind has it. A name that both an owner and what it
owns carry (Deployment `orders` and its pod `orders`) means the owner: that answer does not change when the workload is
scaled. Ports are looked up as a person reads them: service ports first, by name or number, then container ports. A
number that neither knows is taken as an undeclared container port (declarations are informational in Kubernetes).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from sidestep.config.annotations import PortTls
from sidestep.model.errors import RefusedError
from sidestep.model.intercept import Intercept, WorkloadRef
from sidestep.model.inventory import Inventory
from sidestep.model.pod import ContainerPort, Pod, Service, ServicePort, Transport
from sidestep.policy.protocol_choice import PortFacts

KIND_ALIASES = {
    "deploy": "deployment",
    "deployments": "deployment",
    "sts": "statefulset",
    "statefulsets": "statefulset",
    "ds": "daemonset",
    "daemonsets": "daemonset",
    "rs": "replicaset",
    "replicasets": "replicaset",
    "jobs": "job",
    "po": "pod",
    "pods": "pod",
}
"""kubectl's short and plural names."""

MAX_LISTED = 12
"""Names that an error lists."""


@dataclass(frozen=True, slots=True)
class ResolvedPort:
    """A container port that an intercept means. `service_ports` are all the service ports that lead to it."""

    port: ContainerPort
    service_ports: tuple[ServicePort, ...] = ()
    declared: bool = True

    @property
    def app_protocol(self) -> str:
        """The appProtocol of the first service port (services by name) that states one; empty when none does."""
        return next((each.app_protocol for each in self.service_ports if each.app_protocol), "")

    def facts(self, tls: PortTls | None = None) -> PortFacts:
        """What `protocol_choice.choose` wants to know."""
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
        )


def parse_workload(text: str) -> WorkloadRef:
    """`name` or `kind/name`, kinds as kubectl writes them. Raises RefusedError when it is neither."""
    kind, slash, name = text.partition("/")
    if not slash:
        kind, name = "", text
    if not name or "/" in name or (slash and not kind):
        raise RefusedError(f"{text[:100]!r} is no workload: write NAME or KIND/NAME, like deployment/orders")
    return WorkloadRef(name, canonical_kind(kind) if kind else None)


def canonical_kind(kind: str) -> str:
    """A kind as errors and `WorkloadRef` write it: lower case, singular, in full; `deployment.apps` loses its group."""
    plain = kind.lower().partition(".")[0]
    return KIND_ALIASES.get(plain, plain)


def find_workload(namespace: str, reference: WorkloadRef, inventory: Inventory) -> WorkloadRef:
    """The workload with its kind filled in.

    Raises RefusedError when there is none (listing those there are) or when several kinds carry the name.
    """
    known = _workloads_in(namespace, inventory)
    kinds = {kind for kind, name in known if name == reference.name}
    if reference.kind:
        kinds &= {canonical_kind(reference.kind)}
    if len(kinds) > 1:
        kinds -= {kind for kind in kinds if _owned_by(namespace, reference.name, kind, kinds, inventory)}
    if len(kinds) == 1:
        return WorkloadRef(reference.name, kinds.pop())
    if kinds:
        choices = " or ".join(f"{kind}/{reference.name}" for kind in sorted(kinds))
        raise RefusedError(f"{reference.name} in namespace {namespace} is ambiguous: write {choices}")
    there = _listed(sorted(f"{kind}/{name}" for kind, name in known))
    raise RefusedError(f"no workload {reference} in namespace {namespace} (there are: {there})")


def pods_of(intercept: Intercept, inventory: Inventory) -> tuple[Pod, ...]:
    """Pods that the intercept covers now, ordered by name; ended ones left out; empty for a workload without pods.

    Raises RefusedError when the workload is unknown or ambiguous, or when `intercept.pod` is not one of its pods.
    """
    workload = find_workload(intercept.namespace, intercept.workload, inventory)
    pods = [
        pod
        for key, pod in sorted(inventory.pods.items())
        if key.namespace == intercept.namespace and not pod.ended and _covers(workload, pod)
    ]
    if intercept.pod is None:
        return tuple(pods)
    chosen = tuple(pod for pod in pods if pod.key.name == intercept.pod)
    if not chosen:
        there = _listed([pod.key.name for pod in pods])
        raise RefusedError(
            f"{workload} in namespace {intercept.namespace} has no pod {intercept.pod} (it has: {there})"
        )
    return chosen


def resolve_port(
    port: str, pod: Pod, services: Collection[Service], *, transport: Transport = Transport.TCP
) -> tuple[ResolvedPort, ...]:
    """Container ports of the pod that `port` (service or container port, name or number) means; mostly one.

    `services` are those that select the pod (`Inventory.services_of`). Several come back when the pod's services give
    one name to different container ports. Raises RefusedError listing the ports there are when nothing fits.
    """
    found = _by_service(port, pod, services, transport) or _by_container(port, pod, transport)
    if not found and port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535:
        found = {int(port): ContainerPort(int(port), transport)}
    if not found:
        there = _listed(_port_texts(pod, services))
        raise RefusedError(f"pod {pod.key} has no {transport.upper()} port {port[:64]!r} (ports there are: {there})")
    return tuple(describe_port(each, pod, services) for each in found.values())


def describe_port(port: ContainerPort, pod: Pod, services: Iterable[Service]) -> ResolvedPort:
    """A container port with all the service ports that lead to it, whichever of them a person named."""
    leading = tuple(
        each
        for service in sorted(services, key=lambda service: service.name)
        for each in service.ports
        if each.transport is port.transport and _target(each, pod).number == port.number
    )
    declared = any(each.number == port.number and each.transport is port.transport for each in pod.ports)
    return ResolvedPort(port, leading, declared)


_NO_PORT = ContainerPort(0)


def _target(service_port: ServicePort, pod: Pod) -> ContainerPort:
    """The container port behind a service port; number 0 when a named target is not in the pod."""
    for port in pod.ports:
        wanted = port.name if isinstance(service_port.target, str) else port.number
        if port.transport is service_port.transport and wanted == service_port.target:
            return port
    if isinstance(service_port.target, str):
        return _NO_PORT
    return ContainerPort(service_port.target, service_port.transport)


def _by_service(port: str, pod: Pod, services: Collection[Service], transport: Transport) -> dict[int, ContainerPort]:
    """Named first: a service port's name and another's number cannot be equal, names hold a letter."""
    found: dict[int, ContainerPort] = {}
    for service in sorted(services, key=lambda service: service.name):
        for each in service.ports:
            if each.transport is transport and port in {each.name, str(each.number)} - {""}:
                target = _target(each, pod)
                if target.number:
                    found.setdefault(target.number, target)
    return found


def _by_container(port: str, pod: Pod, transport: Transport) -> dict[int, ContainerPort]:
    for each in pod.ports:
        if each.transport is transport and port in {each.name, str(each.number)} - {""}:
            return {each.number: each}
    return {}


def _port_texts(pod: Pod, services: Collection[Service]) -> list[str]:
    texts = []
    for service in sorted(services, key=lambda service: service.name):
        texts += [
            f"{_port_text(each.number, each.name, each.transport)} of service {service.name}" for each in service.ports
        ]
    return texts + [_port_text(each.number, each.name, each.transport) for each in pod.ports]


def _port_text(number: int, name: str, transport: Transport) -> str:
    suffix = "" if transport is Transport.TCP else f"/{transport.upper()}"
    return f"{number}{suffix}" + (f" ({name})" if name else "")


def _workloads_in(namespace: str, inventory: Inventory) -> set[tuple[str, str]]:
    """(kind, name) of all that can be intercepted, owners known from their pods only included."""
    known = {(key.kind, key.name) for key in inventory.workloads if key.namespace == namespace}
    for key, pod in inventory.pods.items():
        if key.namespace == namespace and not pod.ended:
            known.add(("pod", key.name))
            known.update((owner.kind, owner.name) for owner in pod.owners)
    return known


def _owned_by(namespace: str, name: str, kind: str, kinds: set[str], inventory: Inventory) -> bool:
    """Whether the object of this kind belongs to one of the same name and another of these kinds."""
    for key, pod in inventory.pods.items():
        if key.namespace != namespace:
            continue
        chain = [(owner.kind, owner.name) for owner in pod.owners]
        if kind == "pod":
            above = chain if key.name == name else []
        else:
            above = chain[chain.index((kind, name)) + 1 :] if (kind, name) in chain else []
        if any(owner_kind in kinds and owner_name == name for owner_kind, owner_name in above):
            return True
    return False


def _covers(workload: WorkloadRef, pod: Pod) -> bool:
    if workload.kind == "pod":
        return pod.key.name == workload.name
    return any((owner.kind, owner.name) == (workload.kind, workload.name) for owner in pod.owners)


def _listed(texts: list[str]) -> str:
    more = f" and {len(texts) - MAX_LISTED} more" if len(texts) > MAX_LISTED else ""
    return (", ".join(texts[:MAX_LISTED]) + more) or "none"
