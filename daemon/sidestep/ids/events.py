"""Reads what a Suricata says (EVE JSON, one object on a line), which is not trusted, and makes records of its alerts.

A line is decoded into the types below; nothing of it reaches the log but texts and numbers in the places where they
belong. What the daemon knows is not taken from it: whose traffic it is, the policy of a rule (by the `gid` that
`rules` gave it), that nothing was blocked. URLs and fields are redacted as the policies want, cookies and
authorization are not read at all, nor are packets and bodies. A time that is not now is replaced.

A Suricata that was taken over can tell of alerts of its own pod that no request caused, and keep quiet about others.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Annotated, Final

import msgspec

from sidestep.protocols import eve
from sidestep.protocols.eve_records import Alert, Http, Http2, Kubernetes, Record, RecordedAction, Sidestep
from sidestep.protocols.eve_redaction import Redaction, text

SKEW: Final = 120_000_000_000
"""Nanoseconds by which an alert may be older or newer than the moment at which it arrives."""
MAX_SIGNATURE: Final = 512
"""Characters of a rule's message and class."""
_TO_CLIENT: Final = "to_client"
PROTOCOLS: Final = {"http": "http", "http2": "http2"}

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Number = Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]


class _Alert(msgspec.Struct, frozen=True):
    gid: Number
    signature_id: Number
    signature: str
    rev: Number = 0
    category: str = ""
    severity: Annotated[int, msgspec.Meta(ge=0, le=255)] = 3


class _Stream(msgspec.Struct, frozen=True):
    stream_id: Number = 0


class _Http(msgspec.Struct, frozen=True):
    hostname: str | None = None
    url: str = ""
    http_user_agent: str | None = None
    http_content_type: str | None = None
    http_refer: str | None = None
    http_method: str = ""
    protocol: str | None = None
    version: str | None = None
    status: Number | None = None
    redirect: str | None = None
    length: Number | None = None
    http2: _Stream | None = None


class _Event(msgspec.Struct, frozen=True):
    event_type: str
    timestamp: str = ""
    src_ip: str = ""
    src_port: Port = 0
    dest_ip: str = ""
    dest_port: Port = 0
    direction: str = ""
    flow_id: Number | None = None
    tx_id: Number | None = None
    app_proto: str | None = None
    alert: _Alert | None = None
    http: _Http | None = None


_DECODER: Final = msgspec.json.Decoder(_Event)


class IdsEvent(msgspec.Struct, frozen=True):
    """One line, decoded."""

    event: _Event

    @property
    def is_alert(self) -> bool:
        """Whether a rule has found something; all else says that Suricata is alive."""
        return self.event.event_type == "alert"


def decode(line: bytes) -> IdsEvent | None:
    """What a line says; None for what cannot be read."""
    try:
        return IdsEvent(_DECODER.decode(line))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def record(
    event: IdsEvent,
    *,
    policies: Sequence[str],
    redaction: Redaction,
    pod: Collection[IPv4Address | IPv6Address],
    kubernetes: Kubernetes,
    now: int,
) -> Record | None:
    """The record of an alert; None for one that no rule of the pod can have made.

    `policies` are the names of the policies in the order in which their rules were rendered, `pod` are the addresses
    of the pod, and `now` is in nanoseconds since 1970.
    """
    said, told = event.event, event.event.alert
    if told is None or not 1 <= told.gid <= len(policies):
        return None
    try:
        client, server = ip_address(said.src_ip), ip_address(said.dest_ip)  # Suricata writes IPv6 without abbreviation
    except ValueError:
        return None
    policy = policies[told.gid - 1]
    if said.direction == _TO_CLIENT:
        client, server = server, client
    is_outward = client in pod and server not in pod
    return Record(
        timestamp=said.timestamp if abs(_nanoseconds(said.timestamp) - now) <= SKEW else eve.timestamp(now),
        flow_id=said.flow_id,
        event_type="alert",
        src_ip=said.src_ip,
        src_port=said.src_port,
        dest_ip=said.dest_ip,
        dest_port=said.dest_port,
        proto="TCP",
        tx_id=said.tx_id,
        alert=Alert(
            action="allowed",
            signature_id=told.signature_id,
            rev=told.rev,
            signature=told.signature[:MAX_SIGNATURE],
            category=told.category[:MAX_SIGNATURE],
            severity=told.severity,
        ),
        http=None if said.http is None else _http(said.http, redaction),
        app_proto=PROTOCOLS.get(said.app_proto or ""),
        kubernetes=kubernetes,
        sidestep=Sidestep(
            policy=policy,
            rule=str(told.signature_id),
            action=RecordedAction.ALERT.value,
            inspected=True,
            engine="suricata",
            direction="egress" if is_outward else None,
        ),
    )


def _http(said: _Http, redaction: Redaction) -> Http:
    def value(name: bytes, told: str | None) -> str | None:
        return None if told is None else redaction.value(name, _bytes(told))

    return Http(
        version="2" if said.version == "2" else None,
        hostname=None if said.hostname is None else text(_bytes(said.hostname).rpartition(b"@")[2]),
        url=redaction.url(_bytes(said.url)),
        http_user_agent=value(b"user-agent", said.http_user_agent),
        http_content_type=value(b"content-type", said.http_content_type),
        http_refer=value(b"referer", said.http_refer),
        http_method=text(_bytes(said.http_method)),
        protocol=None if said.protocol is None else text(_bytes(said.protocol), 32),
        status=said.status,
        redirect=value(b"location", said.redirect),
        length=said.length,
        http2=None if said.http2 is None else Http2(said.http2.stream_id),
    )


def _bytes(told: str) -> bytes:
    return told.encode("utf-8", "backslashreplace")


def _nanoseconds(timestamp: str) -> int:
    """The time that an alert says; 0 if it says none in Suricata's form, in UTC."""
    try:
        read = dt.datetime.strptime(timestamp, "%Y-%m-%dT%H:%M:%S.%f+0000").replace(tzinfo=dt.UTC)
    except ValueError:
        return 0
    return int(read.timestamp()) * 1_000_000_000
