"""Judging certificates before a pod proxy is asked to use them: PEM bytes in, public facts out, or one precise reason.

What is kept of an identity (certificate chain and private key) is public: the names, the expiry, a digest of the chain
that names the `Credential`, so that a new certificate is a new name. The key is looked at and forgotten.
An identity is proven the way it will be used, by loading it into an SSLContext from a memfd: OpenSSL refuses some keys
that parse (too small, for instance), and that must be known here, not at the first client.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import enum
import hashlib
import os
import ssl
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InternalError, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import NameOID

from sidestep.aio.packets import sealed_memfd
from sidestep.model.errors import ConfigurationError

MAX_PEM = 1024 * 1024
"""Bytes of one PEM file (design, section 6)."""

MAX_CERTIFICATES = 2048
"""Certificates in one file; a full system store has about 150."""

DIGEST = 24
"""Hexadecimal digits of the digest in a credential's name: 96 bits."""


UNREADABLE = (
    ValueError,
    TypeError,
    InternalError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What the library raises about certificates of strangers; it reads most of a certificate only when asked for it."""


class Part(enum.Enum):
    """Which of the three files is at fault."""

    CHAIN = "certificate"
    KEY = "private key"
    CA = "CA certificate"


class PemError(ConfigurationError):
    """A file that cannot be used; the caller knows its name."""

    def __init__(self, part: Part, reason: str) -> None:
        self.part = part
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Identity:
    """A usable certificate with its key, as public facts.

    `name` is the credential's; `dns_name` is what the app is verified as and may be empty; `serial` is lower-case hex.
    """

    name: str
    dns_name: str
    names: tuple[str, ...]
    not_after: dt.datetime
    serial: str = ""


@dataclass(frozen=True, slots=True)
class Trust:
    """Usable CA certificates. `name` is the credential's; `subject` names the first for people."""

    name: str
    subject: str


@contextlib.contextmanager
def _as_of_today() -> Iterator[None]:
    """What a later version of the library will refuse is, today, for OpenSSL to judge."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@_as_of_today()
def judge_identity(*, chain: bytes, key: bytes, now: dt.datetime) -> Identity:
    """Judge a certificate chain (leaf first) and its private key. `now` is timezone-aware.

    Raises PemError: the caller knows the annotation and the names of the files.
    """
    certificates = _matching(chain=chain, key=key)
    identity, not_before = _identity(certificates)
    if identity.not_after <= now:
        raise PemError(Part.CHAIN, f"the certificate expired on {identity.not_after:%Y-%m-%d %H:%M} UTC")
    if not_before > now:
        raise PemError(Part.CHAIN, f"the certificate is not valid before {not_before:%Y-%m-%d %H:%M} UTC")
    prove(identity_pem(chain=chain, key=key))
    return identity


def _identity(certificates: list[x509.Certificate]) -> tuple[Identity, dt.datetime]:
    """The facts, and from when on they hold."""
    leaf = certificates[0]
    try:
        not_before = leaf.not_valid_before_utc
        identity = Identity(
            name=_identity_name(certificates),
            dns_name=_dns_name(leaf),
            names=_names(leaf),
            not_after=leaf.not_valid_after_utc,
            serial=f"{leaf.serial_number:x}",
        )
    except UNREADABLE as error:
        raise PemError(Part.CHAIN, "the certificate cannot be read: its content is malformed") from error
    return identity, not_before


@_as_of_today()
def identity_name(*, chain: bytes, key: bytes) -> str:
    """The name of the credential, valid today or not. Raises PemError unless the key belongs to the chain."""
    return _identity_name(_matching(chain=chain, key=key))


@_as_of_today()
def judge_trust(pem: bytes) -> Trust:
    """Judge CA certificates. Raises PemError."""
    certificates = _certificates(pem, Part.CA)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=trust_pem(pem).decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise PemError(Part.CA, f"the CA certificate cannot be used: {_reason(error)}") from error
    try:
        subject = certificates[0].subject.rfc4514_string()
    except UNREADABLE as error:
        raise PemError(Part.CA, "the CA certificate cannot be read: its content is malformed") from error
    return Trust(name=f"trust:{_digest(certificates)}", subject=subject)


@_as_of_today()
def names_in(der: bytes) -> tuple[str, ...]:
    """The names in a certificate that a stranger showed; none when it cannot be read."""
    try:
        return _names(x509.load_der_x509_certificate(der)) if der else ()
    except UNREADABLE:
        return ()


def identity_pem(*, chain: bytes, key: bytes) -> bytes:
    """The content of an "identity" credential: key first, then the chain."""
    return key.strip() + b"\n" + chain.strip() + b"\n"


@_as_of_today()
def trust_pem(pem: bytes) -> bytes:
    """The content of a "trust" credential: certificates only, without what people write between them."""
    return b"".join(cert.public_bytes(Encoding.PEM) for cert in _certificates(pem, Part.CA))


def prove(pem: bytes) -> None:
    """Load an identity into a fresh server context through a memfd. Raises PemError."""
    fd = sealed_memfd("sidestep-identity", pem)
    try:
        # The callback keeps OpenSSL from asking a terminal for a passphrase.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(f"/proc/self/fd/{fd}", password=lambda: b"")
    except (ssl.SSLError, OSError, ValueError) as error:
        raise PemError(Part.CHAIN, f"the certificate cannot be used: {_reason(error)}") from error
    finally:
        os.close(fd)


def _matching(*, chain: bytes, key: bytes) -> list[x509.Certificate]:
    certificates = _certificates(chain, Part.CHAIN)
    if _spki(certificates[0].public_key()) != _spki(_private_key(key).public_key()):
        raise PemError(Part.KEY, "the private key does not belong to the certificate")
    return certificates


def _identity_name(certificates: list[x509.Certificate]) -> str:
    return f"identity:{_digest(certificates)}"


def _certificates(pem: bytes, part: Part) -> list[x509.Certificate]:
    if len(pem) > MAX_PEM:
        raise PemError(part, f"the {part.value} is larger than {MAX_PEM} bytes")
    if pem.count(b"-----BEGIN CERTIFICATE-----") > MAX_CERTIFICATES:
        raise PemError(part, f"more than {MAX_CERTIFICATES} certificates in one file")
    try:
        certificates = x509.load_pem_x509_certificates(pem)
        for certificate in certificates:
            certificate.public_key()
    except UNREADABLE as error:
        raise PemError(part, f"the {part.value} is not valid PEM") from error
    if not certificates:
        raise PemError(part, f"the {part.value} file holds no certificate")
    return certificates


def _private_key(pem: bytes) -> PrivateKeyTypes:
    if len(pem) > MAX_PEM:
        raise PemError(Part.KEY, f"the private key is larger than {MAX_PEM} bytes")
    try:
        key = load_pem_private_key(pem, password=None)
        _spki(key.public_key())
    except TypeError as error:
        raise PemError(Part.KEY, "the private key is encrypted; Sidestep cannot ask for its passphrase") from error
    except (ValueError, InternalError, UnsupportedAlgorithm) as error:
        # The library's text may quote what it read; it is not repeated.
        raise PemError(Part.KEY, "the private key is not valid PEM") from error
    return key


def _spki(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _digest(certificates: list[x509.Certificate]) -> str:
    digest = hashlib.sha256()
    for certificate in certificates:
        digest.update(certificate.public_bytes(Encoding.DER))
    return digest.hexdigest()[:DIGEST]


def _names(leaf: x509.Certificate) -> tuple[str, ...]:
    """Names of the subject alternatives, DNS names first; the common name when there are none (RFC 6125, 6.4.4)."""
    try:
        held = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        common = leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return tuple(str(attribute.value) for attribute in common[:1])
    except ValueError:
        return ()
    addresses = tuple(str(address) for address in held.get_values_for_type(x509.IPAddress))
    return tuple(held.get_values_for_type(x509.DNSName)) + addresses


def _dns_name(leaf: x509.Certificate) -> str:
    """The first DNS name that is not a wildcard, else the first: what the app is verified as without an SNI."""
    try:
        held = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return ""
    names = held.get_values_for_type(x509.DNSName)
    return next((name for name in names if not name.startswith("*")), names[0] if names else "")


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    return str(reason).lower().replace("_", " ") if isinstance(reason, str) else type(error).__name__
