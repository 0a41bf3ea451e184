"""A bounded, strict reader of the ClientHello that opens a TLS connection (RFC 8446 section 4.1.2, RFC 5246).

The hello may be cut into several records, and the records into several segments: call `parse` with everything that has
arrived (peeked, never consumed) until it answers something other than `Incomplete`. Nothing after the last byte of the
hello's last record is looked at. The answer does not depend on how the bytes arrived; `Incomplete` always asks for at
least one byte and never for more than the hello still needs.

Strict means: every length adds up exactly, no extension stands twice, server_name has one name, pre_shared_key is last.
A connection whose hello is refused is relayed untouched: it is not intercepted, but it works.
"""

from __future__ import annotations

import re
import struct

import msgspec

MAX_HELLO = 16 * 1024
"""Bytes of a ClientHello message (its length field); post-quantum ones are below 2 KiB."""
MAX_RECORDS = 32
"""Records one hello may be cut into."""
MAX_BYTES = 4 + MAX_HELLO + 5 * MAX_RECORDS
"""Bytes that are ever asked for: message header, message, record headers."""

_MAX_RECORD = 16 * 1024
_HANDSHAKE = 22
_CLIENT_HELLO = 1

_SERVER_NAME = 0
_ALPN = 16
_SUPPORTED_GROUPS = 10
_SIGNATURE_ALGORITHMS = 13
_PRE_SHARED_KEY = 41
_EARLY_DATA = 42
_SUPPORTED_VERSIONS = 43
_POST_HANDSHAKE_AUTH = 49
_SIGNATURE_ALGORITHMS_CERT = 50
_ENCRYPTED_CLIENT_HELLO = 0xFE0D

_DECISIVE = (_SUPPORTED_VERSIONS, _SUPPORTED_GROUPS, _SIGNATURE_ALGORITHMS, _SIGNATURE_ALGORITHMS_CERT)
"""Extensions that say, with the cipher suites, what a client can do with a certificate."""

TLS_1_2 = 0x0303
TLS_1_3 = 0x0304

_EXTENSION = struct.Struct(">HH")
"""Type and length."""
_LABEL = re.compile(rb"[\x21-\x2d\x2f-\x7e]{1,63}")
_ADDRESS_LIKE = re.compile(rb"[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+")
_MAX_NAME = 255


class ClientHello(msgspec.Struct, frozen=True):
    """What a client offers.

    `server_name` are the bytes of its host_name, None when there is none; `server_name_reproducible` says whether
    Python's `ssl` can send exactly that (always true for None). `alpn` keeps order and GREASE; `versions` are the
    offered protocol versions (0x0303 is TLS 1.2) without GREASE. `post_handshake_auth`: a server of TLS 1.3 may ask for
    the client's certificate at any time (RFC 8446 section 4.2.6). `shape` are the bytes on which it depends whether a
    server's certificate will do: versions, cipher suites, curves, signatures. `size` is the number of bytes up to the
    end of the record that ends the hello.

    `legacy_version`, `cipher_suites` (two bytes each) and `extensions` (type and body) are as they were sent, in their
    order and with GREASE (RFC 8701); bodies that nothing above is made of have not been judged.
    """

    server_name: bytes | None
    server_name_reproducible: bool
    alpn: tuple[bytes, ...]
    versions: tuple[int, ...]
    pre_shared_key: bool
    early_data: bool
    post_handshake_auth: bool
    encrypted_client_hello: bool
    shape: tuple[bytes, ...]
    size: int
    legacy_version: int
    cipher_suites: bytes
    extensions: tuple[tuple[int, bytes], ...]

    @property
    def modern(self) -> bool:
        """Whether TLS 1.2 or 1.3 is offered."""
        return TLS_1_2 in self.versions or TLS_1_3 in self.versions

    @property
    def allows_late_auth(self) -> bool:
        """Whether a server can ask for the client's certificate after the handshake: where TLS 1.3 is offered by
        post-handshake authentication, else by a renegotiation.
        """
        return self.post_handshake_auth or TLS_1_3 not in self.versions


class Incomplete(msgspec.Struct, frozen=True):
    """At least `needed` more bytes are needed."""

    needed: int


class NotTls(msgspec.Struct, frozen=True):
    """These bytes are not a ClientHello that can be judged; `reason` is a stable short word."""

    reason: str


class _MalformedError(Exception):
    """A length does not add up."""


class _Reader:
    """Vectors of the TLS presentation language (RFC 8446 section 3) over a slice."""

    __slots__ = ("_at", "_data", "_end")

    def __init__(self, data: bytes, at: int, end: int) -> None:
        self._data = data
        self._at = at
        self._end = end

    def __bool__(self) -> bool:
        return self._at < self._end

    def number(self, size: int) -> int:
        return int.from_bytes(self.read(size))

    def read(self, size: int) -> bytes:
        start = self._at
        if size > self._end - start:
            raise _MalformedError
        self._at = start + size
        return self._data[start : self._at]

    def vector(self, size: int, *, least: int = 0) -> _Reader:
        """A vector whose length takes `size` bytes and is at least `least`."""
        length = self.number(size)
        if length < least:
            raise _MalformedError
        start = self._at
        self.read(length)
        return _Reader(self._data, start, self._at)

    def rest(self) -> bytes:
        return self.read(self._end - self._at)


def parse(data: bytes) -> ClientHello | Incomplete | NotTls:
    """Read the ClientHello at the beginning of `data`. Pure; never raises; looks at no more than MAX_BYTES."""
    message = bytearray()
    at = 0
    for _ in range(MAX_RECORDS):
        header = data[at : at + 5]
        if refusal := _judge_record(header):
            return refusal
        if len(header) < 5:
            return Incomplete(5 - len(header) + _least(message))
        length = int.from_bytes(header[3:5])
        message += data[at + 5 : at + 5 + length]
        at += 5 + length
        if message and message[0] != _CLIENT_HELLO:
            return NotTls("not-a-client-hello")
        total = 4 + int.from_bytes(message[1:4]) if len(message) >= 4 else None
        if total is not None and total > 4 + MAX_HELLO:
            return NotTls("too-large")
        if at > len(data):
            missing = at - len(data)
            if total is not None and len(message) + missing > total:
                return NotTls("malformed")  # something else follows the hello in its record
            return Incomplete(missing)
        if total is not None and len(message) >= total:
            if len(message) > total:
                return NotTls("malformed")
            return _parse_message(bytes(message), at)
    return NotTls("too-many-records")


def _judge_record(header: bytes) -> NotTls | None:
    """Refuse a record header (perhaps incomplete) that cannot carry a piece of a ClientHello."""
    if header[:1] and header[0] != _HANDSHAKE:
        return NotTls("not-tls")
    if header[1:2] and header[1] != 3:
        return NotTls("not-tls")
    if header[2:3] and header[2] > 4:
        return NotTls("not-tls")
    if len(header) == 5 and not 0 < int.from_bytes(header[3:5]) <= _MAX_RECORD:
        return NotTls("malformed")
    return None


def _least(message: bytearray) -> int:
    """Fewest bytes that the next record must bring."""
    if len(message) < 4:
        return 1
    return max(1, 4 + int.from_bytes(message[1:4]) - len(message)) if len(message) else 1


def _parse_message(message: bytes, size: int) -> ClientHello | NotTls:
    try:
        return _read_message(_Reader(message, 4, len(message)), size)
    except _MalformedError:
        return NotTls("malformed")


def _read_message(body: _Reader, size: int) -> ClientHello:
    legacy_version = body.number(2)
    body.read(32)
    if len(body.vector(1).rest()) > 32:
        raise _MalformedError
    suites = body.vector(2, least=2).rest()
    if len(suites) % 2:
        raise _MalformedError
    body.vector(1, least=1)
    extensions: dict[int, bytes] = _read_extensions(body.vector(2).rest()) if body else {}
    if body:
        raise _MalformedError
    decisive = [extensions.get(kind, b"") for kind in _DECISIVE]
    name = _read_server_name(extensions.get(_SERVER_NAME))
    return ClientHello(
        server_name=name,
        server_name_reproducible=name is None or _reproducible(name),
        alpn=_read_alpn(extensions.get(_ALPN)),
        versions=_read_versions(extensions.get(_SUPPORTED_VERSIONS), legacy_version),
        pre_shared_key=_PRE_SHARED_KEY in extensions,
        early_data=_EARLY_DATA in extensions,
        post_handshake_auth=_POST_HANDSHAKE_AUTH in extensions,
        encrypted_client_hello=_ENCRYPTED_CLIENT_HELLO in extensions,
        shape=(legacy_version.to_bytes(2), suites, *decisive),
        size=size,
        legacy_version=legacy_version,
        cipher_suites=suites,
        extensions=tuple(extensions.items()),
    )


def _read_extensions(data: bytes) -> dict[int, bytes]:
    """Type and body of each, in their order. One pass without readers: a hello has some fifteen."""
    extensions: dict[int, bytes] = {}
    kind, at, end = -1, 0, len(data)
    while at < end:
        if at + 4 > end:
            raise _MalformedError
        kind, length = _EXTENSION.unpack_from(data, at)
        at += 4
        if kind in extensions or at + length > end:
            raise _MalformedError
        extensions[kind] = data[at : at + length]
        at += length
    if _PRE_SHARED_KEY in extensions and kind != _PRE_SHARED_KEY:
        raise _MalformedError
    return extensions


def _reader(body: bytes) -> _Reader:
    return _Reader(body, 0, len(body))


def _read_server_name(body: bytes | None) -> bytes | None:
    """RFC 6066 section 3; exactly one entry, of type host_name."""
    if body is None:
        return None
    extension = _reader(body)
    names = extension.vector(2, least=1)
    if names.number(1) != 0:
        raise _MalformedError
    name = names.vector(2, least=1).rest()
    if names or extension:
        raise _MalformedError
    return name


def _read_alpn(body: bytes | None) -> tuple[bytes, ...]:
    """RFC 7301 section 3.1."""
    if body is None:
        return ()
    extension = _reader(body)
    listed = extension.vector(2, least=2)
    protocols = []
    while listed:
        protocols.append(listed.vector(1, least=1).rest())
    if extension:
        raise _MalformedError
    return tuple(protocols)


def _read_versions(body: bytes | None, legacy: int) -> tuple[int, ...]:
    """RFC 8446 section 4.2.1; without the extension a client offers its legacy version and those below."""
    if body is None:
        return tuple(range(min(legacy, TLS_1_2), 0x02FF, -1))
    extension = _reader(body)
    listed = extension.vector(1, least=2)
    versions = []
    while listed:
        version = listed.number(2)
        if version & 0x0F0F != 0x0A0A:
            versions.append(version)
    if extension:
        raise _MalformedError
    return tuple(versions)


def _reproducible(name: bytes) -> bool:
    """Whether `ssl` sends this name as it is: no IP address, no empty or long label, visible ASCII only."""
    if len(name) > _MAX_NAME or b":" in name or _ADDRESS_LIKE.match(name):
        return False
    labels = name.split(b".")
    if len(labels) > 1 and not labels[-1]:
        labels.pop()  # one trailing dot goes through as it is
    return all(_LABEL.fullmatch(label) for label in labels)
