import base64
import contextlib
import datetime as dt

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from sidestep.model.errors import ConfigurationError
from sidestep.node.pem import identity_pem, judge_identity, judge_trust, names_in, prove, trust_pem
from tests.harness.authority import Authority, Certificate

NOW = dt.datetime.now(dt.UTC)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority("Orders CA")


@pytest.fixture(scope="module")
def leaf(authority: Authority) -> Certificate:
    return authority.issue("orders.shop", "other.shop", ips=["10.0.0.1"])


@pytest.mark.parametrize("kind", ["ecdsa", "rsa"])
def test_a_good_identity_gives_its_public_facts(authority, kind):
    issued = authority.issue("orders.shop", "other.shop", kind=kind, ips=["10.0.0.1"])
    identity = judge_identity(chain=issued.chain + issued.ca, key=issued.key, now=NOW)
    assert identity.dns_name == "orders.shop"
    assert identity.names == ("orders.shop", "other.shop", "10.0.0.1")
    assert identity.name.startswith("identity:")
    assert identity.not_after > NOW


def test_a_credential_is_named_by_its_public_content(authority, leaf):
    once = judge_identity(chain=leaf.chain, key=leaf.key, now=NOW)
    commented = judge_identity(chain=b"# a comment\n" + leaf.chain + b"\n\n", key=leaf.key, now=NOW)
    other = authority.issue("orders.shop")
    assert once.name == commented.name
    assert once.name != judge_identity(chain=other.chain, key=other.key, now=NOW).name
    assert judge_trust(leaf.ca).name != once.name


def test_a_wildcard_is_the_name_to_verify_only_when_there_is_no_other(authority):
    both = authority.issue("*.shop", "orders.shop")
    only = authority.issue("*.shop")
    assert judge_identity(chain=both.chain, key=both.key, now=NOW).dns_name == "orders.shop"
    assert judge_identity(chain=only.chain, key=only.key, now=NOW).dns_name == "*.shop"


@pytest.mark.parametrize(
    ("chain", "key", "reason"),
    [
        (lambda leaf: leaf.chain, lambda _: b"", "the private key is not valid PEM"),
        (lambda leaf: leaf.chain, lambda leaf: leaf.chain, "the private key is not valid PEM"),
        (lambda _: b"", lambda leaf: leaf.key, "the certificate is not valid PEM"),
        (lambda leaf: leaf.key, lambda leaf: leaf.key, "the certificate is not valid PEM"),
        (lambda leaf: leaf.chain[:-40], lambda leaf: leaf.key, "the certificate is not valid PEM"),
        (lambda leaf: leaf.ca, lambda leaf: leaf.key, "the private key does not belong to the certificate"),
        (lambda leaf: leaf.ca + leaf.chain, lambda leaf: leaf.key, "does not belong"),
        (lambda leaf: leaf.chain + b"x" * 1024 * 1024, lambda leaf: leaf.key, "larger than 1048576 bytes"),
        (lambda leaf: leaf.chain, lambda leaf: leaf.key + b"x" * 1024 * 1024, "larger than 1048576 bytes"),
    ],
)
def test_what_is_wrong_with_an_identity_is_said(leaf, chain, key, reason):
    with pytest.raises(ConfigurationError, match=reason):
        judge_identity(chain=chain(leaf), key=key(leaf), now=NOW)


def test_an_encrypted_key_is_refused_without_asking(leaf):
    from cryptography.hazmat.primitives import serialization as s

    locked = s.load_pem_private_key(leaf.key, None).private_bytes(
        s.Encoding.PEM, s.PrivateFormat.PKCS8, s.BestAvailableEncryption(b"secret")
    )
    with pytest.raises(ConfigurationError, match="is encrypted"):
        judge_identity(chain=leaf.chain, key=locked, now=NOW)
    with pytest.raises(ConfigurationError):
        prove(identity_pem(chain=leaf.chain, key=locked))


def test_an_expired_and_a_future_certificate_are_refused_with_the_date(authority, leaf):
    expired = authority.issue("orders.shop", expired=True)
    with pytest.raises(ConfigurationError, match=r"expired on \d{4}-\d\d-\d\d"):
        judge_identity(chain=expired.chain, key=expired.key, now=NOW)
    with pytest.raises(ConfigurationError, match="not valid before"):
        judge_identity(chain=leaf.chain, key=leaf.key, now=NOW - dt.timedelta(days=2))


def test_trust_keeps_certificates_only(leaf):
    trust = judge_trust(b"some text\n" + leaf.ca + b"more text\n" + leaf.chain)
    assert trust.subject == "CN=Orders CA"
    assert trust_pem(b"some text\n" + leaf.ca + b"more text\n").strip() == leaf.ca.strip()
    for bad in (b"", b"junk", leaf.key):
        with pytest.raises(ConfigurationError, match="CA certificate"):
            judge_trust(bad)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_pem_raises_nothing_but_a_configuration_error(data, leaf):
    position = data.draw(st.integers(0, len(leaf.chain) - 1))
    chain = leaf.chain[:position] + bytes([data.draw(st.integers(0, 255))]) + leaf.chain[position + 1 :]
    try:
        judge_identity(chain=chain, key=leaf.key, now=NOW)
    except ConfigurationError:
        pass


def der_of(pem: bytes) -> bytes:
    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


def pem_from(der: bytes) -> bytes:
    return b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"


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
        lambda: judge_identity(chain=pem_from(broken), key=leaf.key, now=NOW),
        lambda: judge_trust(pem_from(broken)),
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
        lambda: judge_identity(chain=pem_from(damaged), key=leaf.key, now=NOW),
        lambda: judge_trust(pem_from(damaged)),
        lambda: names_in(damaged),
    ):
        try:
            judge()
        except ConfigurationError:
            pass
