"""The control messages between node daemon, zygote and pod proxy: one msgpack-encoded struct per SEQPACKET packet.

Rules

  * A message brings at most one file descriptor; its docstring names it after "fd:".
  * Each message is answered by one `Ack` with the same `seq`, except `Ack`, `Spawned` and `Heartbeat`.
  * State travels as snapshots (`Configure`). Applying a snapshot twice changes nothing.
  * A message of the daemon that is longer than MAX_INLINE travels in a memfd (`Large`). Proxies send none.
  * What a proxy sends is bounded where it is decoded: one that is taken over costs the daemon no more than another.
  * `Hello` says the version.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from sidestep.config import proxy_workers
from sidestep.snapshots import ports
from sidestep.snapshots.egress import EgressSnapshot
from sidestep.snapshots.hindrance import Hindrance
from sidestep.snapshots.ports import PortSnapshot

VERSION = 1
"""Version of everything in this module."""
MAX_INLINE = 64 * 1024
"""Bytes of one packet above which the message travels as a memfd."""
MAX_LINES = 256
"""Log lines of one `Requests`."""
MAX_PORTS = 64
"""Ports of one `Heartbeat`."""
MAX_HINDRANCES = 2048
"""Hindrances of one `Hindered`: each of 1,024 steered ports in both address families."""
OUTBOUND = ports.OUTBOUND
OUTBOUND_TRANSPORT = "outbound"
"""The transport of their listener."""
MAX_CERTIFICATE = 16 * 1024
"""Bytes of the certificate in `Probed`; a larger one is left out."""
MAX_TEXT = 2048
"""Characters of a method, path, authority, or of a field's name or value in a log line."""
MAX_TLS_TEXT = 256
"""Characters of a name of a client's TLS connection in a log line."""
MAX_FIELDS = 4096
"""Fields of a log line that are decoded at most. A line has no more bytes of fields (`policy.redaction`)."""
MAX_COUNTERS = 512
"""Counters of one kind that are decoded at most; some sixty exist."""

MAX_RESOLV_CONF, MAX_HOSTS = 16 * 1024, 256 * 1024
"""Characters of the container's files that `UseNetwork` has."""
MAX_ADDRESS = 64
"""Characters of an IP address."""
MAX_DIAL_ERROR = 1000
"""Characters of the reason in `Dialed`."""
MAX_RECORDS = 128
"""Records of one `Records`."""
MAX_RECORD = 32 * 1024
"""Bytes of one of them."""

Counters = Annotated[dict[str, int], msgspec.Meta(max_length=MAX_COUNTERS)]


class Message(msgspec.Struct, tag=True, tag_field="message", array_like=True, forbid_unknown_fields=True):
    """Base of all messages. `seq` is the sender's counter, from 1."""

    seq: int


# --- daemon to zygote -----------------------------------------------------------------------------------------------


class Spawn(Message):
    """Fork a pod proxy. fd: the proxy's end of its control socketpair. Answered by `Spawned`.

    It does not name the pod: every proxy has a copy of the zygote's memory.
    """


class Spawned(Message):
    """fd: a pidfd of the new proxy. `seq` repeats that of `Spawn`."""

    pid: int


# --- daemon to proxy ------------------------------------------------------------------------------------------------


class Stderr(Message):
    """First message: write errors here. fd: the end of a pipe of the proxy's own."""


class Enter(Message):
    """Third message: enter the pod's network namespace and lock the sandbox. fd: the netns."""

    uid: int
    memory_limit: int
    """Bytes of private writable memory (`sandbox.rlimits`); 0: no bound."""
    fd_limit: int
    """Open files."""


class Pulse(Message):
    """Second message: count here every 500 ms, as a sign of life. fd: a page of memory (`aio.pulse`).

    The page is mapped before the sandbox is locked: no memory can be shared after that.
    """


class Configure(Message):
    """The complete desired state. A port that is not listed keeps its connections; their requests go to the app."""

    generation: int
    ports: tuple[PortSnapshot, ...]
    client_sources: str = ""
    """The IPv4 network from whose addresses connections to the app are made that are named (`NameClient`), so that the
    app sees the client's address. Empty: connections are not named."""
    drain_timeout: float = 30.0
    """Seconds that connections have to finish when the daemon is gone."""
    records: bool = False
    """Somebody reads EVE records of inspection."""
    egress: tuple[EgressSnapshot, ...] = ()
    """Policies about connections that the pod makes."""
    outbound: PortSnapshot | None = None
    """Who listens to such connections: rules and captures of a port with number OUTBOUND."""
    workers: Annotated[int, msgspec.Meta(ge=1, le=proxy_workers.MOST)] = 1
    """Processes that serve the pod. Each takes 1/workers of what a pod proxy may use (`runtime.fair_share`)."""


class Credential(Message):
    """Key material. fd: a memfd with PEM. Sent before the `Configure` that names it; the Ack proves that it loads.

    `kind` "identity": private key and certificate chain; "trust": CA certificates. `name` holds a digest, so that a new
    certificate is a new name; the proxy drops credentials that no port names any more.
    """

    name: str
    kind: str


class FeedIds(Message):
    """Feed the connections of ports whose policies have `ids` to an IDS. fd: a pipe (`mirror.ids_feeds`).

    The daemon keeps no duplicate: the IDS ends with the proxy that feeds it. Another one takes the place of the first.
    """


class UseInspector(Message):
    """Have requests judged by this inspector, in the place of any other. fd: a socket to it (`protocols.waf_messages`).

    The daemon keeps no duplicate: an inspector ends with the proxy that asks it.
    """


class ShareTable(Message):
    """Where connections that the pod makes were meant to go (`model.egress_table`). fd: the array.

    Sent before their listener, to which `Listen` with port OUTBOUND and OUTBOUND_TRANSPORT belongs.
    """

    network: str
    """The IPv4 network that stands for IPv4 destinations."""
    entries: int


class Listen(Message):
    """Accept on this listener for a port. fd: the listening socket (the daemon keeps a duplicate)."""

    port: int
    transport: str


class Unlisten(Message):
    """The port is no longer steered: accept for at least 1 s more and until the queue is empty, then close."""

    port: int
    transport: str


class Opened(Message):
    """The stream asked for by `Open` is connected to the handler. fd: one end of a stream socketpair."""

    stream: int


class Refused(Message):
    """The stream asked for by `Open` is refused (session gone, handler refused). The proxy is not told why."""

    stream: int


class UseNetwork(Message):
    """What connections of `Dial` need. Sent before the first, and again when it has changed."""

    resolv_conf: Annotated[str, msgspec.Meta(max_length=MAX_RESOLV_CONF)]
    """The container's /etc/resolv.conf."""
    hosts: Annotated[str, msgspec.Meta(max_length=MAX_HOSTS)]
    """Its /etc/hosts."""
    denied: tuple[str, ...] = ()
    """Networks that are refused (annotation `sidestep.dev/outbound-deny`)."""
    node: tuple[str, ...] = ()
    """The node's own addresses, which are refused."""


class Dial(Message):
    """Connect from the pod for a session with access to it, and relay. fd: the proxy's end of a stream socketpair.

    Answered by `Dialed`, besides the Ack. The daemon closes its end to give the connection up, at any time. AF_UNIX
    sockets have no reset: the proxy closes both directions at once, without an end before, where the server resets.
    """

    stream: int
    """The daemon's counter."""
    host: str
    """An address, or a name to be looked up."""
    port: int
    protocol: str
    """"tcp", or "udp": the socketpair then carries capsules (`protocols.capsules`)."""
    allow_loopback: bool = False


class Drain(Message):
    """Stop: finish what is in flight within `timeout` seconds, then exit.

    `leave`: other processes accept from the same listeners. They have what waits there, and ours are closed at once.
    """

    timeout: float
    leave: bool = False


# --- proxy to daemon ------------------------------------------------------------------------------------------------


class Hello(Message):
    """Sent once the sandbox is locked."""

    version: int
    pid: int


class Ack(Message):
    """Answer to the message with this `seq`. `error` is empty when it was carried out."""

    error: str = ""


class Heartbeat(Message):
    """Every 500 ms, unless nothing has changed since the last; not acknowledged. The `Pulse` is counted in any case.

    Totals since the proxy began, per steered port (`ports[number]`), of at most MAX_PORTS ports: a proxy with more
    sends several.
    """

    connections: int
    """Open client connections now."""
    ports: Annotated[dict[int, Counters], msgspec.Meta(max_length=MAX_PORTS)]
    """Counter name to total: accepted, wired, diverted, copied, app_requests, no_app, tls_passed …"""
    anomalies: Counters
    """Reason (Relay.anomaly) to total."""


class Open(Message):
    """Ask for a connection to the handler of rule `uid`. Answered by `Opened` or `Refused`, besides the Ack."""

    stream: int
    uid: str
    port: int
    protocol: str
    """"http/1.1", "h2", "tcp" or "udp"."""
    tls: bool
    server_name: str
    client: str
    """Client address, textual."""
    client_port: int


class Reset(Message):
    """The stream of `Opened` was reset: its handler is to see a broken connection, not a finished one.

    AF_UNIX sockets have no reset; this message stands for it.
    """

    stream: int


class Dialed(Message):
    """The connection of a `Dial` is made, or why it is not."""

    stream: int
    error: Annotated[str, msgspec.Meta(max_length=MAX_DIAL_ERROR)] = ""
    address: Annotated[str, msgspec.Meta(max_length=MAX_ADDRESS)] = ""
    """Where it leads, when it is made."""


class LoggedAnswer(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """How a request was answered (`engine.mirror.notes.Answer`)."""

    status: int
    by: str
    """"app", "handler", "sidestep", or "" where nobody has answered."""
    handler: str
    seconds: float
    sent: int
    received: int
    is_whole: bool
    head: str
    """Field lines, at most `policy.redaction.MAX_BYTES` of them before they became text."""


class LoggedTls(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """The client's TLS connection, as OpenSSL names things; texts of at most MAX_TLS_TEXT characters."""

    version: str
    cipher: str
    alpn: str
    """The protocol that was chosen; "": none."""
    server_name: str
    """The client's SNI; "": none."""
    client: str
    """The subject of the client's verified certificate; "": it showed none."""
    ja3: str = ""
    """The fingerprints of its ClientHello (`protocols.ja4`); "": it was not kept."""
    ja4: str = ""


class LoggedRequest(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """One diverted or copied request, for the session's log.

    Method, path, authority and fields are bytes on the wire, and HTTP gives them no encoding (RFC 9110 section 5.5). In
    the log they are text for people, from here to the command line: decoded as UTF-8, each byte that is not UTF-8 as
    U+FFFD, cut after MAX_TEXT bytes. Whoever needs the bytes takes them from the diverted or copied connection itself.
    """

    uid: str
    port: int
    client: str
    client_port: int
    method: str
    path: str
    authority: str
    copied: bool
    lost: str = ""
    """"dropped" or "truncated" when the copy did not, or not whole, reach its handler."""
    fields: Annotated[tuple[tuple[str, str], ...], msgspec.Meta(max_length=MAX_FIELDS)] = ()
    """Header fields for a rule that wants heads only; secrets are redacted before they get here."""
    server: str = ""
    """Of a connection that the pod makes: the address of the server, whose port is `port`; the client is the pod."""
    protocol: str = ""
    """"http/1.0", "http/1.1" or "h2"; "" where it is not known. Of a connection that the pod makes: "http", or "tls" or
    "tcp", of which there is no request."""
    age: float = 0.0
    """Seconds since its head came."""
    tls: bool = False
    """The client came over TLS."""
    trace: str = ""
    """Id of its trace, 16 or 32 hex digits."""
    number: int = 0
    """By which the answer is known that follows in a line of its own (`is_answer`); 0: none follows."""
    answer: LoggedAnswer | None = None
    is_answer: bool = False
    """Only the answer to the request of this number; texts and fields are empty."""
    earlier: bool = False
    """From before the session began (`proxy.mirror.recent_requests`)."""
    tls_facts: LoggedTls | None = None
    """More of a client that came over TLS."""


class LostCopies(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """Copies that the proxy did not make, and that have no line of their own (of wiretaps of heads: lines not made)."""

    uid: str
    port: int
    reason: str
    """"handler", "room" or "budget" (`engine.mirror.gate.Why`)."""
    count: int


class Earlier(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """The session of rule `uid` was told all that it is shown of earlier requests to a port."""

    uid: str
    port: int
    count: int
    kept: bool
    """Requests of the port were kept before."""


class Requests(Message):
    """A batch of log lines, at most MAX_LINES; what is beyond is dropped and counted."""

    requests: Annotated[tuple[LoggedRequest, ...], msgspec.Meta(max_length=MAX_LINES)]
    dropped: int
    losses: Annotated[tuple[LostCopies, ...], msgspec.Meta(max_length=MAX_LINES)] = ()
    """At most MAX_LINES, too."""
    earlier: Annotated[tuple[Earlier, ...], msgspec.Meta(max_length=MAX_LINES)] = ()
    """Likewise."""


class Records(Message):
    """EVE records of inspection (`protocols.eve_records.Record`), each encoded as MessagePack by itself."""

    records: Annotated[
        tuple[Annotated[bytes, msgspec.Meta(max_length=MAX_RECORD)], ...], msgspec.Meta(max_length=MAX_RECORDS)
    ]
    dropped: Counters
    """Reason to number: records that were not made or not sent, since the last message that was sent."""


class LiveRecords(Message):
    """Records of inspection for the session of rule `uid`, each encoded as in `Records`."""

    uid: str
    records: Annotated[
        tuple[Annotated[bytes, msgspec.Meta(max_length=MAX_RECORD)], ...], msgspec.Meta(max_length=MAX_RECORDS)
    ]
    dropped: Counters
    """As in `Records`."""


class Report(Message):
    """A condition that connections of this port met. An empty `text` takes it back."""

    port: int
    type: str
    """A `ConditionType` value."""
    text: str


class Probed(Message):
    """What a probe of the app found. `tls` and `http2` are "yes", "no" or "unknown".

    `tls` "unknown" takes back what was found before.
    """

    port: int
    tls: str
    http2: str
    alpn: str
    asks_certificate: bool
    certificate: bytes
    """The app's certificate, DER; empty when none was seen."""


class NameClient(Message):
    """Have the app see `client` behind the connection from `peer` to `port`. Sent between bind and connect."""

    port: int
    peer: str
    peer_port: int
    client: str
    client_port: int


class ForgetClient(Message):
    """The named connection is over."""

    port: int
    peer: str
    peer_port: int


class NoApp(Message):
    """A dial to the app was refused: nothing listens for this port and address family."""

    port: int
    family: int


class NoServer(Message):
    """A server that the pod connected to refused the proxy, or did not answer it."""

    address: Annotated[str, msgspec.Meta(max_length=64)]
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]


class Hindered(Message):
    """All that keeps the proxy from serving now, sent whenever it changes. A new proxy has no hindrance."""

    hindrances: Annotated[tuple[Hindrance, ...], msgspec.Meta(max_length=MAX_HINDRANCES)]


class InspectorLate(Message):
    """The inspector that was handed over last has missed a deadline, and has to be ended."""


class Large(Message):
    """Stands for a message of more than MAX_INLINE bytes. fd: a memfd with its encoding. `seq` repeats its seq."""

    size: int


ToZygote = Spawn | Ack
FromZygote = Hello | Spawned | Ack
"""`Hello` once everything is imported; `Ack` with an error when a fork failed."""

ToProxy = (
    Stderr
    | Pulse
    | Enter
    | Configure
    | Credential
    | FeedIds
    | UseInspector
    | ShareTable
    | Listen
    | Unlisten
    | Opened
    | Refused
    | UseNetwork
    | Dial
    | Drain
    | Ack
    | Large
)
FromProxy = (
    Hello
    | Ack
    | Heartbeat
    | Open
    | Reset
    | Dialed
    | Requests
    | Records
    | LiveRecords
    | Report
    | Probed
    | NameClient
    | ForgetClient
    | NoApp
    | NoServer
    | Hindered
    | InspectorLate
)
"""Without `Large`: a message of a proxy is at most one packet."""
