"""The field that tells an app who its client is: how it reads, and that no other spelling of it survives."""

import hashlib
import os
import ssl

import pytest

from sidestep.protocols.client_certificate import (
    describe,
    is_forwarded,
    names_of,
    rewrite_fields,
    rewrite_head,
    strip_trailer,
)

SPELLINGS = [
    b"X-Forwarded-Client-Cert",
    b"x-forwarded-client-cert",
    b"X_FORWARDED_CLIENT_CERT",
    b"x-forwarded_client-CERT",
]
OTHERS = [b"X-Forwarded-Client-Certs", b"X-Forwarded-Client", b"X--orwarded-Client-Cert", b"Forwarded"]


def certificate(*names, subject=((("commonName", "ada"),),)):
    return {"subject": subject, "subjectAltName": names}


def test_the_field_in_envoy_s_format():
    subject = (
        (("countryName", "DE"),),
        (("organizationName", "Acme, Inc."),),
        (("organizationalUnitName", "a"), ("commonName", "ada")),
        (("emailAddress", 'a"b@x'),),
    )
    names = (("DNS", "ada.test"), ("URI", "spiffe://shop/ada"), ("IP Address", "10.0.0.1"), ("DNS", "b.test"))
    value = describe(certificate(*names, subject=subject), b"der")
    assert (
        value
        == (
            f"Hash={hashlib.sha256(b'der').hexdigest()};"
            'Subject="emailAddress=a\\\\\\"b@x,OU=a+CN=ada,O=Acme\\\\, Inc.,C=DE";'
            "URI=spiffe://shop/ada;DNS=ada.test;DNS=b.test"
        ).encode()
    )


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a.test;DNS=admin", '"a.test;DNS=admin"'),
        ('a"b', '"a\\"b"'),
        ("a,By=x", '"a,By=x"'),
        ("a\r\nX-Admin: 1", '"a%0D%0AX-Admin: 1"'),
        ("a\0b", "a%00b"),
        ("bücher.test", "b%C3%BCcher.test"),
        ("\udc80", "%3F"),
    ],
)
def test_no_name_in_a_certificate_passes_for_another_field(name, shown):
    assert describe(certificate(("DNS", name)), b"").endswith(f";DNS={shown}".encode())


def test_a_certificate_without_names():
    assert describe({}, b"").endswith(b';Subject=""')


def test_a_real_certificate_as_ssl_shows_it():
    from tests.harness.authority import Authority

    issued = Authority().issue("ada.test", client=True)
    path = f"/proc/self/fd/{os.memfd_create('x')}"
    with open(path, "wb") as file:
        file.write(issued.chain)
    decoded = ssl._ssl._test_decode_cert(path)  # type: ignore[attr-defined] # how CPython decodes a file
    der = ssl.PEM_cert_to_DER_cert(issued.chain.decode())
    os.close(int(path.rpartition("/")[2]))
    wanted = f'Hash={hashlib.sha256(der).hexdigest()};Subject="CN=ada.test";DNS=ada.test'
    assert describe(decoded, der).decode() == wanted


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_is_the_field(name):
    assert is_forwarded(name)
    head = b"GET / HTTP/1.1\r\nHost: a\r\n" + name + b": By=spoof\r\nB: 1\r\n\r\n"
    assert rewrite_head(head, None) == b"GET / HTTP/1.1\r\nHost: a\r\nB: 1\r\n\r\n"
    assert rewrite_head(head, b"v") == b"GET / HTTP/1.1\r\nHost: a\r\nB: 1\r\nX-Forwarded-Client-Cert: v\r\n\r\n"
    assert rewrite_head(rewrite_head(head, b"v"), b"v") == rewrite_head(head, b"v")
    assert strip_trailer(b"A: 1\r\n" + name + b": x\r\n\r\n") == b"A: 1\r\n\r\n"
    assert rewrite_fields([(b"a", b"1"), (name, b"x")], b"v") == ((b"a", b"1"), (b"x-forwarded-client-cert", b"v"))


@pytest.mark.parametrize("name", OTHERS)
def test_other_fields_stay(name):
    assert not is_forwarded(name)
    head = b"GET /x-forwarded-client-cert: HTTP/1.1\r\nHost: a\r\n" + name + b": x-forwarded-client-cert: y\r\n\r\n"
    assert rewrite_head(head, None) == head
    assert strip_trailer(name + b": 1\r\n\r\n") == name + b": 1\r\n\r\n"


@pytest.mark.parametrize(
    ("value", "shown"),
    [("#a", "\\\\#a"), (" a", "\\\\ a"), ("a ", "a\\\\ "), (" ", "\\\\ "), ("a#b c", "a#b c")],
)
def test_a_subject_is_escaped_as_rfc_2253_says(value, shown):
    names = {"subject": ((("commonName", value),),)}
    assert describe(names, b"").endswith(f';Subject="CN={shown}"'.encode())


def test_decoded_fields_are_rewritten_alike():
    fields = ((b"host", b"a"), (b"x_forwarded-client_cert", b"spoof"), (b"b", b"1"))
    assert rewrite_fields(fields, None) == ((b"host", b"a"), (b"b", b"1"))
    assert rewrite_fields(fields, b"v") == ((b"host", b"a"), (b"b", b"1"), (b"x-forwarded-client-cert", b"v"))
    assert rewrite_fields(fields[:1], None) == fields[:1]


def test_names_that_rules_are_compared_with():
    certificate = {
        "subject": ((("organizationName", "Shop"),), (("commonName", "ada"),)),
        "subjectAltName": (("DNS", "a.test"), ("IP Address", "10.0.0.1"), ("URI", "spiffe://a"), ("email", "a@b")),
    }
    assert names_of(certificate) == ("CN=ada,O=Shop", "a.test", "spiffe://a", "a@b")
    assert names_of({}) == ()
