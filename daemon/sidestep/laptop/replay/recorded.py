"""Requests of an HTTP Archive as they can be sent again; a reason where they cannot.

A HAR may be anybody's, so everything is checked here: nothing of it can split a request or become part of another.

    left out   fields of the connection and of framing (RFC 9110, section 7.6.1): they are those of the new connection;
               fields whose values were redacted when they were recorded, which are counted
    not sent   a request whose body was not recorded, or not whole; CONNECT and upgrades, which are no exchanges
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import urlsplit

import msgspec

from sidestep.laptop.replay.message import Fields, Outgoing
from sidestep.model.secret_fields import REDACTED
from sidestep.protocols import har

_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")
_VALUE: Final = re.compile(rb"(?:[\x21-\x7e\x80-\xff](?:[\t \x21-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?")
_TARGET: Final = re.compile(rb"(?:/|https?://)[\x21-\x7e\x80-\xff]*|\*")
_AUTHORITY: Final = re.compile(rb"[\x21-\x7e]{1,300}")
_HOPS: Final = frozenset(
    (
        b"connection",
        b"content-length",
        b"expect",
        b"host",
        b"http2-settings",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
_HIDDEN: Final = REDACTED.decode()


class Recorded(msgspec.Struct, frozen=True):
    """A request of a file. `request` is None where it cannot be sent again, for this reason."""

    number: int
    """From 1, in the order of the file."""
    entry: har.Entry
    request: Outgoing | None
    reason: str = ""
    hidden: tuple[str, ...] = ()
    """Names of fields whose values were redacted."""


def recorded(number: int, entry: har.Entry, replaced: Mapping[bytes, bytes]) -> Recorded:
    """Return an entry as it can be sent. `replaced` are fields (names in lower case) to send in place of its own."""
    request = entry.request
    hidden = tuple(
        field.name
        for field in request.headers
        if field.value == _HIDDEN and field.name.lower().encode() not in replaced
    )
    made = _outgoing(entry, replaced)
    if isinstance(made, str):
        return Recorded(number, entry, None, made, hidden)
    return Recorded(number, entry, made, "", hidden)


def hidden_fields(requests: Sequence[Recorded]) -> str:
    """Return what to say of fields that were left out because their values were redacted; "" where there are none."""
    names = sorted({name.lower() for each in requests if each.request is not None for name in each.hidden})
    return f"Sent without fields whose values were redacted: {', '.join(names)}." if names else ""


def _outgoing(entry: har.Entry, replaced: Mapping[bytes, bytes]) -> Outgoing | str:
    request = entry.request
    method = _bytes(request.method)
    if _TOKEN.fullmatch(method) is None:
        return "its method is none"
    if method == b"CONNECT" or any(field.name.lower() == "upgrade" for field in request.headers):
        return "it asks for another protocol"
    place = _place(entry)
    if place is None:
        return "its URL is none"
    authority, target = place
    fields = _fields(request.headers)
    trailers = _fields(request.trailers)
    if fields is None or trailers is None:
        return "a header field is not valid"
    body = b""
    if isinstance(request.post_data, har.PostData) and isinstance(request.post_data.text, str):
        found = har.body_bytes(request.post_data.text, request.post_data.encoding)
        if found is None:
            return "its body cannot be decoded"
        if request.post_data.truncated is True:
            return "its body was not recorded whole"
        body = found
    elif request.body_size > 0:
        return "its body was not recorded"
    kept = [(name, value) for name, value in fields if name not in replaced]
    return Outgoing(
        method,
        target,
        authority,
        [*kept, *replaced.items()],
        body,
        trailers,
        is_h2=request.http_version.lower() in ("h2", "http/2", "http/2.0", "h3", "http/3", "http/3.0"),
    )


def _place(entry: har.Entry) -> tuple[bytes, bytes] | None:
    """Return the authority and the target of a request; None if it has none."""
    try:
        parts = urlsplit(entry.request.url)
    except ValueError:
        return None
    said = entry.facts.target or (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    authority, target = _bytes(parts.netloc.rpartition("@")[2]), _bytes(said)
    host = next((field.value for field in entry.request.headers if field.name.lower() in ("host", ":authority")), "")
    authority = _bytes(host) or authority
    if _AUTHORITY.fullmatch(authority) is None or _TARGET.fullmatch(target) is None:
        return None
    return authority, target


def _fields(headers: list[har.Field]) -> Fields | None:
    fields = []
    for header in headers:
        name, value = _bytes(header.name.lower()), _bytes(header.value)
        if name[:1] == b":" or name in _HOPS or header.value == _HIDDEN:
            continue
        if _TOKEN.fullmatch(name) is None or _VALUE.fullmatch(value) is None:
            return None
        fields.append((name, value))
    return fields


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")
