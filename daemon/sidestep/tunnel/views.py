"""What the node daemon shows to a command line, as JSON structs.

`GET /v1/status` answers a `StatusView`, `GET /v1/workloads` a list of `WorkloadView`, `GET /v1/alerts/ID` an
`AlertView`. The daemon encodes these structs,
the command line decodes them, and `sidestep status --output json` and `sidestep list --output json` print them
unchanged: field names are a public interface. Add fields, do not rename them.
"""

from __future__ import annotations

from typing import Any

import msgspec

from sidestep.protocols.eve_records import Record
from sidestep.tunnel.messages import PodState, State

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
    sessions: tuple[str, ...] = ()
    """`kind/name` of all sessions of this port, as `sidestep leave` takes it: intercepts, wiretaps, flows …"""
    policies: tuple[str, ...] = ()
    """The inspection policies that apply to the port in a pod of the workload, with their modes: `shop/orders
    (Enforce)`. Those of the cluster have no namespace. In a cluster it is what the statuses of the policies say."""


class InterceptView(msgspec.Struct, frozen=True):
    """One session. `kind` is "intercept", "wiretap", "flows", "capture" or "inspection".

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
    """One workload of this node. `intercepts` are the `namespace/name` of those that cover a pod of it, on any port,
    `sessions` the `kind/name` of all sessions that do.
    """

    namespace: str
    kind: str
    name: str
    pods: tuple[str, ...]
    ports: tuple[PortView, ...]
    intercepts: tuple[str, ...] = ()
    conditions: tuple[ConditionView, ...] = ()
    egress: tuple[str, ...] = ()
    """The inspection policies that apply to connections that its pods make, as `PortView.policies`."""
    listening: tuple[str, ...] = ()
    """Those of `sessions` that are about such connections."""
    sessions: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    """Those that all its pods have."""


class UninspectedView(msgspec.Struct, frozen=True):
    """Seconds for which new connections to ports of a pod that have policies were not inspected."""

    outcome: str
    """"open": they reached the app. "closed": they were refused."""
    reason: str
    seconds: float


class EngineView(msgspec.Struct, frozen=True):
    """An engine of inspection beside the proxy of a pod: a process that reads what the proxy decrypts."""

    kind: str
    """`suricata`, or `inspector`: the web application firewall."""
    state: str
    """"starting", "running", or "paused": it has ended or could not be started, and is started again."""
    pid: int = 0
    version: str = ""
    """What the program says; empty where it says none, or is not there."""
    policies: tuple[str, ...] = ()
    """The policies whose rules it has: `shop/orders`; those of the cluster have no namespace."""
    rules: int = 0
    memory: int = 0
    """Bytes that are resident now, pages shared with other processes included."""
    memory_limit: int = 0
    """Bytes of private memory that it may have."""
    restarts: int = 0
    """Processes that ended although they were wanted, or could not be started, since the pod is a target."""
    connections: dict[str, int] = {}
    """Since the pod's proxy began: `fed` (it has seen some of them), `unfed` (nothing), `cut` (not to their ends)."""
    verdicts: dict[str, int] = {}
    """Of an inspector, since the pod's proxy began: `judged` requests, and within how many milliseconds half of them
    (`p50`) and 99 of 100 (`p99`) had their verdict, the time in which they waited for others included; 0: longer than
    is counted."""
    problem: str = ""
    """Why it does not run, or not with the rules that are in force."""
    bypassed: dict[str, int] = {}
    """Of an inspector, since the pod's proxy began: requests and responses that it should have judged and did not, by
    reason (`deadline`, `crash`, `absent`, `busy`, `over_limit` …). They passed, or a policy closed."""


class OutboundView(msgspec.Struct, frozen=True):
    """Connections that a target pod makes, while a policy is about them or a session listens to them."""

    state: str
    """"steered": new ones are sent to the proxy. "direct": they go out as they would without Sidestep, or are refused
    where a policy fails closed."""
    problem: str = ""
    """Why they are not inspected, if it is known."""
    open: int = 0
    """Those that were sent to the proxy and that the pod has not closed."""
    counters: dict[str, int] = {}
    """What the proxy has counted since it began: `outbound` (accepted), `outbound_closed`, `servers_refused`, and hits
    of rules as `inspection_blocked` …"""
    verdicts: dict[str, int] = {}
    """What the kernel has counted since they are steered (`steering.EgressVerdict`): `steered`, `unselected` …"""


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
    closed: tuple[str, ...] = ()
    """Ports whose clients are refused now, because a policy wants nothing to pass uninspected: `8443/tcp` …"""
    uninspected: tuple[UninspectedView, ...] = ()
    """For how long ports that have policies were not inspected."""
    engines: tuple[EngineView, ...] = ()
    """The processes that inspect beside the proxy, one of a kind."""
    outbound: OutboundView | None = None
    """Connections that it makes; None while they are nobody's business."""
    proxy_pids: tuple[int, ...] = ()
    """All processes of the proxy, `proxy_pid` among them."""
    why_fewer_workers: str = ""
    """Why there is one process although annotations ask for more."""


MAX_FAILING = 10
"""Failing pods that a `PolicyView` names."""


class InspectedView(msgspec.Struct, frozen=True, order=True):
    """A workload of this node, `NAMESPACE/KIND/NAME`, and its TCP ports to which a policy applies, sorted.

    `egress`: it applies to the connections that the workload's pods make.
    """

    workload: str
    ports: tuple[int, ...]
    egress: bool = False


class GapView(msgspec.Struct, frozen=True):
    """A time in which ports of `pods` pods, to which policies applied before and after it, were not inspected.

    `start` and `end` are seconds since 1970.
    """

    start: float
    end: float
    reason: str
    pods: int


class PolicyEngineView(msgspec.Struct, frozen=True):
    """The engines of one kind beside the pods of a policy on this node."""

    kind: str
    """As `EngineView.kind`; `version` too."""
    version: str = ""
    pods: int = 0
    """Those with one that runs, ..."""
    waiting: int = 0
    """... and without."""
    rules: int = 0
    """Of the one that has most."""
    memory: int = 0
    """Bytes of the largest that are resident, pages shared with other processes included."""
    restarts: int = 0
    judged: int = 0
    """Requests and responses that inspectors have judged; half of them within `p50` milliseconds, 99 of 100 within
    `p99`, 0: longer than is counted."""
    p50: int = 0
    p99: int = 0
    missed: int = 0
    """What inspectors should have judged and did not; connections that Suricata was not fed, or not to their ends."""


class PolicyView(msgspec.Struct, frozen=True):
    """One inspection policy that is written, valid or not, on this node; `namespace` is empty for one of the cluster.

    `mode` and `failure_policy` are those of the version in force, empty without one; the latter as
    `InspectionPolicy.shown_failure_policy`.
    """

    namespace: str
    name: str
    mode: str
    failure_policy: str
    accepted: bool
    """The document as it is written is accepted; `problem` says why it is not, or not yet."""
    problem: str = ""
    in_force: bool = False
    """A version of it applies: the accepted one, or the last good one."""
    programmed: tuple[str, ...] = ()
    """`namespace/name` of the pods that are inspected by it."""
    failing: tuple[PodState, ...] = ()
    """The first pods that it selects and that are not inspected by it, or not on all ports ..."""
    failing_pods: int = 0
    """... and how many there are."""
    bypassed: dict[str, int] = {}
    """By reason: what passed unread on the ports to which it applies, since the processes of their proxies began."""
    closed: dict[str, int] = {}
    """By reason: what was refused there because it cannot be read."""
    hits: dict[str, int] = {}
    """Hits there, of all policies together: `logged`, `alerted`, `would_block`, `blocked`."""
    inspected: tuple[InspectedView, ...] = ()
    """The workloads to whose ports it applies on this node, sorted."""
    gaps: tuple[GapView, ...] = ()
    """When nobody inspected ports to which it applies: while no daemon ran, before this one."""
    engines: tuple[PolicyEngineView, ...] = ()
    """The engines that it has beside its pods, one entry of a kind."""
    rules_problem: str = ""
    """Why an engine does not have the rules that a ConfigMap has for it; empty if it has them, or if there are none."""


class LoopView(msgspec.Struct, frozen=True):
    """Statistics of the daemon's event loop: number of turns by the bounds of `aio.meter.BOUNDS` (not cumulative, one
    more entry for longer ones), their sum and the longest turn, in seconds. A long turn delays everything the daemon
    does.
    """

    turns: tuple[int, ...] = ()
    seconds: float = 0.0
    longest: float = 0.0


class AnswersView(msgspec.Struct, frozen=True):
    """Answers that sessions of a kind ("intercept", "wiretap", "flows") were told of, given by "app", "handler",
    "sidestep" or "nobody", with a status of a class ("2xx" to "5xx", "1xx", "none"): numbers by the bounds of
    `aio.meter.BOUNDS` as in `LoopView`, the sum of seconds, and the bytes of the bodies of requests and answers.
    """

    kind: str
    by: str
    status: str
    counts: tuple[int, ...]
    seconds: float
    sent: int
    received: int


class NodeStatus(msgspec.Struct, frozen=True):
    """The daemon itself."""

    name: str
    version: str
    pid: int
    uptime: float
    """Seconds."""
    counters: dict[str, int]
    loop: LoopView = LoopView()
    answers: tuple[AnswersView, ...] = ()


class ChangeView(msgspec.Struct, frozen=True):
    """A change of a policy, `namespace/name` or the name of one of the cluster, that excepts what an alert is about.

    `spec` is what the policy has to say then, empty where nothing can be changed; `notes` say why, and what it does.
    """

    policy: str
    spec: dict[str, Any]
    notes: tuple[str, ...] = ()


class AlertView(msgspec.Struct, frozen=True):
    """The alerts of one exchange, and what excepts it from the policies."""

    alerts: tuple[Record, ...]
    changes: tuple[ChangeView, ...]


class StatusView(msgspec.Struct, frozen=True):
    """Everything `sidestep status` shows."""

    node: NodeStatus
    pods: tuple[PodView, ...] = ()
    intercepts: tuple[InterceptView, ...] = ()
    conditions: tuple[ConditionView, ...] = ()
    policies: tuple[PolicyView, ...] = ()
