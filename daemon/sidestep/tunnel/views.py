"""What the node daemon shows to a command line, as JSON structs.

`GET /v1/status` answers a `StatusView`, `GET /v1/workloads` a list of `WorkloadView`. The daemon encodes these structs,
the command line decodes them, and `sidestep status --output json` and `sidestep list --output json` print them
unchanged: field names are a public interface. Add fields, do not rename them.
"""

from __future__ import annotations

import msgspec

from sidestep.tunnel.messages import State

NOT_READ = "not read yet"
PENDING = "pending"
"""What `PortView.certificate_state` is, or begins with."""


class ConditionView(msgspec.Struct, frozen=True):
    """`model.condition.Condition` as JSON."""

    type: str
    subject: str
    text: str


class CertificateView(msgspec.Struct, frozen=True):
    """The downstream certificate of a port. `expires` is RFC 3339 in UTC, `serial` lower-case hex, `source` says where
    it comes from ("path /tls of container app", "secret shop/orders-tls").
    """

    names: tuple[str, ...]
    expires: str
    serial: str
    source: str


class PortView(msgspec.Struct, frozen=True):
    """One container port of a workload.

    `protocol` is for people ("https", "http", "h2c", "tcp", "udp", "tls?"); `tls` and `http2` are "always", "never" or
    "probe"; `known` says how it is known ("appProtocol https", "port name https", "certificate", "not known yet").
    """

    number: int
    transport: str
    protocol: str
    tls: str
    http2: str
    known: str
    name: str = ""
    service_ports: tuple[str, ...] = ()
    """`service:port` of every Service port that targets this port."""
    certificate: CertificateView | None = None
    certificate_state: str = ""
    """`NOT_READ` while nothing has needed the certificate; `PENDING` with a colon and the reason while it is needed and
    not there yet; "unusable" when a condition gives the reason; otherwise empty."""
    steered_pods: int = 0
    intercepts: tuple[str, ...] = ()
    """`namespace/name` of the intercepts of this port."""


class InterceptView(msgspec.Struct, frozen=True):
    """One intercept or wiretap.

    `filter` is text ("header x-user=alice", "everything"). `created` is in seconds since the epoch. `counters`:
    diverted (requests), connections (diverted connections so far), open (now), refused (by the session or its handler),
    dropped (request events).
    """

    namespace: str
    name: str
    kind: str
    owner: str
    workload: str
    port: str
    transport: str
    filter: str
    created: float
    state: State
    counters: dict[str, int]


class WorkloadView(msgspec.Struct, frozen=True):
    """One workload of this node. `intercepts` are the `namespace/name` of those that cover a pod of it, on any port."""

    namespace: str
    kind: str
    name: str
    pods: tuple[str, ...]
    ports: tuple[PortView, ...]
    intercepts: tuple[str, ...] = ()
    conditions: tuple[ConditionView, ...] = ()


class PodView(msgspec.Struct, frozen=True):
    """One target pod. `proxy` is "running", "restarting", "failed" or "none"; `counters` are totals since it began."""

    namespace: str
    name: str
    proxy: str
    proxy_pid: int
    steered: tuple[str, ...]
    """`8443/tcp` …"""
    counters: dict[str, int]
    client_addresses: str = ""
    """Whether apps see the addresses of their clients: `on`, or `off: reason`."""
    anomalies: dict[str, int] = {}
    """Connections that were passed through unparsed, by reason."""
    protocols: dict[str, str] = {}
    """By steered port (`8443/tcp`): the protocol and how it is known, `https (port name https)`."""


class LoopView(msgspec.Struct, frozen=True):
    """Statistics of the daemon's event loop: number of turns by the bounds of `aio.meter.BOUNDS` (not cumulative, one
    more entry for longer ones), their sum and the longest turn, in seconds. A long turn delays everything the daemon
    does.
    """

    turns: tuple[int, ...] = ()
    seconds: float = 0.0
    longest: float = 0.0


class NodeStatus(msgspec.Struct, frozen=True):
    """The daemon itself."""

    name: str
    version: str
    pid: int
    uptime: float
    """Seconds."""
    counters: dict[str, int]
    loop: LoopView = LoopView()


class StatusView(msgspec.Struct, frozen=True):
    """Everything `sidestep status` shows."""

    node: NodeStatus
    pods: tuple[PodView, ...] = ()
    intercepts: tuple[InterceptView, ...] = ()
    conditions: tuple[ConditionView, ...] = ()
