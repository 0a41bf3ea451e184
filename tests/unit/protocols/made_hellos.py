"""ClientHellos made by hand: what real clients rarely send."""

from __future__ import annotations


def vector(size: int, data: bytes) -> bytes:
    return len(data).to_bytes(size) + data


def extension(kind: int, data: bytes = b"") -> bytes:
    return kind.to_bytes(2) + vector(2, data)


def numbers(*values: int) -> bytes:
    return b"".join(value.to_bytes(2) for value in values)


def hello(*extensions: bytes, legacy: int = 0x0303, suites: bytes = b"\x13\x01\x13\x02\x00\xff") -> bytes:
    """One record; without extensions the block is left out."""
    block = vector(2, b"".join(extensions)) if extensions else b""
    body = legacy.to_bytes(2) + bytes(range(32)) + vector(1, b"") + vector(2, suites) + vector(1, b"\0") + block
    return b"\x16\x03\x01" + vector(2, b"\x01" + vector(3, body))


def sni(name: bytes) -> bytes:
    return extension(0, vector(2, b"\0" + vector(2, name)))


def alpn(*names: bytes) -> bytes:
    return extension(16, vector(2, b"".join(vector(1, name) for name in names)))


def versions(*values: int) -> bytes:
    return extension(43, vector(1, numbers(*values)))


def signatures(*values: int) -> bytes:
    return extension(13, vector(2, numbers(*values)))


def groups(*values: int) -> bytes:
    return extension(10, vector(2, numbers(*values)))


MADE = {
    "made: a browser": hello(
        extension(0x2A2A), sni(b"app.test"), extension(23), extension(0xFF01, b"\0"), groups(0x3A3A, 29, 23, 24),
        extension(11, b"\1\0"), extension(35), alpn(b"h2", b"http/1.1"), extension(5, b"\1\0\0\0\0"),
        signatures(0x0403, 0x0804, 0x0401, 0x0503), extension(18),
        extension(51, vector(2, b"\x3a\x3a\0\1\0" + b"\0\x1d" + vector(2, bytes(32)))), extension(45, b"\1\1"),
        versions(0x4A4A, 0x0304, 0x0303), extension(27, b"\2\0\2"), extension(17513, b"\0\3\2h2"),
        extension(0xFAFA, b"\0"), extension(21, bytes(100)),
        suites=numbers(0x1A1A, 0x1301, 0x1302, 0x1303, 0xC02B, 0xC02F, 0xC02C, 0xC030, 0xCCA9, 0xCCA8, 0xC013, 0xC014),
    ),
    "made: no extensions": hello(),
    "made: no extensions, TLS 1.0": hello(legacy=0x0301, suites=numbers(0x0005, 0x0004)),
    "made: SSL 3": hello(legacy=0x0300, suites=numbers(0x000A)),
    "made: only a name": hello(sni(b"a")),
    "made: only a name and ALPN": hello(sni(b"a"), alpn(b"h2")),
    "made: one suite, GREASE": hello(extension(23), suites=numbers(0xAAAA)),
    "made: ALPN of one letter": hello(alpn(b"x")),
    "made: signatures only": hello(signatures(0x0804, 0x0403)),
    "made: GREASE among signatures": hello(signatures(0x0A0A, 0x0403)),
    "made: unknown version": hello(versions(0x0305, 0x0304)),
    "made: draft version": hello(versions(0x7F1C, 0x0303)),
    "made: highest version last": hello(versions(0x0302, 0x0303, 0x0304)),
    "made: 120 suites": hello(sni(b"a"), suites=numbers(*range(0xC000, 0xC078))),
    "made: 110 extensions": hello(*(extension(kind) for kind in range(0x4000, 0x406E))),
    "made: point formats": hello(extension(11, b"\3\0\1\2"), groups(23, 0xDADA, 25)),
    "made: like GREASE": hello(extension(0x0A1A), extension(0x1A0A), suites=numbers(0x0A1A, 0x1301)),
}  # fmt: skip
ALPN = {
    "ab": b"\xab",
    "ad": b"\xab\xcd",
    "3b": b"\x30\xab",
    "3d": b"\x30\x31\xab\xcd",
    "01": b"\x30\xab\xcd\x31",
    "xx": b"x",
    "h2": b"h2",
    "h1": b"http/1.1",
    "61": b"a!",
    "0a": b"\x0a\x0a",
}
"""The examples of JA4's description, with a few more: what a first ALPN value becomes."""
