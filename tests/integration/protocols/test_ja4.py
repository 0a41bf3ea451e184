"""Fingerprints of real TLS clients are those that tshark shows for the same bytes."""

import pytest

from sidestep.protocols import ja4, tls_weakness
from sidestep.protocols.client_hello import parse
from tests.harness import tshark
from tests.integration.protocols import tls_clients

FIELDS = {"ja3": ja4.ja3, "ja3_full": ja4.ja3_text, "ja4": ja4.ja4, "ja4_r": ja4.ja4_raw}


@pytest.fixture(scope="module")
def hellos():
    return tls_clients.all_hellos()


def test_fingerprints_of_clients_are_those_of_tshark(hellos):
    known = {name: make for name, make in FIELDS.items() if tshark.has_field(f"tls.handshake.{name}")}
    assert {"ja3", "ja3_full"} <= set(known)
    found = tshark.rows(tshark.first_segments(hellos.values()), [f"tls.handshake.{name}" for name in known])
    expected = {name: dict(zip(known, row.values(), strict=True)) for name, row in zip(hellos, found, strict=True)}
    ours = {name: {field: make(parse(hello)) for field, make in known.items()} for name, hello in hellos.items()}
    assert ours == expected
    assert len({row["ja3"] for row in ours.values()}) >= 20


def test_the_clients_that_are_weak_are_told(hellos):
    told = {name: tls_weakness.of_offer(parse(hello)) for name, hello in hellos.items()}
    weak = {
        "curl, up to TLS 1.1": {"tls-1.1"},
        "openssl, TLS 1.1": {"tls-1.1"},
        "openssl, TLS 1.0": {"tls-1.0"},
        "gnutls, the oldest": {"tls-1.1"},
        "openssl, each cipher": {"anonymous-cipher", "null-cipher"},
        "openssl, each cipher, TLS 1.2": {"anonymous-cipher", "null-cipher"},
    }
    assert {name: set(words) for name, words in told.items() if words} == weak


WORDS = {
    "null-cipher": lambda name: "_NULL" in name or name in ("TLS_SHA256_SHA256", "TLS_SHA384_SHA384"),
    "anonymous-cipher": lambda name: "_anon_" in name,
    "export-cipher": lambda name: "EXPORT" in name,
    "rc4": lambda name: "RC4" in name,
    "rc2": lambda name: "RC2" in name,
    "des": lambda name: "_DES" in name,
    "3des": lambda name: "3DES" in name,
}


def test_weak_suites_are_those_whose_names_say_so():
    lines = (line.split("\t") for line in tshark.tshark("-G", "values").decode(errors="replace").splitlines())
    named = {int(row[2]): row[3] for row in lines if row[:2] == ["V", "tls.handshake.ciphersuite"]}
    suites = {number: name for number, name in named.items() if number < 1 << 16}
    assert len(suites) > 300
    for number, name in suites.items():
        said = {word for word, says in WORDS.items() if says(name)}
        assert set(tls_weakness.of_connection(0x0303, number)) == said, name
