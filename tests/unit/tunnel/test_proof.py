"""Proofs and pinned certificates."""

import base64
import socket
import ssl
import threading

import pytest

from sidestep.model.errors import ConfigurationError, PeerError, RefusedError
from sidestep.tunnel.node_tls import make_node_tls, pinned_context
from sidestep.tunnel.proof import generate, parse_public, public_text, sign, verify

FACTS = {"nonce": "ab" * 32, "certificate": b"certificate", "uid": "u-1"}


def test_the_holder_of_the_key_is_believed():
    key = generate()
    verify(parse_public(public_text(key)), sign(key, **FACTS), **FACTS)


@pytest.mark.parametrize("changed", [{"nonce": "cd" * 32}, {"certificate": b"another"}, {"uid": "u-2"}])
def test_a_proof_serves_for_one_nonce_one_certificate_and_one_resource(changed):
    key = generate()
    with pytest.raises(RefusedError):
        verify(parse_public(public_text(key)), sign(key, **FACTS), **{**FACTS, **changed})


@pytest.mark.parametrize("proof", ["", "no base64!", base64.b64encode(b"x" * 64).decode(), "é"])
def test_what_is_no_proof(proof):
    with pytest.raises(RefusedError):
        verify(parse_public(public_text(generate())), proof, **FACTS)


def test_another_key():
    with pytest.raises(RefusedError):
        verify(parse_public(public_text(generate())), sign(generate(), **FACTS), **FACTS)


@pytest.mark.parametrize("text", ["", "AAAA", "é" * 44, "A" * 44])
def test_what_is_no_key(text):
    with pytest.raises(ConfigurationError, match="Ed25519"):
        parse_public(text)


def shake(server, client):
    """A handshake between two contexts; the client's socket, or what it raised."""
    ours, theirs = socket.socketpair()

    def serve():
        try:
            with server.wrap_socket(theirs, server_side=True) as tls:
                tls.recv(1)
        except (OSError, ssl.SSLError):
            pass

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(ours) as tls:
            return tls.version(), tls.getpeercert(binary_form=True)
    finally:
        ours.close()
        thread.join(5)
        theirs.close()


def test_the_pinned_certificate_and_no_other():
    node, other = make_node_tls(), make_node_tls()
    assert shake(node.context, pinned_context(node.certificate)) == ("TLSv1.3", node.certificate)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(other.context, pinned_context(node.certificate))


def test_older_tls_is_not_spoken():
    node = make_node_tls()
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, OSError)):
        shake(node.context, old)


def test_a_certificate_that_is_none():
    with pytest.raises(PeerError):
        pinned_context(b"nothing")
