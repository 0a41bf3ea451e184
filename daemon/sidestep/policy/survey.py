"""What is written about a pod's ports, collected once: resolved port, TLS settings, protocol, problems.

Pure. The planner, admission, `status`, the certificate store and the command line use the same survey, so that `list`
shows what is carried out.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from sidestep.config import proxy_workers
from sidestep.config.annotations import CertificateSource, PortTls, resolve
from sidestep.config.proxy_workers import Workers
from sidestep.model.condition import Condition, ConditionType
from sidestep.model.pod import ContainerPort, PodKey, Transport
from sidestep.policy.pod_ports import PodPorts, ResolvedPort, ports_of
from sidestep.policy.protocol_choice import PortProtocol, Use, choose

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sidestep.model.inventory import Inventory
    from sidestep.model.pod import Pod


class Side(enum.StrEnum):
    """Which handshake a certificate serves: ours with the client, or ours with the app."""

    DOWNSTREAM = "downstream"
    UPSTREAM = "upstream"


class CertificateKey(msgspec.Struct, frozen=True, order=True):
    """Which certificate: one side of one port of one pod. Or, with `secret` ("namespace/name") and port 0, one that a
    policy about connections of the pod names: DOWNSTREAM the CA that answers the pod, UPSTREAM authorities of servers.
    """

    pod: PodKey
    port: int
    side: Side
    secret: str = ""

    @property
    def subject(self) -> str:
        """How conditions name the port."""
        return f"pod {self.pod}" if self.secret else port_subject(self.pod, self.port)


class WantedCertificate(msgspec.Struct, frozen=True):
    """Where a certificate is to be read. `containers` are those a path may belong to, first match wins. `stated` is the
    namespace of a Secret that may be in another one than the pod.
    """

    key: CertificateKey
    source: CertificateSource
    containers: tuple[str, ...] = ()
    stated: str = ""

    @property
    def namespace(self) -> str:
        """The namespace of its Secret."""
        return self.stated or self.key.pod.namespace


class PortSurvey(msgspec.Struct, frozen=True):
    """One container port. `tls` holds defaults for a UDP port."""

    resolved: ResolvedPort
    tls: PortTls
    protocol: PortProtocol

    @property
    def port(self) -> ContainerPort:
        """The container port itself."""
        return self.resolved.port

    @property
    def must_be_opened(self) -> bool:
        """Whether every connection has to be read, whoever steers the port: its app is told who the client is
        (`sidestep.dev/forward-client-cert`), and believes it."""
        return self.tls.forward_client_cert


@dataclass(frozen=True, slots=True)
class PodSurvey:
    """All ports of a pod, sorted, and what was wrong with what is written about them."""

    pod: Pod
    ports: tuple[PortSurvey, ...]
    conditions: tuple[Condition, ...] = ()
    workers: Workers | None = None
    """Processes that its proxy is to have; None: as many as the node says."""
    _by_port: Mapping[tuple[int, Transport], PortSurvey] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_port = {(each.port.number, each.port.transport): each for each in self.ports}
        object.__setattr__(self, "_by_port", by_port)

    def port(self, number: int, transport: Transport) -> PortSurvey | None:
        """The survey of one port."""
        return self._by_port.get((number, transport))

    def certificates(self) -> tuple[WantedCertificate, ...]:
        """The certificates that these ports use. A port that never speaks TLS uses none."""
        found = []
        for each in self.ports:
            if each.protocol.tls is Use.NEVER:
                continue
            for side, source in ((Side.DOWNSTREAM, each.tls.downstream), (Side.UPSTREAM, each.tls.upstream)):
                if source is not None:
                    key = CertificateKey(self.pod.key, each.port.number, side)
                    found.append(WantedCertificate(key, source, each.tls.containers))
        return tuple(found)


def port_subject(pod: PodKey, port: int) -> str:
    """How conditions name a port."""
    return f"pod {pod} port {port}"


def protocol_text(protocol: PortProtocol, transport: Transport) -> str:
    """One word for a port's protocol; a question mark where probing will tell."""
    if transport is Transport.UDP:
        return "udp"
    if not protocol.http_filters:
        return "tcp"
    if protocol.tls is Use.ALWAYS:
        return "https"
    if protocol.tls is Use.PROBE:
        return "tls?"
    return "h2c" if protocol.http2 is Use.ALWAYS else "http"


def survey(
    pod: Pod, inventory: Inventory, *, node_annotations: Mapping[str, str], extra_ports: Collection[ContainerPort] = ()
) -> PodSurvey:
    """Survey the declared ports of a pod and `extra_ports`, undeclared ones that somebody asked for. Never raises."""
    named = ports_of(pod, inventory)
    declared = {(port.number, port.transport): port for port in reversed((*pod.ports, *extra_ports))}
    ports = [declared[key] for key in sorted(declared, key=lambda key: (key[0], key[1].value))]
    settings = resolve(
        pod,
        namespace_annotations=inventory.namespace_annotations(pod.key.namespace),
        node_annotations=node_annotations,
        extra_ports=[port.number for port in extra_ports if port.transport is Transport.TCP],
    )
    surveyed = tuple(_survey_port(port, settings.ports, named) for port in ports)
    workers, problems = proxy_workers.resolve(pod, inventory.namespace_annotations(pod.key.namespace))
    conditions = [problem.condition() for problem in (*settings.problems, *problems)]
    for each in surveyed:
        if each.protocol.contradiction is not None:
            subject = port_subject(pod.key, each.port.number)
            conditions.append(Condition(ConditionType.PROTOCOL_CONTRADICTION, subject, each.protocol.contradiction))
    return PodSurvey(pod, surveyed, tuple(conditions), workers)


def _survey_port(port: ContainerPort, settings: Mapping[int, PortTls], named: PodPorts) -> PortSurvey:
    resolved = named.describe(port)
    tls = PortTls(port.number)
    if port.transport is Transport.TCP:
        tls = settings.get(port.number, tls)
    return PortSurvey(resolved, tls, choose(resolved.facts(tls)))
