"""What is shown of certificates, beside what the cryptography library says of them."""

from __future__ import annotations

import datetime as dt

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from sidestep.protocols.certificate_facts import facts
from tests.effort import examples

KEY = ec.generate_private_key(ec.SECP256R1())


def made(subject, *, serial=0x0A1B2C, until=dt.datetime(2049, 12, 31, 23, 59, 59, tzinfo=dt.UTC)):
    issuer = x509.Name([x509.NameAttribute(NameOID.COUNTRY_NAME, "DE"), x509.NameAttribute(NameOID.COMMON_NAME, "CA")])
    builder = x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=KEY.public_key(),
        serial_number=serial,
        not_valid_before=dt.datetime(1999, 1, 2, 3, 4, 5, tzinfo=dt.UTC),
        not_valid_after=until,
    )
    return builder.sign(KEY, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


NAME = x509.Name(
    [
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Łódź"),
        x509.NameAttribute(NameOID.COMMON_NAME, "api.test"),
        x509.NameAttribute(NameOID.EMAIL_ADDRESS, "a@b.test"),
    ]
)
GOOD = made(NAME)


def test_what_is_shown_of_a_certificate():
    shown = facts(GOOD)
    assert shown.subject == "O=Łódź, CN=api.test, 1.2.840.113549.1.9.1=a@b.test"
    assert shown.issuerdn == "C=DE, CN=CA"
    assert (shown.serial, shown.notbefore, shown.notafter) == ("0A:1B:2C", "1999-01-02T03:04:05", "2049-12-31T23:59:59")
    digest = x509.load_der_x509_certificate(GOOD).fingerprint(hashes.SHA1()).hex(":")
    assert shown.fingerprint == digest


def test_times_after_2050_have_another_form():
    assert facts(made(NAME, until=dt.datetime(2050, 1, 1, tzinfo=dt.UTC))).notafter == "2050-01-01T00:00:00"


@pytest.mark.parametrize("serial", [1, 0x80, 2**159 - 1])
def test_serial_numbers(serial):
    assert int(facts(made(NAME, serial=serial)).serial.replace(":", ""), 16) == serial


def test_an_empty_name():
    assert facts(made(x509.Name([]))).subject == ""


def test_one_that_is_cut_shows_its_fingerprint_only():
    for cut in range(len(GOOD)):  # a test for each would differ from one process to the next, as signatures do
        shown = facts(GOOD[:cut])
        assert (shown.subject, shown.issuerdn, shown.serial) == ("", "", None), cut
        assert len(shown.fingerprint) == 59


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255))
@settings(deadline=None, max_examples=examples())
def test_any_byte_may_be_wrong(at, value):
    facts(GOOD[:at] + bytes([value]) + GOOD[at + 1 :])


@given(st.binary(max_size=200))
@settings(deadline=None, max_examples=examples())
def test_any_bytes(data):
    facts(data)
