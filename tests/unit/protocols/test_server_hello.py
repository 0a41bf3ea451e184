"""What servers say first: real ones of OpenSSL, whole, byte by byte, with bytes behind it, and spoiled."""

from __future__ import annotations

import contextlib
import ssl
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidestep.protocols.server_hello import MAX_BYTES, NOTHING, NoServerHello, ServerHello, parse
from tests.effort import examples
from tests.harness.authority import Authority

ISSUED = Authority().issue("api.test")
DER = ssl.PEM_cert_to_DER_cert(ISSUED.chain.decode().split("-----END")[0] + "-----END CERTIFICATE-----\n")


def contexts(version, curve=""):
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.minimum_version = server.maximum_version = version
    with tempfile.TemporaryDirectory() as folder:
        ISSUED.write(Path(folder))
        server.load_cert_chain(f"{folder}/tls.crt", f"{folder}/tls.key")
    if curve:
        server.set_ecdh_curve(curve)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    return server, client


def flight(server, client, session=None):
    """What the server says first; and the session, once both have finished."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(back, there, server_hostname="api.test", session=session)
    answering = server.wrap_bio(there, back, server_side=True)
    said = b""
    for _ in range(4):
        for end in (asking, answering):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
            if end is answering and not said:
                said = back.read()
                back.write(said)
    return said, asking.session


TLS13, TLS12 = ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2
MODERN = flight(*contexts(TLS13))[0]
RETRY = flight(*contexts(TLS13, "secp521r1"))[0]
OLD_PAIR = contexts(TLS12)
OLD, SESSION = flight(*OLD_PAIR)
RESUMED = flight(*OLD_PAIR, session=SESSION)[0]


def test_tls_1_3_tells_its_version_and_suite():
    for said in (MODERN, RETRY):
        found = parse(said)
        assert (found.version, found.certificate, found.resumed) == (0x0304, b"", False)
        assert 0x1301 <= found.suite <= 0x1303


def test_tls_1_2_shows_its_certificate():
    found = parse(OLD)
    assert (found.version, found.certificate, found.resumed) == (0x0303, DER, False)


def test_tls_1_2_that_goes_on_with_a_session_shows_none():
    found = parse(RESUMED)
    assert (found.version, found.certificate, found.resumed) == (0x0303, b"", True)


@pytest.mark.parametrize("said", [MODERN, RETRY, OLD, RESUMED], ids=["1.3", "retry", "1.2", "resumed"])
def test_the_answer_does_not_depend_on_how_the_bytes_come(said):
    answers = [parse(said[:end]) for end in range(len(said) + 1)]
    first = next(at for at, answer in enumerate(answers) if answer is not None)
    assert set(answers[:first]) <= {None}
    assert {answers[at] for at in range(first, len(answers))} == {parse(said)}
    assert parse(said + b"\x17\x03\x03\x00\x01x") == parse(said)


def test_messages_in_records_of_one_byte():
    content = b"".join(bytes((22, 3, 3, 0, 1, byte)) for byte in handshake(OLD))
    assert parse(content) == parse(OLD)


def handshake(said):
    """The contents of the handshake records."""
    content, at = b"", 0
    while at < len(said) and said[at] == 22:
        length = int.from_bytes(said[at + 3 : at + 5])
        content += said[at + 5 : at + 5 + length]
        at += 5 + length
    return content


@pytest.mark.parametrize(
    "said",
    [
        b"\x15\x03\x03\x00\x02\x02\x28",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x16\x03\x03\x00\x00",
        b"\x16\x03\x03\xff\xff",
        b"\x16\x03\x03\x00\x04\x02\x00\x00\x00",
        b"\x16\x03\x03\x00\x04\x01\x00\x00\x00",
        b"\x14\x03\x03\x00\x01\x01",
    ],
)
def test_what_is_no_server_hello(said):
    assert parse(said) is NOTHING


def test_a_server_that_never_finishes_is_given_up():
    endless = b"\x16\x03\x03\x40\x00" + b"\x02\xff\xff\xff" + bytes(0x4000 - 4)
    assert parse(endless) is None
    assert parse((endless * 3)[:MAX_BYTES]) is NOTHING


@given(st.integers(0, len(OLD) - 1), st.integers(0, 255))
@settings(deadline=None, max_examples=examples())
def test_any_byte_may_be_wrong(at, value):
    assert isinstance(parse(OLD[:at] + bytes([value]) + OLD[at + 1 :]), ServerHello | NoServerHello | None)


@given(st.binary(max_size=300))
@settings(deadline=None, max_examples=examples())
def test_any_bytes(data):
    parse(data)
    parse(b"\x16\x03\x03\x01\x00" + data)
