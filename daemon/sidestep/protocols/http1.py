"""HTTP/1.x message heads: bytes in, framing and fields out, or the reason why they cannot be read with certainty.

A head is everything up to and including the first CRLF CRLF. One anchored regular expression validates it whole, in
linear time: characters are repeated possessively, lines greedily but with one way to match each (a possessive *group*
goes on from where a failed iteration stopped in Python before 3.11.5, gh-106052). Nothing is repaired, folded or
trimmed: a caller that accepts a head forwards the same bytes. The grammar refuses what apps may read in different ways:
bare CR or LF, NUL, folded lines, a space before a colon, another version. The caller then leaves the bytes to the app.

Framing (RFC 9112 section 6) is decided here and only here. It is certain or refused: one Content-Length of digits or
one `Transfer-Encoding: chunked` on HTTP/1.1, never both, never a second spelling of either (`Content_Length`).
Servers differ on what they trim from a value: RFC 9110 section 5.5 allows blanks and tabs on both sides, nginx strips
blanks only. So a field of the framing stands as `Name:value` or `Name: value`, with nothing else around the value.

`check_prefix` refuses the beginning of a head that can no longer become a good one, so that its client need not wait
for the rest. It looks at each byte once.

Source: RFC 9110, RFC 9112. Anomalies are short stable words, used as a metric label.
"""

from __future__ import annotations

import re

import msgspec

Field = tuple[bytes, bytes]

HEAD = 1
"""Request flag: the answer has no body whatever it says."""
CONNECT = 2
"""Request flag: a 2xx answer turns the connection into a tunnel."""
UPGRADE = 4
"""Request flag: a 101 answer changes the protocol; what follows the request waits for the answer."""
CLOSE = 8
"""Request flag: the client asked for, or its version implies, one answer only."""
HTTP_1_0 = 16
"""Request flag: the client speaks HTTP/1.0."""

SWITCHES = CONNECT | UPGRADE
"""Flags of a request after whose answer the connection may speak another protocol."""
ANSWER_FLAGS = HEAD | SWITCHES
"""Flags of a request that the reading of its answer depends on."""

CHUNKED = -1
"""`body` of a head whose content is chunked."""

END_OF_HEAD = b"\r\n\r\n"


class Http1Limits(msgspec.Struct, frozen=True):
    """Bounds of one HTTP/1 connection. What exceeds one of the first four cannot be parsed and becomes a wire."""

    head: int = 64 * 1024
    """Bytes of a request or response head (docs/design.md, "HTTP/1")."""
    fields: int = 256
    """Fields of a request head; twice what common servers accept (Apache: 100, nginx: by bytes only)."""
    chunk_line: int = 256
    """Bytes of a chunk-size line with extensions."""
    trailer: int = 16 * 1024
    """Bytes of a trailer section."""
    hold: int = 64 * 1024
    """Bytes of the client kept while an earlier answer is awaited or a leg opens, and one read more."""
    memo_entries: int = 256
    """Heads remembered per route, and response heads per process."""
    memo_head: int = 4096
    """Bytes of the longest head that is remembered: memo_entries times this bounds the memo."""
    pipelined: int = 1024
    """Requests awaiting answers above which the client is not read."""
    discard: int = 8 * 1024 * 1024
    """Bytes of an unwanted request body read after the last answer, so that the client can read that answer."""
    head_seconds: float = 5.0
    """Seconds a begun request head is waited for; then the app judges the client's pace itself."""
    fresh_seconds: float = 0.1
    """Seconds without a word of the app after which it may be about to close its connection as idle, although handlers
    kept the client's busy. Below the idle timeouts of servers (from 1 s), and long enough to dial seldom."""


LIMITS = Http1Limits()

MAX_LENGTH_DIGITS = 18
"""Digits of a Content-Length: below 2**63, so that no peer's integer wraps where ours does not."""

# Single characters; `http1_skim` builds its patterns of them, too.
TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
TEXT = rb"[\t\x20-\x7e\x80-\xff]"
TARGET_TEXT = rb"[\x21\x22\x24-\x7e\x80-\xff]"  # visible, but no fragment: apps cut it, paths are matched with it
FIELD_TEXT = TOKEN + rb"++:" + TEXT + rb"*+\r\n"
_REQUEST_LINE = rb"(" + TOKEN + rb"{1,32}+) (" + TARGET_TEXT + rb"++) HTTP/1\.([01])\r\n"
STATUS_TEXT = rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: " + TEXT + rb"*+)?\r\n"

REQUEST = re.compile(_REQUEST_LINE + rb"((?:" + FIELD_TEXT + rb")*)\r\n")
"""A whole request head; groups: method, target, minor version, field lines."""
_SPLIT_FIELDS = re.compile(rb"([^:]++):[ \t]*+([^\r]*+)\r\n")
FIELD_LINES = re.compile(rb"(?:" + FIELD_TEXT + rb")*")
"""Whole field lines, each with its CRLF."""
REQUEST_LINE = re.compile(_REQUEST_LINE)
STATUS_LINE = re.compile(STATUS_TEXT)

_NOT_IN_HEADS = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r[^\n]")
_BARE_CR = re.compile(rb"\r(?!\n)")
_BARE_LF = re.compile(rb"(?<!\r)\n")
HOST_TEXT = rb"[A-Za-z0-9\-._~%!$&'()*+,;=:\[\]]"
HOST = re.compile(HOST_TEXT + rb"++")
"""The value of a Host field."""
_CONNECT_TARGET = re.compile(HOST_TEXT + rb"+:[0-9]{1,5}")
_ABSOLUTE = re.compile(rb"https?://([^/?]++)([/?].*+)?", re.IGNORECASE)

_ONCE = {
    b"host": "h1-host",
    b"content-length": "h1-ambiguous-length",
    b"transfer-encoding": "h1-ambiguous-length",
    b"upgrade": "h1-upgrade",
    b"expect": "h1-expect",
}
"""Fields that may stand once, and the anomaly of those that stand twice."""
_STRAY_SPACE = re.compile(
    rb"^(?:host|content-length|transfer-encoding|connection|upgrade|expect|te|trailer):"
    rb"(?! ?(?:[^ \t\r]++(?: +[^ \t\r]++)*)?\r)",
    re.IGNORECASE | re.MULTILINE,
)
"""A field of a request's framing whose value holds a tab, follows more than one blank, or is followed by one."""
_PLAIN_OPTIONS = frozenset((b"close", b"keep-alive"))
"""Values of `Connection` that need no closer look."""
_END_TO_END = frozenset((b"host", b"content-length", b"transfer-encoding"))
"""Fields that `Connection` may not name: a proxy behind us would remove them."""


class RequestHead:
    """A request head that reads one way only.

    `target` is the path with query ("*" and an authority for the other forms); `body` is a length in bytes or CHUNKED;
    `flags` are the request flags above; `fields` have lower-case names and values without surrounding whitespace.
    """

    __slots__ = ("authority", "body", "fields", "flags", "method", "target")

    def __init__(
        self, method: bytes, target: bytes, authority: bytes, fields: list[Field], body: int, flags: int
    ) -> None:
        self.method = method
        self.target = target
        self.authority = authority
        self.fields = fields
        self.body = body
        self.flags = flags


def parse_request(head: bytes, limits: Http1Limits = LIMITS) -> RequestHead | str:
    """Read a whole request head (ending in CRLF CRLF), or name the anomaly. Never raises."""
    match = REQUEST.fullmatch(head)
    if match is None:
        return explain(head)
    if len(head) > limits.head:
        return "h1-head-too-large"
    method, target, minor, block = match.groups()
    pairs = _SPLIT_FIELDS.findall(block)
    if len(pairs) > limits.fields:
        return "h1-too-many-fields"
    if b"\t" in block or b":  " in block or b" \r\n" in block:
        pairs = _trim(block, pairs)
        if not pairs:
            return "h1-stray-space"
    fields = [(name.lower(), value) for name, value in pairs]
    known = dict(fields)
    anomaly = _ambiguity(known, fields)
    if anomaly:
        return anomaly
    old = minor == b"0"
    body = _request_body(known, old=old)
    if isinstance(body, str):
        return body
    flags = _persistence(fields, known, old=old) | (UPGRADE if b"upgrade" in known else 0)
    if method == b"HEAD":
        flags |= HEAD
    elif method == b"CONNECT":
        if body:
            return "h1-connect-body"
        flags |= CONNECT
    authority = known.get(b"host", b"")
    if HOST.fullmatch(authority) is None and (authority or not old):
        return "h1-host"
    if target[0] != 0x2F or method == b"CONNECT":
        path = _other_form(method, target, authority)
        if path is None:
            return "h1-target"
        target = path
    return RequestHead(method, target, authority, fields, body, flags)


def read_plain(head: bytes) -> tuple[bytes, list[Field]] | None:
    """Target and fields, as `parse_request` reads them, of a head that `http1_skim` calls plain.

    None where that takes more than splitting it. Hot path: half of the time of `parse_request`.
    """
    line, _, block = head.partition(b"\r\n")
    if b":  " in block or b" \r\n" in block:
        return None
    return line.split(b" ", 2)[1], [(name.lower(), value) for name, value in _SPLIT_FIELDS.findall(block)]


def _trim(block: bytes, pairs: list[Field]) -> list[Field]:
    """The fields without white space after their values; none when there is some where servers differ about it."""
    if _STRAY_SPACE.search(block) is not None:
        return []
    return [(name, value.rstrip(b" \t")) for name, value in pairs]


def _ambiguity(known: dict[bytes, bytes], fields: list[Field]) -> str:
    """Name what servers differ on: a field that must stand once and does not, or stands in a spelling that some
    (CGI, WSGI) equate; an unknown expectation; a connection option that takes a field of the framing away.
    """
    if b"content_length" in known or b"transfer_encoding" in known:
        return "h1-ambiguous-length"
    if b"expect" in known and known[b"expect"].lower() != b"100-continue":
        return "h1-expect"
    if len(known) == len(fields) and known.get(b"connection", b"close").lower() in _PLAIN_OPTIONS:
        return ""
    if not _END_TO_END.isdisjoint(_connection_options(fields)):
        return "h1-connection"
    names = [name for name, _ in fields]
    for name, anomaly in _ONCE.items():
        if names.count(name) > 1:
            return anomaly
    return ""


def _request_body(known: dict[bytes, bytes], *, old: bool) -> int | str:
    coding = known.get(b"transfer-encoding")
    length = known.get(b"content-length")
    if coding is not None:
        if length is not None:
            return "h1-ambiguous-length"
        return CHUNKED if coding == b"chunked" and not old else "h1-transfer-coding"
    if length is None:
        return 0
    return read_length(length)


def read_length(text: bytes) -> int | str:
    """Read a Content-Length: 1 to 18 ASCII digits. Python's `int` alone would take `1_0` and ` +5`."""
    if text.isdigit() and len(text) <= MAX_LENGTH_DIGITS:
        return int(text)
    return "h1-bad-length"


def _persistence(fields: list[Field], known: dict[bytes, bytes], *, old: bool) -> int:
    if b"connection" not in known:
        return CLOSE | HTTP_1_0 if old else 0
    options = _connection_options(fields)
    if old:
        return HTTP_1_0 if b"keep-alive" in options and b"close" not in options else CLOSE | HTTP_1_0
    return CLOSE if b"close" in options else 0


def _connection_options(fields: list[Field]) -> list[bytes]:
    return tokens(b",".join([value for name, value in fields if name == b"connection"]))


def tokens(value: bytes) -> list[bytes]:
    """The members of a comma-separated list, in lower case."""
    return [token.strip(b" \t") for token in value.lower().split(b",")]


def _other_form(method: bytes, target: bytes, authority: bytes) -> bytes | None:
    """The path of an absolute-form, asterisk-form or authority-form target; None if it contradicts method or Host."""
    if method == b"CONNECT":
        return target if _CONNECT_TARGET.fullmatch(target) else None
    if target == b"*":
        return target if method == b"OPTIONS" else None
    match = _ABSOLUTE.fullmatch(target)
    if match is None:
        return None
    if not authority or match[1].lower() != authority.lower():
        return None
    path = match[2] or b"/"
    return path if path[0] == 0x2F else b"/" + path


def explain(head: bytes) -> str:
    """Name what is wrong with a head that the grammar did not accept; the first reason that applies."""
    if b"\0" in head:
        return "h1-nul"
    if _BARE_LF.search(head):
        return "h1-bare-lf"
    if _BARE_CR.search(head):
        return "h1-bare-cr"
    if head.startswith(b"\r\n"):
        return "h1-leading-empty-line"
    if REQUEST_LINE.match(head) is None and STATUS_LINE.match(head) is None:
        return "h1-start-line"
    if b"\r\n " in head or b"\r\n\t" in head:
        return "h1-folded-field"
    return "h1-field"


def check_prefix(held: bytearray, checked: int, new: int, first_line: re.Pattern[bytes]) -> int | str:
    """Check an incomplete head. Looks only at new bytes: all calls together are linear in the head. Never raises.

    `held` is the head so far; its first `checked` bytes are whole lines already found good; its bytes from `new` on
    have not been looked at. Returns the next `checked`, or an anomaly.
    """
    if _NOT_IN_HEADS.search(held, max(new - 1, 0)) is not None:
        return explain(bytes(held))
    end = held.rfind(b"\n", new) + 1
    if end <= checked:
        return checked
    at = checked
    if checked == 0:
        match = first_line.match(held)
        if match is None:
            return explain(bytes(held))
        at = match.end()
    if FIELD_LINES.fullmatch(held, at, end) is None:
        return explain(bytes(held))
    return end
