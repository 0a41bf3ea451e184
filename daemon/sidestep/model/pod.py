"""A pod as the node daemon sees it: identity, ports, addresses, and where its network namespace is."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

import msgspec


class Transport(enum.StrEnum):
    """Transport protocol of a port; the values are IANA names in lower case."""

    TCP = "tcp"
    UDP = "udp"


class Family(enum.IntEnum):
    """Address family, with the kernel's numbers (AF_INET, AF_INET6) as seen by `bpf_sk_lookup.family`."""

    IPV4 = 2
    IPV6 = 10


class PodKey(NamedTuple):
    """Namespace and name of a pod. A tuple: nothing is hashed, compared and sorted more often."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class NetnsId(msgspec.Struct, frozen=True, order=True):
    """Identity of a network namespace: device and inode of its nsfs file (namespaces(7))."""

    device: int
    inode: int


class ContainerPort(msgspec.Struct, frozen=True):
    """A port that a container declares. `name` is empty when unnamed."""

    number: int
    transport: Transport = Transport.TCP
    name: str = ""
    container: str = ""


class Owner(msgspec.Struct, frozen=True):
    """A controller of the pod, kind in lower case, nearest first (ReplicaSet before its Deployment)."""

    kind: str
    name: str
    annotations: Mapping[str, str] = msgspec.field(default_factory=dict)


class Location(msgspec.Struct, frozen=True):
    """Where a pod lives on this machine; local mode states it by annotation, the cluster finds it by cgroup.

    `netns` is a path whose file is the network namespace (`/run/netns/NAME`, `/proc/PID/ns/net`); `pids` maps a
    container name to a process of it ("" for any); `root` is a folder that stands for the containers' root when there
    is no process; `cgroup` is the pod's cgroup v2 folder. `births` says when processes that are meant were started, in
    clock ticks since boot, where that is known: a later process of the same id is none of the pod's. `searched`: it is
    found by looking at processes, not stated by anybody; it may be missing while a pod starts, and when it ends.
    """

    netns: str | None = None
    pids: Mapping[str, int] = msgspec.field(default_factory=dict)
    root: str | None = None
    cgroup: str | None = None
    births: Mapping[int, int] = msgspec.field(default_factory=dict)
    searched: bool = False


class Pod(msgspec.Struct, frozen=True):
    """A pod. `containers` are names in spec order; `ended` is true once its phase is Succeeded or Failed,
    `leaving` once it has been told to end. `probes` are the HTTP requests, (method, target), with which the kubelet
    probes a port; `probe_ports` are all that it probes. `processors` are so many as its containers may use together,
    None without a limit."""

    key: PodKey
    uid: str
    ips: tuple[IPv4Address | IPv6Address, ...] = ()
    ports: tuple[ContainerPort, ...] = ()
    containers: tuple[str, ...] = ()
    labels: Mapping[str, str] = msgspec.field(default_factory=dict)
    annotations: Mapping[str, str] = msgspec.field(default_factory=dict)
    owners: tuple[Owner, ...] = ()
    location: Location = msgspec.field(default_factory=Location)
    probe_ports: frozenset[int] = frozenset()
    probes: Mapping[int, frozenset[tuple[str, str]]] = msgspec.field(default_factory=dict)
    processors: float | None = None
    host_network: bool = False
    ended: bool = False
    leaving: bool = False

    @property
    def started(self) -> bool:
        """False while the runtime has not made the pod's sandbox, which gives it its address.

        Only processes tell; a location that somebody stated counts as started.
        """
        return not self.location.searched or bool(self.ips) or self.location.netns is not None

    @property
    def idle_containers(self) -> tuple[str, ...]:
        """The containers without a process, in spec order: not started yet, or between two runs.

        Empty where the location is stated, because such a location need not name all processes.
        """
        if not self.location.searched:
            return ()
        return tuple(name for name in self.containers if name not in self.location.pids)


class ServicePort(msgspec.Struct, frozen=True):
    """A port of a Service. `target` is a container port's name or number; an absent target port is the port itself."""

    number: int
    target: str | int
    name: str = ""
    app_protocol: str = ""
    transport: Transport = Transport.TCP


class Service(msgspec.Struct, frozen=True):
    """A Service that selects pods by labels, or has `pods` given to it by EndpointSlices that no selector made."""

    namespace: str
    name: str
    selector: Mapping[str, str]
    ports: tuple[ServicePort, ...] = ()
    pods: frozenset[PodKey] = frozenset()


def common_labels(pods: Iterable[Pod]) -> dict[str, str]:
    """The labels that all these pods have, with the same values; none without pods."""
    found: set[tuple[str, str]] | None = None
    for pod in pods:
        found = set(pod.labels.items()) if found is None else found & pod.labels.items()
    return dict(sorted(found or ()))
