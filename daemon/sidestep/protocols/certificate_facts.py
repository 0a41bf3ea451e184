"""What a record shows of a certificate that was seen and not verified, from its DER encoding (RFC 5280, X.690).

Names are shown as `client_certificate.listed_name` shows them. What cannot be read is left out; the fingerprint is
there in any case. Never raises for bytes of a peer, and reads no more than MAX_BYTES of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Final

from sidestep.protocols.eve_records import Certificate

MAX_BYTES: Final = 16 * 1024
MAX_PARTS: Final = 64
"""Attributes of a name that are shown."""

_SEQUENCE, _SET, _INTEGER, _OID, _VERSION = 0x30, 0x31, 0x02, 0x06, 0xA0
_UTC_TIME: Final = 0x17
_ENCODINGS: Final = {0x0C: "utf-8", 0x13: "ascii", 0x16: "ascii", 0x14: "latin-1"}
"""Tags of strings: UTF8String, PrintableString, IA5String, T61String. A pod proxy can import no other codec."""
_NAMES: Final = {
    b"\x55\x04\x03": "CN",
    b"\x55\x04\x06": "C",
    b"\x55\x04\x07": "L",
    b"\x55\x04\x08": "ST",
    b"\x55\x04\x09": "STREET",
    b"\x55\x04\x0a": "O",
    b"\x55\x04\x0b": "OU",
    b"\x09\x92\x26\x89\x93\xf2\x2c\x64\x01\x19": "DC",
    b"\x09\x92\x26\x89\x93\xf2\x2c\x64\x01\x01": "UID",
}
"""Attributes of RFC 4514 section 3; others are shown by their numbers."""


class _UnreadableError(Exception):
    """It is not DER, or not that of a certificate."""


def facts(der: bytes) -> Certificate:
    """What is shown of a certificate."""
    digest = hashlib.sha1(der, usedforsecurity=False).hexdigest()
    try:
        return _read(der[:MAX_BYTES], _pairs(digest))
    except (_UnreadableError, StopIteration, ValueError):
        return Certificate("", "", _pairs(digest))


def _read(der: bytes, fingerprint: str) -> Certificate:
    certificate = _only(der, _SEQUENCE)
    signed = _parts(next(_parts(certificate))[1])
    tag, serial = next(signed)
    if tag == _VERSION:
        tag, serial = next(signed)
    if tag != _INTEGER:
        raise _UnreadableError
    fields = [body for _, body in zip(range(4), (each for _, each in signed), strict=False)]
    if len(fields) < 4:
        raise _UnreadableError
    _, issuer, validity, subject = fields
    times = [_time(*each) for each in _parts(validity)]
    return Certificate(
        subject=_name(subject),
        issuerdn=_name(issuer),
        fingerprint=fingerprint,
        serial=_pairs(f"{int.from_bytes(serial):X}"),
        notbefore=times[0],
        notafter=times[1] if len(times) == 2 else None,
    )


def _only(data: bytes, wanted: int) -> bytes:
    tag, body = next(_parts(data))
    if tag != wanted:
        raise _UnreadableError
    return body


def _parts(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The elements of a constructed value: tags of one byte, and contents. Raises _UnreadableError."""
    at = 0
    while at < len(data):
        header = data[at : at + 2]
        at += 2
        if len(header) < 2 or header[0] & 0x1F == 0x1F:
            raise _UnreadableError
        length = header[1]
        if length >= 0x80:
            count = length & 0x7F
            if not 0 < count <= 3:
                raise _UnreadableError
            length, at = int.from_bytes(data[at : at + count]), at + count
        body = data[at : at + length]
        if len(body) != length:
            raise _UnreadableError
        yield header[0], body
        at += length
    if not data:
        raise _UnreadableError


def _name(data: bytes) -> str:
    if not data:
        return ""
    shown = []
    for _, one in _parts(data):
        for _, attribute in _parts(one):
            kind, value = [*_parts(attribute)][:2]
            label = _NAMES.get(kind[1]) or _number(kind[1])
            encoding = _ENCODINGS.get(value[0])
            if encoding is None:
                raise _UnreadableError
            shown.append(f"{label}={value[1].decode(encoding, 'backslashreplace')}")
            if len(shown) > MAX_PARTS:
                raise _UnreadableError
    return ", ".join(shown)


def _number(oid: bytes) -> str:
    """An object identifier in numbers with dots (X.690 section 8.19)."""
    numbers, value = [], 0
    for byte in oid:
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            numbers.append(value)
            value = 0
    if not numbers:
        raise _UnreadableError
    first = min(numbers[0] // 40, 2)
    return ".".join(map(str, (first, numbers[0] - 40 * first, *numbers[1:])))


def _time(tag: int, text: bytes) -> str:
    """UTCTime or GeneralizedTime (RFC 5280 section 4.1.2.5) as records have times of certificates."""
    digits = text.decode("ascii").removesuffix("Z")
    if tag == _UTC_TIME:
        digits = ("19" if digits >= "5" else "20") + digits
    if len(digits) != 14 or not digits.isdigit():
        raise _UnreadableError
    return f"{digits[:4]}-{digits[4:6]}-{digits[6:8]}T{digits[8:10]}:{digits[10:12]}:{digits[12:]}"


def _pairs(digits: str) -> str:
    """Hexadecimal digits in pairs: `0A1B` is `0A:1B`."""
    digits = digits.zfill(len(digits) + len(digits) % 2)
    return ":".join(digits[at : at + 2] for at in range(0, len(digits), 2))
