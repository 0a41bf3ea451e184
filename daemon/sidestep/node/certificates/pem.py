"""Validates certificates before a pod proxy uses them: PEM text in; public facts and a credential out.

Runs in the one-shot child (`one_shot`), never in the daemon: the content is untrusted, and a crafted key or certificate
can consume all CPU time available to the process.

OpenSSL defines the meaning of a file (`protocols.pem`). A file that nginx loads is accepted, by the same rules:

    certificate    The first certificate is the leaf, plain or with trust settings. Plain certificates after it form the
                   chain. A certificate that occurs twice is sent once. One malformed block invalidates the file.
    key            The first private key. Malformed blocks before it are skipped.
    CA             Every certificate; trust settings are kept. CRLs and keys are skipped. One malformed block, or a
                   certificate that cannot be parsed, invalidates the file.

A credential is canonical PEM text of exactly these parts. An identity is tested by loading it into an SSLContext from a
memfd, as the pod proxy does: OpenSSL then compares key and certificate, and rejects some keys that parse. No arithmetic
is done on a private key here: checking the primes of a crafted key takes 14 s.

An error names the faulty block; the caller adds the name of the file.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import enum
import functools
import hashlib
import os
import re
import ssl
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import msgspec
from cryptography import x509
from cryptography.exceptions import InternalError, UnsupportedAlgorithm
from cryptography.x509.oid import NameOID

from sidestep.aio.packets import sealed_memfd
from sidestep.model.errors import ConfigurationError
from sidestep.protocols.pem import CERTIFICATES, KEYS, TRUSTED, Block, blocks, encode, foreign

MAX_KEY: Final = 128 * 1024
MAX_CHAIN: Final = 512 * 1024
MAX_CA: Final = 1024 * 1024
"""Bytes of the three files. Text and certificates may accompany a key; a key alone has at most 13 KiB."""

MAX_KEY_BLOCKS: Final = 64
MAX_CHAIN_BLOCKS: Final = 128
MAX_CA_BLOCKS: Final = 1024
"""Blocks of the three files. Clients accept chains of 100 KiB; a full system store has about 150 certificates."""

MAX_KEY_DER: Final = 16 * 1024
"""Bytes of one private key. RSA with 16,384 bits, the largest of OpenSSL, has 9.3 KiB."""

MAX_NAMES: Final = 100
"""Names of a certificate that are displayed."""

REMEMBERED_NAMES: Final = 256
"""Certificates of apps whose names are cached; each has at most 16 KiB (`proxy.control.messages.MAX_CERTIFICATE`)."""

_HOST: Final = re.compile(r"(\*\.)?[0-9A-Za-z_-]{1,63}(\.[0-9A-Za-z_-]{1,63})+")
"""A common name that has the form of a host name."""

DIGEST: Final = 24
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
"""Exceptions of the library for malformed certificates. It parses most parts on first access."""


_OTHER_KIND: Final = frozenset({"KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"})
"""OpenSSL's reasons for a key of another type than the certificate's."""


class Part(enum.Enum):
    """Which of the three files is faulty."""

    CHAIN = "certificate"
    KEY = "private key"
    CA = "CA certificate"


class PemError(ConfigurationError):
    """A file that cannot be used; the caller adds its name."""

    def __init__(self, part: Part, reason: str) -> None:
        self.part = part
        super().__init__(reason)


class Identity(msgspec.Struct, frozen=True):
    """Public facts of a usable certificate with its key.

    `name` is the credential's. `dns_name` is the name for verifying the app, and may be empty. `serial` is lower-case
    hex.
    """

    name: str
    dns_name: str
    names: tuple[str, ...]
    not_before: dt.datetime
    not_after: dt.datetime
    serial: str = ""


class Trust(msgspec.Struct, frozen=True):
    """Public facts of usable CA certificates. `name` is the credential's; `subject` is the name of the first."""

    name: str
    subject: str


@dataclass(frozen=True, slots=True)
class IdentityCredential:
    """An identity and the PEM text that a pod proxy loads: key, leaf, chain."""

    identity: Identity
    pem: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class TrustCredential:
    """CA certificates and the PEM text that a pod proxy loads."""

    trust: Trust
    pem: bytes = field(repr=False)


class _Certificate(msgspec.Struct, frozen=True):
    block: Block
    der: bytes
    """The certificate without trust settings."""


def validate_identity(*, chain: bytes, key: bytes) -> IdentityCredential:
    """Validate a certificate chain and its private key; validity dates are not checked. Raises PemError."""
    certificates = _chain(chain)
    private = _private_key(key)
    identity = _identity(certificates)
    text = encode(private.label, private.der) + b"".join(encode("CERTIFICATE", each.der) for each in certificates)
    try:
        prove(text)
    except ssl.SSLError as error:
        raise _unproven(error, certificates, private) from error
    return IdentityCredential(identity, text)


def validate_trust(pem: bytes) -> TrustCredential:
    """Validate CA certificates. Raises PemError."""
    found = _read(pem, Part.CA, CERTIFICATES | {TRUSTED})
    text = b"".join(encode(each.block.label, each.block.der) for each in found)
    fd = sealed_memfd("sidestep-trust", text)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=f"/proc/self/fd/{fd}")
    except (ssl.SSLError, OSError, ValueError) as error:
        raise PemError(Part.CA, f"the CA certificate cannot be used: {_reason(error)}") from error
    finally:
        os.close(fd)
    first = found[0]
    try:
        subject = _parsed(first.der).subject.rfc4514_string()
    except UNREADABLE as error:
        raise _malformed(first, Part.CA) from error
    # Trust settings are part of a trusted certificate's identity.
    digest = _digest(each.block.der for each in found)
    return TrustCredential(Trust(name=f"trust:{digest}", subject=subject[:1000]), text)


@functools.lru_cache(maxsize=REMEMBERED_NAMES)
def names_in(der: bytes) -> tuple[str, ...]:
    """Return the names in a certificate received from an app; empty when it cannot be parsed.

    The daemon calls this whenever ports are listed. Results are cached, because a certificate with thousands of names
    takes several milliseconds.
    """
    try:
        return _names(_parsed(der)) if der else ()
    except UNREADABLE:
        return ()


def prove(pem: bytes) -> None:
    """Load an identity into a new server context through a memfd, as a pod proxy does. Raises ssl.SSLError."""
    fd = sealed_memfd("sidestep-identity", pem)
    try:
        # The callback prevents OpenSSL from asking a terminal for a passphrase.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(f"/proc/self/fd/{fd}", password=lambda: b"")
    finally:
        os.close(fd)


# --- blocks ---------------------------------------------------------------------------------------------------------


def _chain(text: bytes) -> list[_Certificate]:
    """Return the certificates, leaf first. Raises PemError."""
    return _read(text, Part.CHAIN, CERTIFICATES, first=CERTIFICATES | {TRUSTED})


def _read(
    text: bytes, part: Part, labels: frozenset[str], *, first: frozenset[str] | None = None
) -> list[_Certificate]:
    """Return the certificates with these labels, without duplicates. Raises PemError for a malformed block or none at
    all.
    """
    size, count = (MAX_CHAIN, MAX_CHAIN_BLOCKS) if part is Part.CHAIN else (MAX_CA, MAX_CA_BLOCKS)
    found: dict[bytes, _Certificate] = {}
    for block in _blocks(text, part, size=size, count=count):
        if block.problem:
            raise PemError(part, f"{block.name} cannot be read: {block.problem}")
        if block.label not in (labels if found or first is None else first):
            continue
        certificate = _Certificate(block, _first_element(block.der))
        try:
            _parsed(certificate.der)
        except UNREADABLE as error:
            raise _malformed(certificate, part) from error
        found.setdefault(block.der if block.label == TRUSTED and part is Part.CA else certificate.der, certificate)
    if not found:
        raise PemError(part, _nothing(text, part))
    return list(found.values())


def _private_key(text: bytes) -> Block:
    """Return the first private key that can be parsed. Raises PemError."""
    broken = None
    for block in _blocks(text, Part.KEY, size=MAX_KEY, count=MAX_KEY_BLOCKS):
        if block.label not in KEYS:
            continue
        if block.encrypted:
            raise PemError(
                Part.KEY, f"{block.name}: the private key is encrypted; Sidestep cannot ask for its passphrase"
            )
        if block.problem:
            broken = broken or block
            continue
        if len(block.der) > MAX_KEY_DER:
            raise PemError(Part.KEY, f"{block.name}: the private key is larger than {MAX_KEY_DER} bytes")
        return block
    if broken is not None:
        raise PemError(Part.KEY, f"{broken.name} cannot be read: {broken.problem}")
    raise PemError(Part.KEY, _nothing(text, Part.KEY))


def _blocks(text: bytes, part: Part, *, size: int, count: int) -> Iterator[Block]:
    if len(text) > size:
        raise PemError(part, f"is larger than {size} bytes, too large for a {part.value}")
    for block in blocks(text, limit=count):
        if block.number > count:
            raise PemError(part, f"holds more than {count} blocks, too many for a {part.value}")
        yield block


def _nothing(text: bytes, part: Part) -> str:
    strange = foreign(text)
    if strange:
        return f"the {part.value} is not valid PEM: {strange}"
    labels = sorted({block.label for block in blocks(text, limit=MAX_KEY_BLOCKS)})
    if labels:
        return f"holds no {part.value}, only {', '.join(labels[:4])}"
    return f"the {part.value} is not valid PEM: it has no block (-----BEGIN …)"


def _first_element(der: bytes) -> bytes:
    """Return the first DER element. Trust settings follow a trusted certificate; OpenSSL ignores anything after it."""
    if len(der) < 2 or der[1] == 0x80:
        return der
    size, length = 2, der[1]
    if length & 0x80:
        size += length & 0x7F
        length = int.from_bytes(der[2:size], "big") if size <= 6 else len(der)
    return der[: size + length]


# --- certificates ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _as_of_today() -> Iterator[None]:
    """Suppress deprecation warnings for what later versions of the library will reject; OpenSSL decides."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@_as_of_today()
def _parsed(der: bytes) -> x509.Certificate:
    return x509.load_der_x509_certificate(der)


@_as_of_today()
def _identity(certificates: list[_Certificate]) -> Identity:
    leaf = certificates[0]
    try:
        parsed = _parsed(leaf.der)
        return Identity(
            name=f"identity:{_digest(each.der for each in certificates)}",
            dns_name=_dns_name(parsed),
            names=_names(parsed),
            not_before=parsed.not_valid_before_utc,
            not_after=parsed.not_valid_after_utc,
            serial=f"{parsed.serial_number:x}",
        )
    except UNREADABLE as error:
        raise _malformed(leaf, Part.CHAIN) from error


def _malformed(certificate: _Certificate, part: Part) -> PemError:
    return PemError(part, f"{certificate.block.name}: the {part.value} cannot be read, its content is malformed")


def _unproven(error: ssl.SSLError, certificates: list[_Certificate], key: Block) -> PemError:
    """Return the reason why OpenSSL does not load material that could be parsed."""
    leaf = certificates[0].block
    if error.reason == "KEY_VALUES_MISMATCH":
        reason = f"{key.name}: the private key does not belong to the certificate, which is {leaf.name}"
        other = next((each for each in certificates[1:] if _belongs(each, key)), None)
        if other is not None:
            reason += f"; it belongs to {other.block.name}, which has to come first"
        return PemError(Part.KEY, reason)
    if error.reason in _OTHER_KIND:
        reason = f"{key.name}: the private key does not belong to the certificate, which is {leaf.name}"
        return PemError(Part.KEY, reason)
    try:
        # Loading the certificate without a key shows which of the two is at fault.
        prove(encode("CERTIFICATE", certificates[0].der))
    except ssl.SSLError as alone:
        if _reason(alone) == _reason(error) and error.reason not in (None, "PEM_LIB"):
            return PemError(Part.CHAIN, f"{leaf.name}: the certificate cannot be used: {_reason(error)}")
    return PemError(Part.KEY, f"{key.name}: the private key cannot be used: {_reason(error)}")


def _belongs(certificate: _Certificate, key: Block) -> bool:
    try:
        prove(encode(key.label, key.der) + encode("CERTIFICATE", certificate.der))
    except ssl.SSLError:
        return False
    return True


def _digest(ders: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for der in ders:
        digest.update(der)
    return digest.hexdigest()[:DIGEST]


@_as_of_today()
def _names(leaf: x509.Certificate) -> tuple[str, ...]:
    """Return the subject alternative names, DNS names first; the common name when there are none (RFC 6125, 6.4.4)."""
    try:
        alternatives = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        common = leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return tuple(str(attribute.value) for attribute in common[:1])
    except ValueError:
        return ()
    addresses = tuple(str(address) for address in alternatives.get_values_for_type(x509.IPAddress))
    return (tuple(alternatives.get_values_for_type(x509.DNSName)) + addresses)[:MAX_NAMES]


def _dns_name(leaf: x509.Certificate) -> str:
    """Return the name for verifying the app when there is no SNI.

    The first DNS name that is not a wildcard, otherwise the first DNS name, otherwise the first address, otherwise,
    without either, the common name.
    """
    try:
        alternatives = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = alternatives.get_values_for_type(x509.DNSName)
        addresses = [str(address) for address in alternatives.get_values_for_type(x509.IPAddress)]
    except (x509.ExtensionNotFound, ValueError):
        names, addresses = [], []
    common = [str(each.value) for each in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    found = [*(name for name in names if not name.startswith("*")), *names, *addresses]
    return next(iter(found), next((name for name in common if _HOST.fullmatch(name)), ""))


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    return str(reason).lower().replace("_", " ") if isinstance(reason, str) else type(error).__name__
