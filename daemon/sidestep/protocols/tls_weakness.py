"""What is weak about a client's offer or about an established TLS connection, as stable short words.

An offer is weak when its best version is old or when it lists a broken cipher suite; the connection may be good all the
same. Old versions beside a good one are no sign of weakness: clients with OpenSSL or GnuTLS list them by default, and
TLS 1.3 detects a downgrade to them (RFC 8446 section 4.1.3). What was agreed on is judged on its own.

Words: `tls-1.1`, `tls-1.0`, `ssl-3` (RFC 8996, RFC 7568); `null-cipher` (no encryption), `anonymous-cipher` (no
authentication), `export-cipher`, `rc4` (RFC 7465), `rc2`, `des`, `3des` (SP 800-131A). The suites are those of the IANA
registry "TLS Cipher Suites"; a test compares the table with the names that tshark has for them.
"""

from __future__ import annotations

import struct
from typing import Final

from sidestep.protocols.client_hello import ClientHello

_OLD_VERSIONS: Final = {0x0302: "tls-1.1", 0x0301: "tls-1.0", 0x0300: "ssl-3"}

_SUITES: Final = {
    "null-cipher": (
        0x0000, 0x0001, 0x0002, 0x001C, 0x002C, 0x002D, 0x002E, 0x003B, 0x0082, 0x0083, 0x00B0, 0x00B1, 0x00B4, 0x00B5,
        0x00B8, 0x00B9, 0xC001, 0xC006, 0xC00B, 0xC010, 0xC015, 0xC039, 0xC03A, 0xC03B, 0xC0B4, 0xC0B5,
    ),
    "anonymous-cipher": (
        0x0017, 0x0018, 0x0019, 0x001A, 0x001B, 0x0034, 0x003A, 0x0046, 0x006C, 0x006D, 0x0089, 0x009B, 0x00A6, 0x00A7,
        0x00BF, 0x00C5, 0xC015, 0xC016, 0xC017, 0xC018, 0xC019, 0xC046, 0xC047, 0xC05A, 0xC05B, 0xC084, 0xC085,
    ),
    "export-cipher": (
        0x0003, 0x0006, 0x0008, 0x000B, 0x000E, 0x0011, 0x0014, 0x0017, 0x0019, *range(0x0026, 0x002C),
        *range(0x0060, 0x0066),
    ),
    "rc4": (
        0x0003, 0x0004, 0x0005, 0x0017, 0x0018, 0x0020, 0x0024, 0x0028, 0x002B, 0x0060, 0x0064, 0x0065, 0x0066, 0x008A,
        0x008E, 0x0092, 0xC002, 0xC007, 0xC00C, 0xC011, 0xC016, 0xC033,
    ),
    "rc2": (0x0006, 0x0027, 0x002A, 0x0061),
    "des": (
        0x0008, 0x0009, 0x000B, 0x000C, 0x000E, 0x000F, 0x0011, 0x0012, 0x0014, 0x0015, 0x0019, 0x001A, 0x001E, 0x0022,
        0x0026, 0x0029, 0x0062, 0x0063, 0xFEFE, 0xFFE1,
    ),
    "3des": (
        0x000A, 0x000D, 0x0010, 0x0013, 0x0016, 0x001B, 0x001F, 0x0023, 0x008B, 0x008F, 0x0093, 0xC003, 0xC008, 0xC00D,
        0xC012, 0xC017, 0xC01A, 0xC01B, 0xC01C, 0xC034, 0xFEFF, 0xFFE0,
    ),
}  # fmt: skip


def _by_suite() -> dict[int, tuple[str, ...]]:
    words: dict[int, tuple[str, ...]] = {}
    for word, suites in _SUITES.items():
        for suite in suites:
            words[suite] = (*words.get(suite, ()), word)
    return words


_WEAK_SUITES: Final = _by_suite()


def of_offer(hello: ClientHello) -> tuple[str, ...]:
    """What is weak in a client's offer, each word once: its best version, then cipher suites in the client's order."""
    words: list[str] = []
    best = max(hello.versions, default=hello.legacy_version)
    if best in _OLD_VERSIONS:
        words.append(_OLD_VERSIONS[best])
    for suite in struct.unpack(f">{len(hello.cipher_suites) // 2}H", hello.cipher_suites):
        words += _WEAK_SUITES.get(suite, ())
    return tuple(dict.fromkeys(words))


def of_connection(version: int, suite: int) -> tuple[str, ...]:
    """What is weak in what was agreed on: a protocol version (0x0303 is TLS 1.2) and the number of a cipher suite."""
    old = (_OLD_VERSIONS[version],) if version in _OLD_VERSIONS else ()
    return (*old, *_WEAK_SUITES.get(suite, ()))
