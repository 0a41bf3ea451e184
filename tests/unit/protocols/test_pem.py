"""PEM text means here what it means to OpenSSL: the same files are loaded, whatever surrounds or damages the blocks."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidestep.protocols.pem import CERTIFICATES, KEYS, blocks, encode, foreign
from tests.harness.authority import Authority

AUTHORITY = Authority()
LEAF = AUTHORITY.issue("orders.shop")
CHAIN, KEY, CA = LEAF.chain, LEAF.key, AUTHORITY.pem
ROWS = CHAIN.splitlines(keepends=True)
BODY = b"".join(row.strip() for row in ROWS[1:-1])

SOUND = {
    "plain": CHAIN,
    "CRLF": CHAIN.replace(b"\n", b"\r\n"),
    "byte order mark": b"\xef\xbb\xbf" + CHAIN,
    "text before": b"subject=CN = x\n\n" + CHAIN,
    "text behind": CHAIN + b"\x00\xff rubbish",
    "no line feed at the end": CHAIN.rstrip(b"\n"),
    "one long line": ROWS[0] + BODY + b"\n" + ROWS[-1],
    "lines of 76": ROWS[0] + b"".join(BODY[at : at + 76] + b"\n" for at in range(0, len(BODY), 76)) + ROWS[-1],
    "indented body": ROWS[0] + b"".join(b"\t " + row for row in ROWS[1:-1]) + ROWS[-1],
    "white space at the ends": CHAIN.replace(b"\n", b" \t\n"),
    "empty line first": ROWS[0] + b"\n" + b"".join(ROWS[1:]),
    "comments with dashes": b"----- mine -----\n-----BEGIN of it\n" + CHAIN,
    "old label": CHAIN.replace(b"CERTIFICATE", b"X509 CERTIFICATE"),
    "mark before a second one": CHAIN + b"\xef\xbb\xbf" + CA,
}
BROKEN = {
    "indented": b"".join(b"  " + row for row in ROWS),
    "UTF-16": CHAIN.decode().encode("utf-16"),
    "another end": CHAIN.replace(b"END CERTIFICATE", b"END X"),
    "no end": b"".join(ROWS[:-1]),
    "empty line within": b"".join(ROWS[:3]) + b"\n" + b"".join(ROWS[3:]),
    "header": ROWS[0] + b"Foo: bar\n\n" + b"".join(ROWS[1:]),
    "not base64": ROWS[0] + b"@" + b"".join(ROWS[1:]),
    "a comment that begins a block": b"-----BEGIN HERE-----\n" + CHAIN,
    "a broken block behind": CHAIN + b"-----BEGIN X-----\n@@@@\n-----END X-----\n",
    "carriage returns only": CHAIN.replace(b"\n", b"\r"),
    "nothing": b"",
}


def openssl_loads(folder, chain):
    """Whether OpenSSL loads it as a chain, whichever certificate is first."""
    chain_file, key_file = folder / "chain", folder / "key"
    chain_file.write_bytes(chain)
    key_file.write_bytes(KEY)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(chain_file, key_file)
    except ssl.SSLError as error:
        return error.reason == "KEY_VALUES_MISMATCH"
    return True


def loads(chain):
    found = list(blocks(chain, limit=100))
    return all(not each.problem for each in found) and any(each.label in CERTIFICATES for each in found)


@pytest.mark.parametrize("name", [*SOUND, *BROKEN])
def test_the_same_files_are_loaded(tmp_path, name):
    text = {**SOUND, **BROKEN}[name]
    assert loads(text) is openssl_loads(tmp_path, text) is (name in SOUND)


PIECES = st.sampled_from(
    (b"\n", b"\r", b" ", b"\t", b"-", b"=", b"-----", b"-----BEGIN ", b"\xef\xbb\xbf", b":", b"\n\n", b"\0", b"# c\n",
     b"-----END CERTIFICATE-----\n", b"-----BEGIN CERTIFICATE-----\n", b"A" * 70 + b"\n", b"\n" + b"B" * 300)
)  # fmt: skip


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_what_openssl_loads_is_read_wherever_something_is_put_in(tmp_path, data):
    text = CHAIN + b"text\n" + CA
    at = data.draw(st.sampled_from([0, 1, 27, 28, 60, text.find(b"-----END"), len(CHAIN), len(CHAIN) + 5, len(text)]))
    at = data.draw(st.just(at) | st.integers(0, len(text)))
    text = text[:at] + data.draw(PIECES) + text[at:]
    if openssl_loads(tmp_path, text):
        assert loads(text), text


@given(data=st.data())
def test_anything_is_read_in_time(data):
    text = data.draw(st.lists(PIECES | st.binary(max_size=80), max_size=60).map(b"".join))
    found = list(blocks(text, limit=10))
    assert len(found) <= 11
    assert [each.number for each in found] == list(range(1, len(found) + 1))
    assert all(bool(each.problem) != bool(each.der) for each in found)
    assert isinstance(foreign(text), str)


def test_too_many_blocks_show():
    assert [each.number for each in blocks(CA * 5, limit=3)] == [1, 2, 3, 4]


def test_a_megabyte_without_an_end_is_linear():
    row = b"-----BEGIN X-----\n"
    assert len(list(blocks(row * 60_000, limit=10))) == 1
    assert list(blocks(b"-" * (1 << 20), limit=10)) == []


def test_blocks_are_written_as_they_are_read():
    (block,) = blocks(CHAIN, limit=1)
    assert encode(block.label, block.der) == CHAIN
    assert block.name == "block 1 (CERTIFICATE)"
    (key,) = blocks(KEY, limit=1)
    assert key.label in KEYS
    assert not key.encrypted


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (ROWS[0] + b"\n" + ROWS[1] + b"\n" + ROWS[2] + ROWS[-1], "it has an empty line within its data"),
        (ROWS[0] + b"\n" + b"AAAA\n" + ROWS[1] + ROWS[-1], "it has a short line within its data"),
        (ROWS[0] + b"\n" + b"A" * 65 + b"\n" + ROWS[-1], "its lines are longer than 64 characters"),
        (ROWS[0] + b"AAA\n" + ROWS[-1], "its data is not base64"),
        (ROWS[0] + b"A@AA\n" + ROWS[-1], "its data is not base64"),
        (ROWS[0] + ROWS[-1], "it has no data"),
        (ROWS[0] + b"-AAAA\n" + ROWS[-1], "it has no data"),
        (ROWS[0] + b"AAAA\n", "it has no -----END line"),
        (ROWS[0] + b"AAAA\n-----END X-----\n", "its -----END line names something else"),
        (ROWS[0] + b"Foo: bar\n\nAAAA\n" + ROWS[-1], "it has header fields or an empty line within its data"),
    ],
)
def test_what_is_wrong_with_a_block_is_told(text, problem):
    (block,) = blocks(text, limit=10)
    assert block.problem == problem
    assert not block.der


@pytest.mark.parametrize(
    "text",
    [
        b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
        b"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n-----END RSA PRIVATE KEY-----\n",
    ],
)
def test_a_key_under_a_passphrase_says_so(text):
    (block,) = blocks(text, limit=1)
    assert block.encrypted
    assert not block.problem


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (CHAIN.decode().encode("utf-16"), "it is UTF-16 text"),
        (CHAIN.decode().encode("utf-16-le"), "it is UTF-16 text"),
        (b"0\x82\x03\xff", "it is DER"),
        (BROKEN["indented"], "its lines are indented"),
        (b"-----BEGIN CERTIFICATE-----\rAAAA\r", "its lines do not end in line feeds"),
    ],
)
def test_what_a_file_without_a_block_is(text, reason):
    assert foreign(text).startswith(reason)


def test_a_nul_ends_a_line_and_an_empty_one_the_file():
    assert [each.problem for each in blocks(CHAIN.replace(b"-----\n", b"-----\0x\n"), limit=5)] != []
    assert list(blocks(b"\0\n" + CHAIN, limit=5)) == []
    assert foreign(b"hello") == ""
