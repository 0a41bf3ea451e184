import contextlib
import datetime as dt
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from sidestep.model.errors import ConfigurationError
from sidestep.node.certificates import pem
from sidestep.node.certificates.pem import PemError, names_in, validate_trust
from sidestep.protocols.pem import blocks, encode
from tests.harness.authority import Authority, Certificate

NOW = dt.datetime.now(dt.UTC)


def judge_identity(*, chain, key):
    return pem.validate_identity(chain=chain, key=key).identity


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority("Orders CA")


@pytest.fixture(scope="module")
def leaf(authority: Authority) -> Certificate:
    return authority.issue("orders.shop", "other.shop", ips=["10.0.0.1"])


@pytest.mark.parametrize("kind", ["ecdsa", "rsa"])
def test_a_good_identity_gives_its_public_facts(authority, kind):
    issued = authority.issue("orders.shop", "other.shop", kind=kind, ips=["10.0.0.1"])
    identity = judge_identity(chain=issued.chain + issued.ca, key=issued.key)
    assert identity.dns_name == "orders.shop"
    assert identity.names == ("orders.shop", "other.shop", "10.0.0.1")
    assert identity.name.startswith("identity:")
    assert identity.not_after > NOW


def test_a_credential_is_named_by_its_public_content(authority, leaf):
    once = judge_identity(chain=leaf.chain, key=leaf.key)
    commented = judge_identity(chain=b"# a comment\n" + leaf.chain + b"\n\n", key=leaf.key)
    other = authority.issue("orders.shop")
    assert once.name == commented.name
    assert once.name != judge_identity(chain=other.chain, key=other.key).name
    assert validate_trust(leaf.ca).trust.name != once.name


def test_a_wildcard_is_the_name_to_verify_only_when_there_is_no_other(authority):
    both = authority.issue("*.shop", "orders.shop")
    only = authority.issue("*.shop")
    assert judge_identity(chain=both.chain, key=both.key).dns_name == "orders.shop"
    assert judge_identity(chain=only.chain, key=only.key).dns_name == "*.shop"
    for issued, name in (
        ({"ips": ["10.0.0.1"], "common_name": "orders.shop"}, "10.0.0.1"),
        ({"common_name": "orders.shop"}, "orders.shop"),
        ({"common_name": "The orders"}, ""),
    ):
        some = authority.issue(**issued)
        assert judge_identity(chain=some.chain, key=some.key).dns_name == name


@pytest.mark.parametrize(
    ("chain", "key", "reason"),
    [
        (lambda leaf: leaf.chain, lambda _: b"", "the private key is not valid PEM: it has no block"),
        (lambda leaf: leaf.chain, lambda leaf: leaf.chain, "holds no private key, only CERTIFICATE"),
        (lambda _: b"", lambda leaf: leaf.key, "the certificate is not valid PEM"),
        (lambda leaf: leaf.key, lambda leaf: leaf.key, "holds no certificate, only PRIVATE KEY"),
        (
            lambda leaf: leaf.chain[:-40],
            lambda leaf: leaf.key,
            r"block 1 \(CERTIFICATE\) cannot be read: it has no -----END",
        ),
        (lambda leaf: leaf.ca, lambda leaf: leaf.key, "the private key does not belong to the certificate"),
        (
            lambda leaf: leaf.ca + leaf.chain,
            lambda leaf: leaf.key,
            r"belongs to block 2 \(CERTIFICATE\), which has to come",
        ),
        (lambda leaf: leaf.chain.decode().encode("utf-16"), lambda leaf: leaf.key, "UTF-16"),
        (lambda leaf: leaf.chain.replace(b"-----B", b" -----B"), lambda leaf: leaf.key, "indented"),
        (
            lambda leaf: leaf.chain,
            lambda leaf: leaf.key.replace(b"\n", b"\n@", 1),
            r"block 1 \(PRIVATE KEY\).*not base64",
        ),
        (lambda leaf: leaf.chain + b"x" * pem.MAX_CHAIN, lambda leaf: leaf.key, f"larger than {pem.MAX_CHAIN} bytes"),
        (lambda leaf: leaf.chain, lambda leaf: leaf.key + b"x" * pem.MAX_KEY, f"larger than {pem.MAX_KEY} bytes"),
        (lambda leaf: leaf.chain * 129, lambda leaf: leaf.key, "more than 128 blocks"),
        (lambda leaf: leaf.chain, lambda _: encode("RSA PRIVATE KEY", b"0" * 17000), "larger than 16384 bytes"),
    ],
)
def test_what_is_wrong_with_an_identity_is_said(leaf, chain, key, reason):
    with pytest.raises(ConfigurationError, match=reason):
        judge_identity(chain=chain(leaf), key=key(leaf))


@pytest.mark.parametrize("form", ["PKCS8", "TraditionalOpenSSL"])
def test_an_encrypted_key_is_refused_without_asking(leaf, form):
    from cryptography.hazmat.primitives import serialization as s

    locked = s.load_pem_private_key(leaf.key, None).private_bytes(
        s.Encoding.PEM, getattr(s.PrivateFormat, form), s.BestAvailableEncryption(b"secret")
    )
    with pytest.raises(ConfigurationError, match=r"block 1 .*is encrypted"):
        judge_identity(chain=leaf.chain, key=locked)


@pytest.mark.alone
def test_a_crafted_key_costs_next_to_nothing(leaf):
    """RSA whose primes nobody has tested: 30 KiB of it, and as large a one as OpenSSL takes."""
    for bits in (16_000, 60_000):
        p, q = (1 << bits // 2) + 1, (1 << bits // 2) + 3
        numbers = (0, p * q, 65537, 3, p, q, 3, 3, 3)  # RFC 8017, A.1.2
        body = b"".join(_integer(number) for number in numbers)
        key = encode("RSA PRIVATE KEY", b"\x30" + _length(len(body)) + body)
        began = time.process_time()
        with pytest.raises(PemError):
            judge_identity(chain=leaf.chain, key=key)
        assert time.process_time() - began < 1.0


def _integer(number):
    data = number.to_bytes(number.bit_length() // 8 + 1, "big")
    return b"\x02" + _length(len(data)) + data


def _length(size):
    if size < 128:
        return bytes([size])
    data = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([0x80 | len(data)]) + data


def test_an_identity_is_canonical_and_holds_nothing_twice(authority, leaf):
    combined = b"text\n" + leaf.key + leaf.chain + leaf.ca + leaf.chain + leaf.ca
    found = pem.validate_identity(chain=combined, key=combined)
    assert [block.label for block in blocks(found.pem, limit=9)] == ["PRIVATE KEY", "CERTIFICATE", "CERTIFICATE"]
    assert found.identity == judge_identity(chain=leaf.chain + leaf.ca, key=leaf.key)


def test_trust_keeps_certificates_only(leaf):
    mixed = b"some text\n" + leaf.ca + b"more text\n" + leaf.key + leaf.chain + leaf.ca
    trust = validate_trust(mixed)
    assert trust.trust.subject == "CN=Orders CA"
    assert trust.pem == leaf.ca + leaf.chain
    for bad in (b"", b"junk", leaf.key, leaf.ca + b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        with pytest.raises(ConfigurationError, match="CA certificate"):
            validate_trust(bad)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_pem_raises_nothing_but_a_configuration_error(data, leaf):
    position = data.draw(st.integers(0, len(leaf.chain) - 1))
    chain = leaf.chain[:position] + bytes([data.draw(st.integers(0, 255))]) + leaf.chain[position + 1 :]
    try:
        judge_identity(chain=chain, key=leaf.key)
    except ConfigurationError:
        pass


def der_of(pem: bytes) -> bytes:
    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


def pem_from(der: bytes) -> bytes:
    return encode("CERTIFICATE", der)


MALFORMED = {
    "an unknown version": (b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x0a"),
    "an extension twice": (b"\x06\x03\x55\x1d\x25", b"\x06\x03\x55\x1d\x11"),  # extendedKeyUsage as subjectAltName
    "a subject that is no text": (b"\x0c\x0borders.shop", b"\x0d\x0borders.shop"),
    "an alternative name that is none": (b"\x82\x0borders.shop", b"\x9f\x0borders.shop"),
}
"""Certificates that are PEM and DER, and yet nothing the library can read; some only when a field is asked for."""


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_certificate_is_refused_and_costs_nobody_else_anything(leaf, kind):
    old, new = MALFORMED[kind]
    der = der_of(leaf.chain)
    assert old in der
    broken = der.replace(old, new)
    for judge in (
        lambda: judge_identity(chain=pem_from(broken), key=leaf.key),
        lambda: validate_trust(pem_from(broken)),
    ):
        with contextlib.suppress(ConfigurationError):
            judge()
    assert isinstance(names_in(broken), tuple)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_der_raises_nothing_but_a_configuration_error(data, leaf):
    der = bytearray(der_of(leaf.chain))
    for _ in range(data.draw(st.integers(1, 3))):
        der[data.draw(st.integers(0, len(der) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(der)
    for judge in (
        lambda: judge_identity(chain=pem_from(damaged), key=leaf.key),
        lambda: validate_trust(pem_from(damaged)),
        lambda: names_in(damaged),
    ):
        try:
            judge()
        except ConfigurationError:
            pass


@pytest.mark.alone
def test_names_of_an_app_s_certificate_are_read_once():
    """`list` asks for them on the daemon's loop, for every port."""
    large = Authority().issue(*(f"h{number}.test" for number in range(800)))
    der = next(blocks(large.chain, limit=4)).der
    began = time.process_time()
    for _ in range(500):
        assert len(names_in(der)) == pem.MAX_NAMES
    assert time.process_time() - began < 0.2
