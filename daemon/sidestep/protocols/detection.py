"""Recognises the protocol of a connection by the first bytes of its client, or of a server that speaks first.

It tells the kinds apart and does not validate: the parser of that protocol does, and what it refuses becomes a wire.
The answer for a prefix is MORE or the answer for all of the bytes, so it does not depend on how they arrive. At most 48
bytes are needed.
"""

from __future__ import annotations

import enum
import re

HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""RFC 9113 section 3.4."""


class Detected(enum.Enum):
    """What the first bytes are."""

    TLS = "tls"
    HTTP2 = "http2"
    HTTP1 = "http1"
    OTHER = "other"
    MORE = "more"
    """They are too few to tell."""


_METHOD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,32}+( )?")
_SCHEMES = (b"http://", b"https://")
_TLS_HEADER = 6
_TLS_TYPES = range(0x14, 0x19)
_RESPONSE = b"HTTP/"
_FRAME_HEAD = 9
"""Bytes of the head of an HTTP/2 frame (RFC 9113 section 4.1)."""
_SETTINGS = 4
_SETTING = 6
"""Bytes of one setting (section 6.5.1)."""


def detect(data: bytes) -> Detected:
    """Return the protocol that begins with `data`. Pure; never raises."""
    if not data:
        return Detected.MORE
    if data[0] == 0x16:
        return _detect_tls(data)
    if data.startswith(HTTP2_PREFACE):
        return Detected.HTTP2
    if HTTP2_PREFACE.startswith(data):
        return Detected.MORE
    match = _METHOD.match(data)
    if match is None:
        return Detected.OTHER
    if match[1] is None:
        return Detected.MORE if match.end() == len(data) and len(data) <= 32 else Detected.OTHER
    return _detect_target(data[: match.end() - 1], data[match.end() : match.end() + 8])


def is_http2_server(data: bytes) -> bool:
    """Whether a server says this that begins HTTP/2: SETTINGS on stream 0 (RFC 9113 section 3.4)."""
    if len(data) < _FRAME_HEAD or data[3] != _SETTINGS or any(data[4:_FRAME_HEAD]):
        return False
    return int.from_bytes(data[:3]) % _SETTING == 0 and not data[0]


def is_greeting(data: bytes) -> bool:
    """Whether a server that says this to a silent client speaks a protocol in which servers begin.

    HTTP/1 and TLS servers end idle connections with a response or an alert, and HTTP/2 servers send SETTINGS at once
    (RFC 9113 section 3.4): none of them keeps a client from speaking HTTP. So is what may be the beginning of these.
    """
    if not data or (data[0] in _TLS_TYPES and data[1:2] in (b"", b"\x03")):
        return False
    if data.startswith(_RESPONSE) or _RESPONSE.startswith(data):
        return False
    return not (data[0] == 0 and data[3:4] in (b"", b"\x04"))


def _detect_tls(data: bytes) -> Detected:
    """A handshake record (RFC 8446 section 5.1) of version 3.x whose first message is a ClientHello."""
    if len(data) > 1 and data[1] != 3:
        return Detected.OTHER
    if len(data) > 2 and data[2] > 4:
        return Detected.OTHER
    if len(data) > 5 and data[5] != 1:
        return Detected.OTHER
    return Detected.TLS if len(data) >= _TLS_HEADER else Detected.MORE


def _detect_target(method: bytes, target: bytes) -> Detected:
    if not target:
        return Detected.MORE
    if method == b"CONNECT":
        return Detected.HTTP1 if target[0] > 0x20 else Detected.OTHER
    if target[0] == 0x2F or (target[0] == 0x2A and method == b"OPTIONS"):
        return Detected.HTTP1
    low = target.lower()
    for scheme in _SCHEMES:
        if low.startswith(scheme):
            return Detected.HTTP1
        if scheme.startswith(low):
            return Detected.MORE
    return Detected.OTHER
