"""Proof of a session's identity without sending a secret (docs/design.md, "Sessions").

The CLI generates an Ed25519 key per intercept and writes the public key into the resource, which RBAC protects. In the
hello it signs the daemon's nonce, the hash of the certificate that it sees in TLS, and the UID of the resource. The
signature is therefore valid only for this node, this connection and this intercept; a man in the middle has another
certificate.
"""

from __future__ import annotations

import base64
import binascii
import hashlib

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from sidestep.model.errors import ConfigurationError, RefusedError

_CONTEXT = b"sidestep hello v1"


def generate() -> Ed25519PrivateKey:
    """Generate the key of one intercept. It never leaves this process."""
    return Ed25519PrivateKey.generate()


def public_text(key: Ed25519PrivateKey) -> str:
    """Encode the public key for `spec.session.publicKey`: the 32 bytes of RFC 8032 in base64."""
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()


def parse_public(text: str) -> bytes:
    """Decode a public key to its 32 bytes. Raises ConfigurationError."""
    try:
        raw = base64.b64decode(text, validate=True)
        Ed25519PublicKey.from_public_bytes(raw)
    except (binascii.Error, ValueError) as error:
        raise ConfigurationError(
            "must be an Ed25519 public key: 32 bytes in base64", subject="spec.session.publicKey"
        ) from error
    return raw


def sign(key: Ed25519PrivateKey, *, nonce: str, certificate: bytes, uid: str) -> str:
    """Sign a hello; returns the proof. `certificate` is the node's, DER."""
    return base64.b64encode(key.sign(_message(nonce, certificate, uid))).decode()


def verify(public: bytes, proof: str, *, nonce: str, certificate: bytes, uid: str) -> None:
    """Raise RefusedError unless the proof was made with this key for this nonce, certificate and UID."""
    try:
        signature = base64.b64decode(proof, validate=True)
        Ed25519PublicKey.from_public_bytes(public).verify(signature, _message(nonce, certificate, uid))
    except (binascii.Error, ValueError, InvalidSignature) as error:
        raise RefusedError("the session does not hold the key of the intercept it claims") from error


def _message(nonce: str, certificate: bytes, uid: str) -> bytes:
    """Concatenate the parts, each with its length, so that no two triples give the same message."""
    parts = (_CONTEXT, nonce.encode(), hashlib.sha256(certificate).digest(), uid.encode())
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)
