"""ClientHellos of a real TLS library, cut, fragmented, spoilt."""

import ssl

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidestep.protocols import client_hello
from sidestep.protocols.client_hello import ClientHello, Incomplete, NotTls, parse
from tests.effort import examples
from tests.harness.client_hello import hello_of_ssl


def real(name: str | None = "app.test", alpn=("h2", "http/1.1"), least=None, most=None) -> bytes:
    return hello_of_ssl(name, alpn, least=least, most=most)


HELLO = real()


def message(data: bytes) -> bytes:
    return data[5:]


def fragment(body: bytes, *sizes: int) -> bytes:
    records = b""
    at = 0
    for size in (*sizes, len(body)):
        piece = body[at : at + size]
        at += size
        if piece:
            records += b"\x16\x03\x01" + len(piece).to_bytes(2) + piece
    return records


def vector(size: int, data: bytes) -> bytes:
    return len(data).to_bytes(size) + data


def extension(kind: int, data: bytes) -> bytes:
    return kind.to_bytes(2) + vector(2, data)


def hello(*extensions: bytes, legacy: int = 0x0303, session: bytes = b"", suites: bytes = b"\x13\x01",
          compression: bytes = b"\0", block: bytes | None = None, rest: bytes = b"") -> bytes:  # fmt: skip
    joined = b"".join(extensions)
    body = (
        legacy.to_bytes(2) + bytes(32) + vector(1, session) + vector(2, suites) + vector(1, compression)
        + (vector(2, joined) if block is None else block) + rest
    )  # fmt: skip
    return fragment(b"\x01" + vector(3, body))


def sni(name: bytes, kind: int = 0) -> bytes:
    return extension(0, vector(2, bytes([kind]) + vector(2, name)))


def test_a_real_hello():
    parsed = parse(HELLO)
    assert isinstance(parsed, ClientHello)
    assert parsed.server_name == b"app.test"
    assert parsed.server_name_reproducible
    assert parsed.alpn == (b"h2", b"http/1.1")
    assert set(parsed.versions) >= {0x0303, 0x0304}
    assert parsed.modern
    assert not parsed.pre_shared_key
    assert not parsed.early_data
    assert not parsed.encrypted_client_hello
    assert parsed.size == len(HELLO)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_real_hellos_of_one_version(version):
    parsed = parse(real(None, (), least=version, most=version))
    assert isinstance(parsed, ClientHello)
    assert parsed.server_name is None
    assert parsed.server_name_reproducible
    assert parsed.alpn == ()
    assert parsed.modern
    assert version in parsed.versions


@pytest.mark.parametrize("name", ["a", "APP.Test", "x-y_z.test", "test.", "1.2.3.a", "a" * 63 + ".test", "*.test"])
def test_names_that_ssl_sends_as_they_are(name):
    parsed = parse(real(name))
    assert isinstance(parsed, ClientHello)
    assert parsed.server_name == name.encode()
    assert parsed.server_name_reproducible


@pytest.mark.parametrize(
    "name",
    [b".test", b"a..test", b"a" * 64 + b".test", b"b\xc3\xbccher.test", b"127.0.0.1", b"::1", b"[::1]", b"1.2.3.4",
     b"01.2.3.4", b"a b.test", b"a\0.test", b"a\n", b".", b"a..", b"a." * 127 + b"aa"],
)  # fmt: skip
def test_names_that_ssl_cannot_send(name):
    parsed = parse(hello(sni(name)))
    assert isinstance(parsed, ClientHello)
    assert parsed.server_name == name
    assert not parsed.server_name_reproducible


@given(st.text(alphabet="ab.-_*1", min_size=1, max_size=12))
@settings(deadline=None, max_examples=examples())
def test_what_is_called_reproducible_is_reproduced(name):
    parsed = parse(hello(sni(name.encode())))
    assert isinstance(parsed, ClientHello)
    if parsed.server_name_reproducible:
        again = parse(real(name))
        assert isinstance(again, ClientHello)
        assert again.server_name == name.encode()


def test_extensions_that_matter():
    parsed = parse(
        hello(
            sni(b"a.test"), extension(0xFE0D, b"x"), extension(42, b""), extension(43, vector(1, b"\x1a\x1a\x03\x04")),
            extension(16, vector(2, vector(1, b"\x0a\x0a") + vector(1, b"h2"))), extension(41, b"binders"),
        )
    )  # fmt: skip
    assert isinstance(parsed, ClientHello)
    assert parsed.encrypted_client_hello
    assert parsed.early_data
    assert parsed.pre_shared_key
    assert parsed.versions == (0x0304,)
    assert parsed.alpn == (b"\x0a\x0a", b"h2")


@pytest.mark.parametrize(("legacy", "modern"), [(0x0300, False), (0x0301, False), (0x0302, False), (0x0303, True)])
def test_versions_without_the_extension(legacy, modern):
    parsed = parse(hello(block=b"", legacy=legacy))
    assert isinstance(parsed, ClientHello)
    assert parsed.modern is modern


def test_every_prefix_is_incomplete_and_asks_for_no_more_than_is_missing():
    for data in (HELLO, fragment(message(HELLO), 1, 2, 3, 100), fragment(message(HELLO), *[7] * 20)):
        for end in range(len(data)):
            answer = parse(data[:end])
            assert isinstance(answer, Incomplete)
            assert 1 <= answer.needed <= len(data) - end


@given(st.lists(st.integers(1, 400), max_size=20))
def test_fragmentation_does_not_matter(sizes):
    data = fragment(message(HELLO), *sizes)
    parsed, whole = parse(data), parse(HELLO)
    assert isinstance(parsed, ClientHello)
    assert isinstance(whole, ClientHello)
    assert parsed.size == len(data)
    assert (parsed.server_name, parsed.alpn, parsed.versions) == (whole.server_name, whole.alpn, whole.versions)


@pytest.mark.parametrize("rest", [b"\x17\x03\x03\x00\x05early", b"\x14\x03\x03\x00\x01\x01", b"\0", HELLO])
def test_what_follows_the_hello_is_not_looked_at(rest):
    assert parse(HELLO + rest) == parse(HELLO)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\n", "not-tls"),
        (b"\x17", "not-tls"),
        (b"\x16\x02", "not-tls"),
        (b"\x16\x03\x05", "not-tls"),
        (b"\x16\x03\x01\x00\x00", "malformed"),
        (b"\x16\x03\x01\x40\x01", "malformed"),
        (b"\x16\x03\x01\x00\x04\x02\x00\x00\x00", "not-a-client-hello"),
        (b"\x16\x03\x01\x00\x04\x01\x00\x00\x00", "malformed"),
        (b"\x16\x03\x01\x00\x04\x01\x00\x40\x01", "too-large"),
        (b"\x16\x03\x01\x00\x04\x01\xff\xff\xff", "too-large"),
        (b"\x16\x03\x01\x00\x08\x01\x00\x00\x01\x00", "malformed"),
        (fragment(message(HELLO), *[1] * 40), "too-many-records"),
        pytest.param(fragment(message(HELLO)[:20]) + b"\x17\x03\x03", "not-tls", id="random-and-short"),
        (fragment(message(HELLO) + b"\0"), "malformed"),
        (hello(session=bytes(33)), "malformed"),
        (hello(suites=b""), "malformed"),
        (hello(suites=b"\0"), "malformed"),
        (hello(compression=b""), "malformed"),
        (hello(rest=b"\0"), "malformed"),
        (hello(block=b"\0"), "malformed"),
        (hello(block=b"\0\4\0\0"), "malformed"),
        (hello(sni(b"a.test"), sni(b"b.test")), "malformed"),
        (hello(sni(b"")), "malformed"),
        (hello(sni(b"a.test", kind=1)), "malformed"),
        (hello(extension(0, b"")), "malformed"),
        (hello(extension(0, vector(2, b"\0" + vector(2, b"a") + b"\0" + vector(2, b"b")))), "malformed"),
        (hello(extension(16, b"")), "malformed"),
        (hello(extension(16, vector(2, b"\0\0"))), "malformed"),
        (hello(extension(16, vector(2, vector(1, b"h2")) + b"x")), "malformed"),
        (hello(extension(43, b"")), "malformed"),
        (hello(extension(43, vector(1, b"\3"))), "malformed"),
        (hello(extension(41, b"x"), sni(b"a.test")), "malformed"),
    ],
)
def test_refusals(data, reason):
    assert parse(data) == NotTls(reason)
    for end in range(len(data)):
        assert parse(data[:end]) == NotTls(reason) or isinstance(parse(data[:end]), Incomplete)


@given(st.binary(max_size=400), st.integers(0, 500))
def test_noise_never_raises_and_is_bounded(noise, at):
    parse(noise)
    answer = parse(HELLO[:at] + noise + HELLO[at:])
    if isinstance(answer, Incomplete):
        assert answer.needed <= client_hello.MAX_BYTES


@pytest.mark.parametrize(("size", "accepted"), [(client_hello.MAX_HELLO, True), (client_hello.MAX_HELLO + 1, False)])
def test_the_largest_hello(size, accepted):
    empty = len(message(hello(extension(21, b"")))) - 4
    listed = extension(21, bytes(size - empty))
    body = b"\x03\x03" + bytes(32) + b"\0" + vector(2, b"\x13\x01") + vector(1, b"\0") + vector(2, listed)
    data = fragment(b"\x01" + vector(3, body), 10_000)
    assert len(data) <= client_hello.MAX_BYTES
    assert isinstance(parse(data), ClientHello) is accepted


@pytest.mark.parametrize(
    ("extensions", "allowed"),
    [
        ([extension(43, vector(1, b"\x03\x03"))], True),
        ([extension(43, vector(1, b"\x03\x04\x03\x03"))], False),
        ([extension(43, vector(1, b"\x03\x04")), extension(49, b"")], True),
        ([], True),
    ],
)
def test_who_can_be_asked_for_a_certificate_later(extensions, allowed):
    parsed = parse(hello(*extensions))
    assert isinstance(parsed, ClientHello)
    assert parsed.allows_late_auth is allowed


@pytest.mark.parametrize(
    "data",
    [
        hello(suites=b"\x13\x01\x13"),
        hello(extension(43, vector(1, b"\x03\x04") + b"x")),
        hello(extension(43, vector(1, b"\x03\x04\x03"))),
        hello(extension(16, vector(2, vector(1, b"h2")) + b"x")),
        hello(sni(b"a") + b""[:0], session=b"s" * 33),
    ],
    ids=["odd suites", "bytes after the versions", "half a version", "bytes after ALPN", "a long session id"],
)
def test_lengths_that_do_not_add_up(data):
    assert parse(data) == NotTls("malformed")
