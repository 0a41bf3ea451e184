"""Fingerprints of TLS clients: JA3 and JA4, made from a parsed ClientHello.

Both describe the TLS library of a client and how it is set up. JA3 keeps the order in which the client lists its
extensions, so that browsers, which shuffle them, have many; JA4 sorts them. A fingerprint is no proof of identity: a
client can send any ClientHello.

Sources: JA3 is "TLS Fingerprinting with JA3 and JA3S" (Salesforce, 2019); JA4 is FoxIO's `technical_details/JA4.md`,
whose TLS client part is under the BSD licence. Both leave out GREASE values (RFC 8701). The results are those that
Wireshark shows in `tls.handshake.ja3` and `tls.handshake.ja4`, also where it keeps a GREASE value: among signature
algorithms.

Making them takes some 0.1 ms, and a client sends the same offer on each connection: `fingerprints` remembers those of
the last offers.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

from sidestep.protocols.client_hello import ClientHello

_SERVER_NAME: Final = 0
_SUPPORTED_GROUPS: Final = 10
_POINT_FORMATS: Final = 11
_SIGNATURE_ALGORITHMS: Final = 13
_ALPN: Final = 16
_SUPPORTED_VERSIONS: Final = 43

_VERSIONS: Final = {0x0304: "13", 0x0303: "12", 0x0302: "11", 0x0301: "10", 0x0300: "s3", 0x0002: "s2"}
_NOTHING: Final = "0" * 12
"""What JA4 has in the place of a hash of an empty list."""
_HASH: Final = 12
"""Hexadecimal digits of a SHA-256 that JA4 keeps."""
_MOST: Final = 99
"""The largest count that JA4 shows."""
REMEMBERED: Final = 256
"""Offers whose fingerprints are kept; with the largest ClientHello of 16 KiB each 4 MiB, usually 0.2."""


class Fingerprints(NamedTuple):
    """Both fingerprints of a client, and what JA3 hashes."""

    ja3: str
    ja3_text: str
    ja4: str


_Offer = tuple[tuple[bytes, ...], tuple[int, ...], bytes, tuple[bytes, ...]]
"""All of a ClientHello that its fingerprints are made of."""
_known: Final[dict[_Offer, Fingerprints]] = {}


def fingerprints(hello: ClientHello) -> Fingerprints:
    """The fingerprints of a client: made once for each offer, as long as it is among the last REMEMBERED."""
    kinds = tuple(kind for kind, _ in hello.extensions)
    formats = next((body for kind, body in hello.extensions if kind == _POINT_FORMATS), b"")
    offer = (hello.shape, kinds, formats, hello.alpn[:1])
    found = _known.get(offer)
    if found is None:
        text = ja3_text(hello)
        found = Fingerprints(_ja3(text), text, ja4(hello))
        while len(_known) >= REMEMBERED:
            del _known[next(iter(_known))]
        _known[offer] = found
    return found


def ja3(hello: ClientHello) -> str:
    """The JA3 fingerprint: 32 hexadecimal digits, the MD5 of `ja3_text`."""
    return _ja3(ja3_text(hello))


def ja3_text(hello: ClientHello) -> str:
    """What JA3 hashes: version, cipher suites, extensions, groups and point formats, as decimal numbers."""
    bodies = dict(hello.extensions)
    lists = (
        without_grease(_numbers(hello.cipher_suites)),
        without_grease(kind for kind, _ in hello.extensions),
        without_grease(_numbers(bodies.get(_SUPPORTED_GROUPS, b"")[2:])),
        bodies.get(_POINT_FORMATS, b"")[1:],
    )
    return ",".join((str(hello.legacy_version), *("-".join(map(str, listed)) for listed in lists)))


def ja4(hello: ClientHello) -> str:
    """The JA4 fingerprint of a client that speaks TLS over TCP, e.g. `t13d1516h2_8daaf6152771_e5627efa2ab1`."""
    suites, extensions = _suites(hello), _extensions(hello)
    return f"{_summary(hello)}_{_hash(suites)}_{_hash(extensions)}"


def ja4_raw(hello: ClientHello) -> str:
    """What JA4 hashes, as Wireshark's `tls.handshake.ja4_r`: the lists in the place of their hashes."""
    return f"{_summary(hello)}_{_suites(hello)}_{_extensions(hello)}"


def without_grease(values: Iterable[int]) -> list[int]:
    """The values without those that RFC 8701 reserves for GREASE: 0x0a0a, 0x1a1a to 0xfafa."""
    return [value for value in values if value & 0x0F0F != 0x0A0A or value >> 8 != value & 0xFF]


def _summary(hello: ClientHello) -> str:
    """The readable first part of JA4."""
    kinds = without_grease(kind for kind, _ in hello.extensions)
    suites = without_grease(_numbers(hello.cipher_suites))
    named = "d" if _SERVER_NAME in kinds else "i"
    counts = f"{min(len(suites), _MOST):02}{min(len(kinds), _MOST):02}"
    return f"t{_VERSIONS.get(_version(hello), '00')}{named}{counts}{_protocol(hello)}"


def _version(hello: ClientHello) -> int:
    """The highest version of supported_versions, the legacy version where that extension is missing or empty."""
    if any(kind == _SUPPORTED_VERSIONS for kind, _ in hello.extensions):
        return max(hello.versions, default=hello.legacy_version)
    return hello.legacy_version


def _protocol(hello: ClientHello) -> str:
    """First and last character of the first ALPN value, of its hexadecimal form where one is not alphanumeric."""
    if not hello.alpn:
        return "00"
    first = hello.alpn[0]
    ends = first[:1] + first[-1:]
    return ends.decode() if ends.isalnum() else f"{ends[0]:02x}"[0] + f"{ends[1]:02x}"[1]


def _suites(hello: ClientHello) -> str:
    return _hexadecimal(sorted(without_grease(_numbers(hello.cipher_suites))))


def _extensions(hello: ClientHello) -> str:
    """Types of extensions, sorted, without those of the summary; then the signature algorithms in their order."""
    kinds = without_grease(kind for kind, _ in hello.extensions if kind not in (_SERVER_NAME, _ALPN))
    signatures = _numbers(dict(hello.extensions).get(_SIGNATURE_ALGORITHMS, b"")[2:])
    listed = _hexadecimal(sorted(kinds))
    return f"{listed}_{_hexadecimal(signatures)}" if signatures else listed


def _ja3(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_HASH] if text else _NOTHING


def _hexadecimal(values: Iterable[int]) -> str:
    return ",".join(f"{value:04x}" for value in values)


def _numbers(data: bytes) -> tuple[int, ...]:
    """The big-endian numbers of two bytes each; an odd byte at the end is left out."""
    count = len(data) // 2
    return struct.unpack_from(f">{count}H", data)
