"""A bounded, strict reader of what a TLS server says first, as far as it is in clear (RFC 8446, 4.1.3, RFC 5246).

    TLS 1.3    the ServerHello, or a HelloRetryRequest, which has its form; everything after it is encrypted
    TLS 1.2    the ServerHello and the Certificate message behind it; none if the session is resumed

Call `parse` with everything that has arrived until it answers something other than None. It answers None as long as
more may help, within MAX_BYTES. Nothing is verified: whoever sits between sees what the server says, and not whether it
is the one that it says.
"""

from __future__ import annotations

from typing import Final

import msgspec

MAX_BYTES: Final = 32 * 1024
"""Bytes that are ever looked at; chains of certificates are below 10 KiB mostly."""
_HANDSHAKE: Final = 22
_CHANGE_CIPHER_SPEC: Final = 20
_SERVER_HELLO: Final = 2
_CERTIFICATE: Final = 11
_SUPPORTED_VERSIONS: Final = 43
_TLS_1_3: Final = 0x0304
_MOST_RECORD: Final = 16 * 1024 + 256
"""Bytes of a record's content at most (RFC 5246 section 6.2)."""


class ServerHello(msgspec.Struct, frozen=True):
    """What a server has chosen. `certificate` is its own one, DER; empty where it is encrypted or not sent."""

    version: int
    suite: int
    certificate: bytes = b""
    resumed: bool = False
    """It has continued a session, without a certificate. In TLS 1.3 that cannot be seen."""


class NoServerHello(msgspec.Struct, frozen=True):
    """These bytes are none: an alert, another protocol, or something that does not add up."""


NOTHING: Final = NoServerHello()


def parse(data: bytes) -> ServerHello | NoServerHello | None:
    """Read what a server has said so far; None: more bytes are needed. Never raises."""
    content, at = bytearray(), 0
    is_changed = False
    while len(data) - at >= 5:
        kind, length = data[at], int.from_bytes(data[at + 3 : at + 5])
        if data[at + 1] != 3 or not 0 < length <= _MOST_RECORD:
            return NOTHING
        if kind != _HANDSHAKE:
            is_changed = kind == _CHANGE_CIPHER_SPEC
            break
        content += data[at + 5 : at + 5 + length]
        at += 5 + length
    found = _read(bytes(content), is_whole=is_changed)
    if found is None and (len(data) >= MAX_BYTES or (len(data) - at >= 5 and not is_changed)):
        return NOTHING
    return found


def _read(content: bytes, *, is_whole: bool) -> ServerHello | NoServerHello | None:
    """Read handshake messages. `is_whole`: no more of them come in clear."""
    first = _message(content)
    if first is None:
        return NOTHING if is_whole else None
    kind, body = first
    hello = _hello(body) if kind == _SERVER_HELLO else None
    if hello is None:
        return NOTHING
    if hello.version >= _TLS_1_3:
        return hello
    rest = content[4 + len(body) :]
    if rest[:1] and rest[0] != _CERTIFICATE:
        return ServerHello(hello.version, hello.suite, resumed=True)  # a ticket: RFC 5077, 3.3
    second = _message(rest)
    if second is None:
        return ServerHello(hello.version, hello.suite, resumed=True) if is_whole and not rest else _unless(is_whole)
    return ServerHello(hello.version, hello.suite, _certificate(second[1]))


def _unless(is_whole: bool) -> NoServerHello | None:
    return NOTHING if is_whole else None


def _message(content: bytes) -> tuple[int, bytes] | None:
    """The first handshake message, None until it is whole."""
    if len(content) < 4:
        return None
    length = int.from_bytes(content[1:4])
    body = content[4 : 4 + length]
    return (content[0], body) if len(body) == length else None


def _hello(body: bytes) -> ServerHello | None:
    if len(body) < 38 or body[0] != 3:
        return None
    version, at = int.from_bytes(body[:2]), 35 + body[34]
    suite = int.from_bytes(body[at : at + 2])
    at += 3
    if len(body) < at:
        return None
    if len(body) == at:
        return ServerHello(version, suite)
    end = at + 2 + int.from_bytes(body[at : at + 2])
    if end != len(body):
        return None
    at += 2
    while at < end:
        kind, length = int.from_bytes(body[at : at + 2]), int.from_bytes(body[at + 2 : at + 4])
        if at + 4 + length > end:
            return None
        if kind == _SUPPORTED_VERSIONS and length == 2:
            version = int.from_bytes(body[at + 4 : at + 6])
        at += 4 + length
    return ServerHello(version, suite)


def _certificate(body: bytes) -> bytes:
    """The first certificate of the list; empty if there is none, or if the lengths do not add up."""
    length = int.from_bytes(body[3:6])
    first = body[6 : 6 + length]
    return first if len(body) == 3 + int.from_bytes(body[:3]) and len(first) == length else b""
