"""HTTP/1.x response heads: bytes in, framing out, or the reason why they cannot be read with certainty.

The grammar and its rules are those of `protocols.http1`. A response head is not read into fields, because no filter
looks at them: the few that its framing depends on are searched for in the head.
"""

from __future__ import annotations

import re

from sidestep.protocols.http1 import CHUNKED, FIELD_TEXT, STATUS_TEXT, explain, read_length, tokens

UNTIL_CLOSE = -2
"""`body` of a response whose content ends with the connection."""

_RESPONSE = re.compile(STATUS_TEXT + rb"(?:" + FIELD_TEXT + rb")*\r\n")
_STRAY_TAB = re.compile(rb"\n(?:content-length|transfer-encoding|connection|upgrade):[^\r\t]*+\t")
"""The same of a (lower-case) response head. Blanks are trimmed by every client, also by those of sloppy servers."""


class ResponseHead:
    """A response head. `body` is a length, CHUNKED or UNTIL_CLOSE and already 0 for 1xx, 204 and 304.

    `close` says that no further answer follows on this connection (not so for UNTIL_CLOSE alone: a HEAD's answer may
    carry no length); `keeps` that it carries a keep-alive token;
    `plain` is the length of the body when the head is final, persistent and framed by a length, else -1. `shown` is
    kept for whoever tells of answers, as long as the head is remembered; `cleared` for whoever searches them: what
    stands for the patterns that are not in it.
    """

    __slots__ = ("body", "cleared", "close", "keeps", "plain", "shown", "status", "upgrade")

    def __init__(self, status: int, body: int, *, close: bool, keeps: bool, upgrade: bytes) -> None:
        self.status = status
        self.body = body
        self.close = close
        self.keeps = keeps
        self.upgrade = upgrade
        self.shown: tuple[bytes, bytes] | None = None
        self.cleared: object = None
        self.plain = body if status >= 200 and body >= 0 and not close else -1


def parse_response(head: bytes) -> ResponseHead | str:
    """Read a whole response head (ending in CRLF CRLF), or name the anomaly. Never raises.

    A response's coding may be written `Chunked`: clients agree on that, and nobody is deceived about a request by it.
    """
    match = _RESPONSE.fullmatch(head)
    if match is None:
        return explain(head).replace("h1-", "h1-response-", 1)
    old = match[1] == b"0"
    status = int(match[2])
    low = head.lower()
    if b"\t" in low and _STRAY_TAB.search(low) is not None:
        return "h1-response-stray-space"
    close = old
    keeps = False
    at = low.find(b"\nconnection:")
    if at >= 0:
        options = tokens(b",".join(_values(low, b"\nconnection:", at)))
        keeps = b"keep-alive" in options
        close = b"close" in options or (old and not keeps)
    upgrade = b""
    if status < 200 or status == 204 or status == 304:
        if status == 101:
            upgrade = b",".join(_values(low, b"\nupgrade:", 0))
        return ResponseHead(status, 0, close=close, keeps=keeps, upgrade=upgrade)
    body = _response_body(low, old=old)
    if isinstance(body, str):
        return body
    return ResponseHead(status, body, close=close, keeps=keeps, upgrade=upgrade)


def _response_body(low: bytes, *, old: bool) -> int | str:
    lengths = _values(low, b"\ncontent-length:", 0)
    codings = _values(low, b"\ntransfer-encoding:", 0)
    if codings:
        if lengths or len(codings) > 1:
            return "h1-response-ambiguous-length"
        return CHUNKED if codings[0] == b"chunked" and not old else "h1-response-transfer-coding"
    if not lengths:
        return UNTIL_CLOSE
    if len(lengths) > 1:
        return "h1-response-ambiguous-length"
    body = read_length(lengths[0])
    return body if isinstance(body, int) else "h1-response-bad-length"


def _values(low: bytes, name: bytes, at: int) -> list[bytes]:
    """Values of a field of a valid lower-case head; `name` is LF, field name, colon."""
    values = []
    at = low.find(name, at)
    while at >= 0:
        at += len(name)
        end = low.index(b"\r", at)
        values.append(low[at:end].strip(b" "))
        at = low.find(name, end)
    return values


def response_fields(head: bytes) -> list[tuple[bytes, bytes]]:
    """The fields of a response head that `parse_response` has read: (lower-case name, value), in order."""
    lines = head[:-4].split(b"\r\n")[1:]
    fields = [line.partition(b":") for line in lines]
    return [(name.lower(), value.strip(b" \t")) for name, _, value in fields]
