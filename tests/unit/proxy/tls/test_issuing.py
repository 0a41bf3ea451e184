"""Certificates in the name of a CA: what OpenSSL and clients take, for which names, for how long."""

from __future__ import annotations

import datetime as dt
import os
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sidestep.proxy.tls import issuing
from sidestep.proxy.tls.issuing import LIFETIME, MAX_LEAVES, RENEWAL, IssuedLeaves, Issuer
from tests.harness.authority import Authority, pem_of

NOW = dt.datetime.now(dt.UTC)
CA = Authority("Some CA")


def made(chain):
    return x509.load_pem_x509_certificates(chain)


def handshake(context, client, name):
    """Both ends in memory; the client's error, or the server's certificate as it sees it."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(to_server, to_client, server_side=True)
    there = client.wrap_bio(to_client, to_server, server_hostname=name)
    for _ in range(4):
        for end in (there, server):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                pass
    return there.getpeercert()


def client(authority=CA):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=authority.pem.decode())
    return context


@pytest.mark.parametrize("kind", ["ecdsa", "rsa"])
@pytest.mark.parametrize("name", ["api.test", "API.test", "a_b.test", "api.test."])
def test_clients_that_trust_the_ca_take_the_leaf(kind, name):
    authority = Authority("CA", kind=kind)
    context = IssuedLeaves(Issuer(authority.pair)).context(name, "h2")
    shown = handshake(context, client(authority), name.rstrip("."))
    assert shown["subjectAltName"] == (("DNS", name.lower().rstrip(".")),)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(context, client(Authority("Other")), "api.test")
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        handshake(context, client(authority), "other.test")


def test_what_a_leaf_says():
    leaf = Issuer(CA.pair).leaf("api.test", NOW)
    certificate, above = made(leaf.chain)
    assert above.public_bytes(serialization.Encoding.PEM) == CA.pem
    assert certificate.issuer == CA.name
    assert certificate.not_valid_after_utc == (NOW + LIFETIME).replace(microsecond=0)
    assert certificate.not_valid_before_utc < NOW
    assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)
    extensions = certificate.extensions
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert [*extensions.get_extension_for_class(x509.ExtendedKeyUsage).value] == [ExtendedKeyUsageOID.SERVER_AUTH]
    other = Issuer(CA.pair).leaf("api.test", NOW)
    assert made(other.chain)[0].serial_number != certificate.serial_number


def test_a_leaf_does_not_outlive_its_ca():
    authority = Authority("Short", lasts=2 * 3600.0)
    leaf = Issuer(authority.pair).leaf("api.test", NOW)
    assert made(leaf.chain)[0].not_valid_after_utc == made(authority.pem)[0].not_valid_after_utc


def test_a_ca_that_is_nearly_over_or_not_valid_yet_signs_nothing():
    authority = Authority("Short", lasts=RENEWAL.total_seconds() / 2)
    assert Issuer(authority.pair).hindrance("a.test", dt.datetime.now(dt.UTC)) == "issuer-expired"
    assert Issuer(CA.pair).hindrance("a.test", NOW - dt.timedelta(days=365)) == "issuer-expired"
    assert Issuer(CA.pair).hindrance("a.test", NOW) == ""


@pytest.mark.parametrize(
    ("permitted", "name", "allowed"),
    [
        (["api.test"], "api.test", True),
        (["api.test"], "API.test.", True),
        (["api.test"], "www.api.test", True),
        (["api.test"], "xapi.test", False),
        (["api.test"], "test", False),
        ([".api.test"], "api.test", False),
        ([".api.test"], "www.api.test", True),
        (["a.test", "b.test"], "b.test", True),
    ],
)
def test_what_constraints_permit_as_openssl_sees_it(permitted, name, allowed):
    authority = Authority("Constrained", permitted=permitted)
    issuer = Issuer(authority.pair)
    assert issuer.hindrance(name, NOW) == ("" if allowed else "issuer-constrained")
    context = IssuedLeaves(issuer).context(name, None)
    if allowed:
        assert handshake(context, client(authority), name.rstrip("."))
    else:
        with pytest.raises(ssl.SSLCertVerificationError):
            handshake(context, client(authority), name)


def certificate(key, *extensions):
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "CA")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - dt.timedelta(days=1))
        .not_valid_after(NOW + dt.timedelta(days=1))
    )
    for each in extensions:
        builder = builder.add_extension(each, critical=True)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return pem_of(key) + builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM)


CA_TRUE = x509.BasicConstraints(ca=True, path_length=None)


def test_excluded_names():
    excluded = x509.NameConstraints(None, [x509.DNSName("internal.test")])
    issuer = Issuer(certificate(ec.generate_private_key(ec.SECP256R1()), CA_TRUE, excluded))
    assert issuer.hindrance("a.internal.test", NOW) == "issuer-constrained"
    assert issuer.hindrance("a.test", NOW) == ""


@pytest.mark.parametrize("key", [ec.generate_private_key(ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate()])
def test_other_keys(key):
    leaf = Issuer(certificate(key, CA_TRUE)).leaf("a.test", NOW)
    first, above = made(leaf.chain)
    first.verify_directly_issued_by(above)


@pytest.mark.parametrize(
    ("pem", "reason"),
    [
        (b"", "substring not found|no PEM|PEM"),
        (CA.pem, "key|PEM"),
        (CA.issue("leaf.test").key + CA.issue("leaf.test").chain, "not that of a CA"),
        (certificate(ec.generate_private_key(ec.SECP256R1())), "not that of a CA"),
        (
            certificate(
                ec.generate_private_key(ec.SECP256R1()),
                CA_TRUE,
                x509.KeyUsage(True, False, False, False, False, False, False, False, False),
            ),
            "may not sign others",
        ),
        (CA.pair + CA.pem * 100, "larger than"),
    ],
)
def test_what_is_no_ca(pem, reason):
    with pytest.raises(ValueError, match=reason):
        Issuer(pem)


def test_contexts_are_kept_while_their_leaf_is_good_and_bounded():
    leaves = IssuedLeaves(Issuer(CA.pair))
    first = leaves.context("a.test", "h2")
    assert leaves.context("A.test", "h2") is first
    other = leaves.context("a.test", None)
    assert other is not first
    serials = {handshake(each, client(), "a.test")["serialNumber"] for each in (first, other)}
    assert len(serials) == 1, "one leaf for both"
    for at in range(MAX_LEAVES):
        leaves.context(f"n{at}.test", None)
    assert leaves.context("a.test", "h2") is not first


def test_a_leaf_that_is_nearly_over_is_made_anew():
    authority = Authority("Short", lasts=RENEWAL.total_seconds() / 2)
    leaves = IssuedLeaves(Issuer(authority.pair))
    assert leaves.context("a.test", None) is not leaves.context("a.test", None)


def test_no_descriptor_is_left():
    before = len(os.listdir("/proc/self/fd"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with pytest.raises(OSError):  # noqa: PT011 - whatever OpenSSL says of it
        issuing.load(context, b"none", b"none")
    with pytest.raises(OSError, match="fit"):
        issuing.load(context, b"x" * (1 << 20), b"none")
    issuing.warm_up()
    assert len(os.listdir("/proc/self/fd")) == before
