"""Hellos of a real TLS library against certificates that suit them and such that do not."""

from __future__ import annotations

import ssl

import pytest

from sidestep.protocols.client_hello import ClientHello, parse
from sidestep.proxy.tls.compatibility import CompatibilityCheck
from tests.harness.authority import Authority
from tests.harness.peers import server_context

AUTHORITY = Authority()
ECDSA = AUTHORITY.issue("app.test", kind="ecdsa")
RSA = AUTHORITY.issue("app.test", kind="rsa")
TLS_1_2 = ssl.TLSVersion.TLSv1_2


def hello(ciphers=None, most=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if most is not None:
        context.maximum_version = most
    if ciphers is not None:
        context.set_ciphers(ciphers)
    outgoing = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="app.test").do_handshake()
    return outgoing.read()


def suits(check, context, data):
    parsed = parse(data)
    assert isinstance(parsed, ClientHello)
    return check.is_compatible(context, data, parsed.shape)


@pytest.mark.parametrize("certificate", [ECDSA, RSA])
@pytest.mark.parametrize("most", [None, TLS_1_2])
def test_an_ordinary_client_is_suited(certificate, most):
    assert suits(CompatibilityCheck(), server_context(certificate), hello(most=most))


@pytest.mark.parametrize(("certificate", "auth"), [(ECDSA, "aRSA"), (RSA, "aECDSA")])
def test_a_client_of_the_other_kind_is_not(certificate, auth):
    check, context = CompatibilityCheck(), server_context(certificate)
    other = hello(f"ECDHE+AESGCM+{auth}", most=TLS_1_2)
    for _ in range(2):
        assert not suits(check, context, other)
        assert suits(check, context, hello(most=TLS_1_2))


def test_a_broken_hello_does_not_speak_for_the_sound_ones_of_its_shape():
    check, context = CompatibilityCheck(), server_context(ECDSA)
    sound = hello()
    parsed = parse(sound)
    assert isinstance(parsed, ClientHello)
    broken = sound[:9] + b"\x02\x00" + sound[11:]  # another legacy version inside
    assert not check.is_compatible(context, broken, parsed.shape)
    assert suits(check, context, sound)
    assert check.is_compatible(context, broken, parsed.shape)  # remembered: not tried again


def test_what_is_remembered_goes_with_its_context():
    check = CompatibilityCheck()
    context = server_context(ECDSA)
    assert suits(check, context, hello())
    assert len(check._suited) == 1
    del context
    assert not check._suited
