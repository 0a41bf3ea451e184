"""The protocols that an HTTP/1.1 request offers in its Upgrade field (RFC 9110 section 7.8).

After a 101 the connection belongs to the side that answered. A WebSocket carries what one client says. A *shared*
protocol carries requests: HTTP in another version (`h2c`), SPDY, or TLS with HTTP in it (RFC 2817). A gateway puts the
requests of many clients on one connection, so only the app may switch to a shared protocol; a handler gets the request
`without_shared`.

`begins_like_request` looks at bytes that a client sends before it knows whether the protocol was switched. If it was
not, they are the next request, which may not be for the handler.
"""

from __future__ import annotations

import re
from typing import Final

_SHARED: Final = frozenset((b"http", b"https", b"h2", b"h2c", b"h3", b"spdy", b"tls", b"ssl"))
"""First words of protocol names in lower case: `h2c-14`, `HTTP/2.0`, `TLS/1.0` are of these families."""

_SEPARATOR: Final = re.compile(rb"[, \t]+")
_FIRST_WORD: Final = re.compile(rb"[^0-9a-z]*+([0-9a-z]*+)")

_METHODS: Final = (
    *(b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH", b"PRI", b"PURGE"),
    *(b"ACL", b"BIND", b"CHECKIN", b"CHECKOUT", b"COPY", b"LABEL", b"LINK", b"LOCK", b"MERGE", b"MKACTIVITY"),
    *(b"MKCALENDAR", b"MKCOL", b"MKREDIRECTREF", b"MKWORKSPACE", b"MOVE", b"ORDERPATCH", b"PROPFIND", b"PROPPATCH"),
    *(b"QUERY", b"REBIND", b"REPORT", b"SEARCH", b"UNBIND", b"UNCHECKOUT", b"UNLINK", b"UNLOCK", b"UPDATE"),
    *(b"UPDATEREDIRECTREF", b"VERSION-CONTROL"),
)
"""The IANA registry of HTTP methods, and PURGE of caches."""
_WORD: Final = re.compile(rb"[\r\n \t]*+([!#$%&'*+\-.^_`|~0-9A-Za-z]*+)")
_TARGET: Final = re.compile(rb"[ \t]+(?:/|\*|https?:)", re.IGNORECASE)
_FIRST_LINE: Final = 8192
"""Bytes looked at."""


def offers(head: bytes) -> list[bytes]:
    """The protocols in a valid request head's Upgrade field, in lower case."""
    fields = [line.partition(b":") for line in head.split(b"\r\n")[1:-2]]
    return [protocol for name, _, value in fields if name.lower() == b"upgrade" for protocol in _list(value)]


def without_shared(head: bytes) -> bytes:
    """The request without its offer of shared protocols; `head` itself when there is none."""
    offered = offers(head)
    kept = [protocol for protocol in offered if not is_shared(protocol)]
    if len(kept) == len(offered):
        return head
    dropped = {b"http2-settings"} if kept else {b"http2-settings", b"upgrade"}
    lines = []
    for line in head.split(b"\r\n"):
        name, colon, value = line.partition(b":")
        values: list[bytes] | None = None
        match name.lower() if colon else b"":
            case b"upgrade":
                values = [protocol for protocol in _SEPARATOR.split(value.strip()) if protocol.lower() in kept]
            case b"connection":
                options = [option.strip() for option in value.split(b",")]
                values = [option for option in options if option.lower() not in dropped]
            case b"http2-settings":
                values = []
        if values is None:
            lines.append(line)
        elif values:
            lines.append(name + b": " + b", ".join(values))
    return b"\r\n".join(lines)


def may_switch(offered: list[bytes], upgrade: bytes, *, withheld: bool) -> bool:
    """Whether a handler that was offered this may switch to `upgrade`, the (lower-case) field of its 101.

    `withheld`: the client offers more than the handler knows, and has to be able to tell what it got.
    """
    chosen = _list(upgrade)
    if any(map(is_shared, chosen)):
        return False
    return not withheld or (bool(chosen) and set(chosen) <= set(offered))


def is_shared(protocol: bytes) -> bool:
    """Whether requests of several clients may follow in this protocol (in lower case)."""
    match = _FIRST_WORD.match(protocol)
    return match is not None and match[1] in _SHARED


def begins_like_request(data: bytes) -> bool:
    """Whether these bytes, the first ones, may become an HTTP/1 request for anybody who reads them."""
    match = _WORD.match(data, 0, _FIRST_LINE)
    if match is None:
        return False
    word, end = match[1], match.end()
    own = word.isalpha() and word.isupper()  # as methods that are not registered are written
    if end == len(data):
        return not word or own or any(method.startswith(word) for method in _METHODS)
    if not word or data[end : end + 1] not in (b" ", b"\t"):
        return False
    if word in _METHODS or _TARGET.match(data, end) is not None:
        return True
    line, newline, _ = data[end:_FIRST_LINE].partition(b"\n")
    return b"HTTP/" in line.upper() if newline else own


def _list(value: bytes) -> list[bytes]:
    return [name for name in _SEPARATOR.split(value.lower()) if name]
