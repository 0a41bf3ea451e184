"""TLS of the tunnel in a cluster: 1.3, a certificate the node makes for itself, pinned by the CLI.

There is no authority to ask: the node writes its certificate into the status of each resource that it serves, under its
own RBAC, and the CLI accepts that certificate and no other. The key exists in memory only and changes with every start.
"""

from __future__ import annotations

import datetime as dt
import os
import ssl
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from sidestep.model.errors import PeerError

NAME = "sidestep-node"
LIFETIME = dt.timedelta(days=3650)
"""Longer than any daemon runs: what is pinned needs no expiry."""
LEEWAY = dt.timedelta(days=1)
"""For laptops whose clocks are behind."""


@dataclass(frozen=True, slots=True)
class NodeTls:
    """`certificate` is DER; `context` serves with it."""

    certificate: bytes
    context: ssl.SSLContext


def make_node_tls() -> NodeTls:
    """A fresh key and certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - LEEWAY)
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    pem = certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    fd = os.memfd_create("tunnel", os.MFD_CLOEXEC)
    try:
        os.write(fd, pem)
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
    return NodeTls(certificate.public_bytes(serialization.Encoding.DER), context)


def pinned_context(certificate: bytes) -> ssl.SSLContext:
    """A client context that accepts this certificate (DER) and no other. Raises PeerError when it is none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(cadata=certificate)
    except (ssl.SSLError, ValueError) as error:
        raise PeerError("the node's certificate in the resource's status cannot be read") from error
    return context
