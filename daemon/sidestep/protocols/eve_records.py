"""The objects of EVE records, by the names and in the order that Suricata 7 gives their members.

Members with a default are left out where they have it; the others are always told. `eve` makes and encodes records.
"""

from __future__ import annotations

import enum
from typing import Literal

import msgspec


class Header(msgspec.Struct, frozen=True):
    """One field of a head."""

    name: str
    value: str


class Http2(msgspec.Struct, frozen=True):
    """The stream of an HTTP/2 exchange. In the two objects Suricata tells settings; here they are empty."""

    stream_id: int
    request: dict[str, str] = {}
    response: dict[str, str] = {}


class Http(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An exchange. `protocol` is told for HTTP/1, `version` ("2") and `http2` for HTTP/2; `length` is the answer's."""

    version: str | None = None
    hostname: str | None = None
    http_port: int | None = None
    url: str
    http_user_agent: str | None = None
    xff: str | None = None
    http_content_type: str | None = None
    http_refer: str | None = None
    http_method: str
    protocol: str | None = None
    status: int | None = None
    redirect: str | None = None
    length: int | None = None
    request_headers: list[Header] | None = None
    response_headers: list[Header] | None = None
    http2: Http2 | None = None


class Ja3(msgspec.Struct, frozen=True):
    """`hash` is the fingerprint, `string` what it was made of."""

    hash: str
    string: str


class Certificate(msgspec.Struct, frozen=True, omit_defaults=True):
    """A certificate. `serial` (capitals) and `fingerprint` (SHA-1) are pairs of hexadecimal digits, colons between."""

    subject: str
    issuerdn: str
    fingerprint: str | None = None
    serial: str | None = None
    notbefore: str | None = None
    notafter: str | None = None


class Tls(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A connection's TLS. `version` is as `tls_version` gives it; times of certificates as `certificate_time`."""

    subject: str | None = None
    issuerdn: str | None = None
    session_resumed: bool = False
    serial: str | None = None
    fingerprint: str | None = None
    sni: str | None = None
    version: str
    notbefore: str | None = None
    notafter: str | None = None
    ja3: Ja3 | None = None
    ja4: str | None = None
    client: Certificate | None = None


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """A rule that matched. `severity` is 1 (high) to 4."""

    action: Literal["allowed", "blocked"]
    gid: int = 1
    signature_id: int
    rev: int = 1
    signature: str
    category: str = ""
    severity: int


class Anomaly(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Traffic that cannot be read: `event` is a short word, `layer` where it was noticed."""

    app_proto: str | None = None
    type: Literal["applayer"]
    event: str
    layer: Literal["proto_parser", "proto_detect"]


class Flow(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A connection that is over. `start` and `end` are as `timestamp` gives them, `age` is in seconds."""

    bytes_toserver: int
    bytes_toclient: int
    start: str
    end: str
    age: int
    state: Literal["new", "established", "closed", "bypassed"]
    reason: Literal["timeout", "forced", "shutdown", "unknown"]
    alerted: bool
    pkts_toserver: int | None = None
    pkts_toclient: int | None = None


class FileInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A body. `state` is TRUNCATED where it was not seen to its end; nothing of a body is stored."""

    filename: str
    gaps: bool
    state: Literal["CLOSED", "TRUNCATED"]
    sha256: str | None = None
    stored: Literal[False]
    size: int
    tx_id: int


class Kubernetes(msgspec.Struct, frozen=True, omit_defaults=True):
    """Whose traffic it is. `workload` is kind and name, e.g. `deployment/orders`. `stats` are of a node alone."""

    namespace: str = ""
    pod: str = ""
    workload: str | None = None
    node: str | None = None


class TlsDetails(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What Suricata 7 has no name for: the protocol agreed on, the cipher suite, words of `tls_weakness`. `ech`: the
    ClientHello has an encrypted one inside (RFC 9849), or pretends to, so its SNI may be that of a provider."""

    alpn: str | None = None
    cipher: str | None = None
    weak: tuple[str, ...] = ()
    ech: bool = False


class RecordedAction(enum.StrEnum):
    """What was done: by a rule, or with what was not inspected (the last two)."""

    LOG = "Log"
    ALERT = "Alert"
    WOULD_BLOCK = "WouldBlock"
    """A policy in Detect mode would have blocked."""
    BLOCK = "Block"
    PASS = "Pass"  # noqa: S105 - a word
    CLOSE = "Close"


class Gap(msgspec.Struct, frozen=True, kw_only=True):
    """A time in which ports were not inspected. `start` and `end` are as `timestamp` gives them."""

    ports: tuple[int, ...]
    start: str
    end: str
    seconds: float


class Sidestep(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was decided. `id` is what a blocked client was told; `reason` is why something was not inspected.

    `engine` is told where it is not the pod proxy: "suricata", whose `rule` is a sid.

    `pattern` names what a rule found: a built-in pattern or a regex, never the text in which it was found. `direction`
    is told of connections that the pod makes; `host` is the name that its process gave for the server: SNI, or Host.
    """

    policy: str | None = None
    rule: str | None = None
    action: str | None = None
    id: str | None = None
    pattern: str | None = None
    inspected: bool
    reason: str | None = None
    tls: TlsDetails | None = None
    gap: Gap | None = None
    engine: str | None = None
    direction: Literal["egress"] | None = None
    host: str | None = None


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """Where records of one connection come from. `protocol` is what it speaks: http, http2, tls, or empty."""

    flow_id: int
    client: tuple[str, int]
    server: tuple[str, int]
    protocol: str
    kubernetes: Kubernetes


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of the log; its fields stand in the order in which Suricata writes them."""

    timestamp: str
    flow_id: int | None = None
    event_type: str
    src_ip: str | None = None
    src_port: int | None = None
    dest_ip: str | None = None
    dest_port: int | None = None
    proto: str | None = None
    tx_id: int | None = None
    alert: Alert | None = None
    http: Http | None = None
    tls: Tls | None = None
    anomaly: Anomaly | None = None
    app_proto: str | None = None
    flow: Flow | None = None
    fileinfo: FileInfo | None = None
    stats: dict[str, int] | None = None
    kubernetes: Kubernetes
    sidestep: Sidestep | None = None


Detail = Http | Tls | Alert | Anomaly | Flow | FileInfo
