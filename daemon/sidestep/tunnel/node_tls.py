"""TLS of the tunnel in a cluster: TLS 1.3 with a self-signed certificate of the node, pinned by the CLI.

There is no certificate authority. The node writes its certificate into the status of each resource that it serves, with
its own RBAC permissions; the CLI accepts exactly that certificate. The key is generated at each start and exists in
memory only.
"""

from __future__ import annotations

import datetime as dt
import os
import ssl

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from sidestep.model.errors import PeerError

NAME = "sidestep-node"
LIFETIME = dt.timedelta(days=3650)
"""Longer than any daemon runs; a pinned certificate needs no expiry."""
LEEWAY = dt.timedelta(days=1)
"""Tolerance for clocks of laptops that are slow."""


class NodeTls(msgspec.Struct, frozen=True):
    """`certificate` is DER; `context` serves it."""

    certificate: bytes
    context: ssl.SSLContext


def make_node_tls() -> NodeTls:
    """Generate a key and a certificate."""
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
    """Return a client context that accepts only this certificate (DER). Raises PeerError when it cannot be parsed."""
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
