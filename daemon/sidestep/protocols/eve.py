"""Records of inspection in the format that Suricata's EVE log has (JSON, one object on a line).

A record says when, on which flow, between which addresses, and holds one object named after its type: `http`, `tls`,
`alert` (with `http`), `anomaly`, `flow`, `fileinfo` (with `http`) or `stats`. Names and forms are those of Suricata 7,
so that whatever reads its records reads these; a test compares them with records that Suricata made. What Suricata
does not know stands in two objects of our own: `kubernetes` says whose traffic it was, `sidestep` what was decided.
Functions here make the objects of `eve_records` where there is something to work out; the others are made as they are.

Texts have passed `eve_redaction`. `encode` gives a line of JSON without any character that is not printable: those are
escaped as JSON escapes them. A record of whatever traffic stays below MAX_RECORD.
"""

from __future__ import annotations

import datetime as dt
import re
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final, Literal

import msgspec

from sidestep.model.text import harmless_json
from sidestep.model.waf import CUSTOM_PLACE, FIRST_CUSTOM
from sidestep.protocols import ja4
from sidestep.protocols.client_hello import ClientHello
from sidestep.protocols.eve_records import (
    Alert,
    Anomaly,
    Certificate,
    Detail,
    FileInfo,
    Flow,
    Gap,
    Header,
    Http,
    Http2,
    Ja3,
    Kubernetes,
    Origin,
    Record,
    RecordedAction,
    Sidestep,
    Tls,
)
from sidestep.protocols.eve_redaction import MAX_VALUE, Redaction, text

MAX_RECORD: Final = 256 * 1024
"""Bytes of one line. Heads fill it at most: their bytes may grow sixfold by JSON's escapes."""
MAX_COUNTERS: Final = 256
"""Counters of one `stats` record."""

NO_DAEMON: Final = "no-daemon"
"""The reason of `gap`."""

_DELETE: Final = b"\x7f"
_FIRST_SIGNATURE: Final = 1_000_000_000
_REQUEST_FIELDS: Final = frozenset((b"user-agent", b"x-forwarded-for", b"referer"))
_RESPONSE_FIELDS: Final = frozenset((b"content-type", b"location"))
_TLS_VERSIONS: Final = {0x0304: "TLS 1.3", 0x0303: "TLS 1.2", 0x0302: "TLS 1.1", 0x0301: "TLSv1", 0x0300: "SSLv3"}
FIREWALL: Final = "WAF"
"""The rule that hits of a web application firewall are told of; no rule of a policy has a name in upper case."""
_EVALUATIONS: Final = ((949_000, 949_999), (959_000, 959_999), (980_000, 980_999))
"""Ids of rules of CRS that found nothing themselves: they decide by the score, and tell it."""
_IDS: Final = re.compile(r"[0-9]{1,10}(?: [0-9]{1,10}){0,63}")
_ENCODER: Final = msgspec.json.Encoder()

Fields = Sequence[tuple[bytes, bytes]]
"""Names in lower case, and values, of a head."""
MAX_TOLD: Final = 3
"""Rules that an alert of a firewall names."""
_NAMED: Final = {Http: "http", Tls: "tls", Alert: "alert", Anomaly: "anomaly", Flow: "flow", FileInfo: "fileinfo"}
_WITH_PROTOCOL: Final = frozenset(("alert", "flow", "fileinfo"))
"""Types of records that name the protocol of the connection beside their object."""


def record(
    at: int,
    origin: Origin,
    detail: Detail,
    *,
    transaction: int | None = None,
    http: Http | None = None,
    sidestep: Sidestep | None = None,
    to_client: bool = False,
) -> Record:
    """A record of what happened on a connection. `at` is in nanoseconds since 1970, the type follows from `detail`.

    `transaction` is the number of the exchange, from 0. `http` is the exchange of an alert or a body. `to_client`: it
    is about what the server sent, and source and destination are told so.
    """
    name = _NAMED[type(detail)]
    source, destination = (origin.server, origin.client) if to_client else (origin.client, origin.server)
    objects: dict[str, Detail | Http | None] = {"http": http, name: detail}
    return Record(
        timestamp=timestamp(at),
        flow_id=origin.flow_id,
        event_type=name,
        src_ip=source[0],
        src_port=source[1],
        dest_ip=destination[0],
        dest_port=destination[1],
        proto="TCP",
        tx_id=transaction,
        app_proto=(origin.protocol or None) if name in _WITH_PROTOCOL else None,
        kubernetes=origin.kubernetes,
        sidestep=sidestep,
        **objects,  # type: ignore[arg-type] # each stands under the name of its type
    )


def alert(policy: str, rule: str, *, blocked: bool) -> Alert:
    """The alert of a rule, by the name that records and refusals give its policy."""
    return Alert(
        action="blocked" if blocked else "allowed",
        signature_id=signature_id(policy, rule),
        signature=f"{policy}: {rule}",
        severity=1 if blocked else 2,
    )


def firewall_alert(policy: str, pattern: str | None, names: Mapping[int, str], *, blocked: bool) -> Alert | None:
    """The alert of a web application firewall, whose `pattern` are the ids of rules, or words for what was found.

    `names` are what rules say. None for a pattern that is none of a firewall.
    """
    found = pattern or ""
    severity = 1 if blocked else 2
    action: Literal["blocked", "allowed"] = "blocked" if blocked else "allowed"
    if _IDS.fullmatch(found):
        ids = [int(each) for each in found.split()]
        telling = [each for each in ids if not any(first <= each <= last for first, last in _EVALUATIONS)] or ids
        told = "; ".join(_rule(each, names) for each in telling[:MAX_TOLD])
        more = f" and {len(telling) - MAX_TOLD} more" if len(telling) > MAX_TOLD else ""
        return Alert(
            action=action, signature_id=telling[0], signature=f"{policy}: {told}{more}"[:MAX_VALUE], severity=severity
        )
    if found not in ("", "over-limit"):
        return None
    told = "the request exceeds a limit of the firewall" if found else "the request cannot be read"
    return Alert(
        action=action, signature_id=signature_id(policy, FIREWALL), signature=f"{policy}: {told}", severity=severity
    )


def _rule(number: int, names: Mapping[int, str]) -> str:
    """A rule by the number that its author gave it, and by what CRS says that it finds."""
    if number >= FIRST_CUSTOM:
        return f"custom rule {(number - FIRST_CUSTOM) % CUSTOM_PLACE}"
    return f"CRS {number} {names.get(number, '')}".rstrip()


def outwards(decided: Sidestep, host: str) -> Sidestep:
    """What was decided, of a connection that the pod makes to a server of this name, "" if that is not known."""
    return msgspec.structs.replace(decided, direction="egress", host=host or None)


def stats(at: int, kubernetes: Kubernetes, counters: Mapping[str, int]) -> Record:
    """A record of counters, at most MAX_COUNTERS of them."""
    shown = dict(list(counters.items())[:MAX_COUNTERS])
    return Record(timestamp=timestamp(at), event_type="stats", stats=shown, kubernetes=kubernetes)


def gap(kubernetes: Kubernetes, ports: tuple[int, ...], start: float, end: float) -> Record:
    """An anomaly of a pod: nobody inspected these ports from `start` to `end` (seconds since 1970), its time."""
    told = timestamp(int(end * 1_000_000_000))
    missed = Gap(
        ports=ports, start=timestamp(int(start * 1_000_000_000)), end=told, seconds=round(end - start, 3)
    )  # fmt: skip
    return Record(
        timestamp=told,
        event_type="anomaly",
        anomaly=Anomaly(type="applayer", event=NO_DAEMON, layer="proto_detect"),
        kubernetes=kubernetes,
        sidestep=Sidestep(action=RecordedAction.PASS, inspected=False, reason=NO_DAEMON, gap=missed),
    )


def encode(made: Record) -> bytes:
    """One line of JSON, its newline included; every character of it is printable."""
    line = _ENCODER.encode(made)
    if not line.isascii() or _DELETE in line:
        line = harmless_json(line.decode()).encode()
    return line + b"\n"


def http(
    *,
    method: bytes,
    target: bytes,
    authority: bytes,
    fields: Fields,
    stream: int | None = None,
    protocol: str = "HTTP/1.1",
    status: int | None = None,
    answer: Fields = (),
    length: int | None = None,
    redaction: Redaction,
    with_heads: bool = False,
) -> Http:
    """An exchange whose names of fields are in lower case.

    `stream` is the id of an HTTP/2 stream; without it the exchange is one of `protocol`. `answer` are the fields of the
    response, `length` the bytes of its body. `with_heads` adds all fields of both heads.
    """
    asked = {name: value for name, value in fields if name in _REQUEST_FIELDS}
    told = {name: value for name, value in answer if name in _RESPONSE_FIELDS}
    host, port = split_port(authority.rpartition(b"@")[2])
    return Http(
        version=None if stream is None else "2",
        hostname=text(host) if host else None,
        http_port=port,
        url=redaction.url(target),
        http_user_agent=redaction.value(b"user-agent", asked[b"user-agent"]) if b"user-agent" in asked else None,
        xff=redaction.value(b"x-forwarded-for", asked[b"x-forwarded-for"]) if b"x-forwarded-for" in asked else None,
        http_content_type=text(told[b"content-type"].partition(b";")[0].strip()) if b"content-type" in told else None,
        http_refer=redaction.value(b"referer", asked[b"referer"]) if b"referer" in asked else None,
        http_method=text(method),
        protocol=protocol if stream is None else None,
        status=status,
        redirect=redaction.value(b"location", told[b"location"]) if b"location" in told else None,
        length=length,
        request_headers=_headers(redaction, fields) if with_heads else None,
        response_headers=_headers(redaction, answer) if with_heads and answer else None,
        http2=None if stream is None else Http2(stream),
    )


def tls(
    hello: ClientHello | None,
    *,
    version: int,
    server: Certificate | None = None,
    client: Certificate | None = None,
    resumed: bool = False,
) -> Tls:
    """A connection's TLS, by what its client offered, if known. `version` is the number of the one agreed on."""
    shown = Certificate("", "") if server is None else _short(server)
    known = None if hello is None else ja4.fingerprints(hello)
    return Tls(
        subject=shown.subject or None,
        issuerdn=shown.issuerdn or None,
        session_resumed=resumed,
        serial=shown.serial,
        fingerprint=shown.fingerprint,
        sni=None if hello is None or hello.server_name is None else text(hello.server_name),
        version=tls_version(version),
        notbefore=shown.notbefore,
        notafter=shown.notafter,
        ja3=None if known is None else Ja3(known.ja3, known.ja3_text),
        ja4=None if known is None else known.ja4,
        client=None if client is None else _short(client),
    )


def timestamp(at: int) -> str:
    """Nanoseconds since 1970 as Suricata writes times, in UTC: `2026-11-29T09:31:17.715381+0000`."""
    seconds, rest = divmod(at, 1_000_000_000)
    return f"{_second(seconds)}.{rest // 1000:06}+0000"


def certificate_time(seconds: int) -> str:
    """Seconds since 1970 as Suricata writes the times of certificates: `2026-11-29T09:31:17`."""
    return _second(seconds)


def tls_version(version: int) -> str:
    """The number of a protocol version (0x0303 is TLS 1.2) as Suricata names it."""
    return _TLS_VERSIONS.get(version, "UNDETERMINED")


def signature_id(policy: str, rule: str) -> int:
    """A number for a rule that has a name only: the same each time, 1,000,000,000 to 1,999,999,999."""
    return _FIRST_SIGNATURE + zlib.crc32(f"{policy}\0{rule}".encode()) % _FIRST_SIGNATURE


def _short(certificate: Certificate) -> Certificate:
    """The certificate with texts of bounded length: names in it may have any."""
    values = ((name, getattr(certificate, name)) for name in Certificate.__struct_fields__)
    return Certificate(**{name: value and value[:MAX_VALUE] for name, value in values})


def _headers(redaction: Redaction, fields: Fields) -> list[Header]:
    return [Header(name, value) for name, value in redaction.fields(fields)]


def split_port(authority: bytes) -> tuple[bytes, int | None]:
    """Host and port of an authority; the port is None where there is none."""
    host, colon, port = authority.rpartition(b":")
    if colon and port.isdigit() and len(port) <= 5 and not (host.startswith(b"[") and not host.endswith(b"]")):
        return host, int(port)
    return authority, None


@lru_cache(maxsize=64)
def _second(seconds: int) -> str:
    """Times of one second begin alike, and records come in the order of time."""
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%S")
