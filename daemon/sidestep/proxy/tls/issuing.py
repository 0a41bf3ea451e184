"""Issues certificates for servers, in the name of a policy's CA: what the app is shown when its TLS is opened.

    Issuer        a CA's certificate and key, from the PEM of a credential; says for which names it can be used
    IssuedLeaves  the contexts that answer clients, by name and protocol, until their certificate is nearly over

A leaf is for one DNS name, lasts LIFETIME, and never longer than the CA's certificate. It is ECDSA on P-256, whatever
the CA's key is. All leaves of a process share one key, which is made here and goes with the process: a leaf says which
name was asked for, and whoever holds the CA's key could make any.

The CA's key is in this process only, as the key of a port's certificate is (docs/design.md, "Keys"). `ssl` takes
certificates from files alone, and the sandbox has none: OpenSSL reads leaf and key from two pipes that hold them.

Invariants
  * No leaf is made for a name that the CA's own constraints exclude (RFC 5280 section 4.2.1.10): clients would refuse
    it, and the connection can still be passed through.
  * A leaf is made after the server was verified under its name, never before (`egress.opened_setup`).
"""

from __future__ import annotations

import datetime as dt
import os
import re
import ssl
from collections import OrderedDict
from typing import Final

import msgspec
from cryptography import x509
from cryptography.exceptions import InternalError, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LIFETIME: Final = dt.timedelta(hours=24)
"""How long a leaf is valid from when it is made."""
EARLIER: Final = dt.timedelta(hours=1)
"""How long before that its validity begins: clocks of clients differ."""
RENEWAL: Final = dt.timedelta(hours=1)
"""Time left at which a leaf is made anew."""
MAX_LEAVES: Final = 256
"""Contexts that are kept, each some 30 KiB: one for a name and a protocol."""
MAX_CHAIN: Final = 32 * 1024
"""Bytes of the CA's certificates as PEM. With a leaf they fit into a pipe."""
_CERTIFICATE: Final = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n?", re.DOTALL)
_UNREADABLE: Final = (ValueError, TypeError, InternalError, UnsupportedAlgorithm, x509.InvalidVersion)

_CaKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey


class Leaf(msgspec.Struct, frozen=True):
    """A certificate with its chain, as PEM, and when it ends."""

    chain: bytes
    not_after: dt.datetime


class Issuer:
    """A CA. Raises ValueError, which says why, for PEM of which none can be made."""

    def __init__(self, pem: bytes) -> None:
        chain = b"".join(_CERTIFICATE.findall(pem))
        if len(chain) > MAX_CHAIN:
            raise ValueError(f"its certificates are larger than {MAX_CHAIN} bytes")
        try:
            certificate = x509.load_pem_x509_certificate(chain)
            key = serialization.load_pem_private_key(pem[: pem.index(b"-----BEGIN CERTIFICATE")], None)
            self._permitted, self._excluded = _constraints(certificate)
            _check(certificate)
        except _UNREADABLE as error:
            raise ValueError(str(error) or "it cannot be read") from error
        if not isinstance(key, _CaKey):
            raise ValueError("its key is none that signs certificates")  # noqa: TRY004 - of the text, not of a caller
        self._certificate = certificate
        self._key = key
        self._chain = chain
        self._leaf_key = ec.generate_private_key(ec.SECP256R1())
        self.leaf_key = self._leaf_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        """The key of all leaves, as PEM."""

    def hindrance(self, name: str, now: dt.datetime) -> str:
        """Why no leaf can be made for a name, in a word; empty if one can."""
        if now + RENEWAL > self._certificate.not_valid_after_utc or now < self._certificate.not_valid_before_utc:
            return "issuer-expired"
        name = _plain(name)
        allowed = not self._permitted or any(_is_below(name, each) for each in self._permitted)
        if not allowed or any(_is_below(name, each) for each in self._excluded):
            return "issuer-constrained"
        return ""

    def leaf(self, name: str, now: dt.datetime) -> Leaf:
        """Make a certificate for a name that `hindrance` has nothing against."""
        name = _plain(name)
        public, authority = self._leaf_key.public_key(), self._certificate
        end = min(now + LIFETIME, authority.not_valid_after_utc)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])]))
            .issuer_name(authority.subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(max(now - EARLIER, authority.not_valid_before_utc))
            .not_valid_after(end)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_USAGE, critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(_key_identifier(authority), critical=False)
        )
        made = builder.sign(self._key, _hash(self._key))
        return Leaf(made.public_bytes(serialization.Encoding.PEM) + self._chain, end)


class IssuedLeaves:
    """The contexts of one issuer, the least recently used of which goes first."""

    def __init__(self, issuer: Issuer) -> None:
        self.issuer = issuer
        self._contexts: OrderedDict[tuple[str, str | None], tuple[ssl.SSLContext, dt.datetime]] = OrderedDict()
        self._leaves: OrderedDict[str, Leaf] = OrderedDict()

    def context(self, name: str, alpn: str | None) -> ssl.SSLContext:
        """Return the server context that shows a certificate for this name. Raises OSError."""
        now = dt.datetime.now(dt.UTC)
        key = (_plain(name), alpn)
        found = self._contexts.get(key)
        if found is not None and now + RENEWAL < found[1]:
            self._contexts.move_to_end(key)
            return found[0]
        leaf = self._leaf(key[0], now)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
        load(context, leaf.chain, self.issuer.leaf_key)
        if alpn is not None:
            context.set_alpn_protocols([alpn])
        self._contexts[key] = context, leaf.not_after
        if len(self._contexts) > MAX_LEAVES:
            self._contexts.popitem(last=False)
        return context

    def _leaf(self, name: str, now: dt.datetime) -> Leaf:
        leaf = self._leaves.get(name)
        if leaf is None or now + RENEWAL >= leaf.not_after:
            leaf = self._leaves[name] = self.issuer.leaf(name, now)
            if len(self._leaves) > MAX_LEAVES:
                self._leaves.popitem(last=False)
        return leaf


def load(context: ssl.SSLContext, chain: bytes, key: bytes) -> None:
    """Give a context a certificate with its key, where there are no files. Raises OSError."""
    fds: list[int] = []
    try:
        for text in (chain, key):
            reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            fds.append(reader)
            try:
                if os.write(writer, text) < len(text):
                    raise OSError("a certificate that does not fit into a pipe")
            finally:
                os.close(writer)
        context.load_cert_chain(f"/proc/self/fd/{fds[0]}", f"/proc/self/fd/{fds[1]}")
    finally:
        for fd in fds:
            os.close(fd)


def warm_up() -> None:
    """Make and drop a CA and a leaf: `cryptography` imports some of itself when it is first used."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = dt.datetime.now(dt.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "warm-up")])
    authority = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - EARLIER)
        .not_valid_after(now + 2 * LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ) + authority.public_bytes(serialization.Encoding.PEM)
    IssuedLeaves(Issuer(pem)).context("warm-up.test", None)


_USAGE: Final = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)


def _check(certificate: x509.Certificate) -> None:
    """Raise ValueError for a certificate that signs no others."""
    try:
        is_ca = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        is_ca = False
    if not is_ca:
        raise ValueError("its certificate is not that of a CA (basicConstraints)")
    try:
        signs = certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    except x509.ExtensionNotFound:
        signs = True
    if not signs:
        raise ValueError("its certificate may not sign others (keyUsage)")


def _constraints(certificate: x509.Certificate) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The DNS names that a CA may and may not sign for; empty where it does not say."""
    try:
        stated = certificate.extensions.get_extension_for_class(x509.NameConstraints).value
    except x509.ExtensionNotFound:
        return (), ()
    return _dns_names(stated.permitted_subtrees), _dns_names(stated.excluded_subtrees)


def _plain(name: str) -> str:
    """A name as certificates have it: in lower case, without the dot that may end it."""
    return name.lower().rstrip(".")


def _dns_names(subtrees: list[x509.GeneralName] | None) -> tuple[str, ...]:
    return tuple(each.value.lower() for each in subtrees or () if isinstance(each, x509.DNSName))


def _is_below(name: str, tree: str) -> bool:
    """Whether a DNS name is in a subtree: it, or any name below it. One that begins with a dot excludes itself."""
    if tree.startswith("."):
        return name.endswith(tree)
    return not tree or name == tree or name.endswith(f".{tree}")


def _key_identifier(authority: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    try:
        own = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        public = authority.public_key()
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(public)  # type: ignore[arg-type] # of a CA's key
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def _hash(key: _CaKey) -> hashes.SHA256 | hashes.SHA384 | None:
    if isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey):
        return None
    is_large = isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.key_size > 256
    return hashes.SHA384() if is_large else hashes.SHA256()
