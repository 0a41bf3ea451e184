"""Private certificate authorities and leaf certificates, RSA and ECDSA, written the way a pod mounts them."""

from __future__ import annotations

import base64
import datetime as dt
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def new_key(kind: str) -> PrivateKey:
    """A fresh key: "ecdsa" (P-256) or "rsa" (2048 bits)."""
    if kind == "rsa":
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return ec.generate_private_key(ec.SECP256R1())


def pem_of(key: PrivateKey) -> bytes:
    """PKCS #8 PEM of a private key."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@dataclass(frozen=True)
class Certificate:
    """A leaf certificate with its key and the authority's certificate, all PEM."""

    chain: bytes
    key: bytes
    ca: bytes
    serial: int

    def write(self, folder: Path) -> Path:
        """Write `tls.crt`, `tls.key` and `ca.crt` into a folder, which is made; returns it."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tls.crt").write_bytes(self.chain)
        (folder / "tls.key").write_bytes(self.key)
        (folder / "ca.crt").write_bytes(self.ca)
        return folder

    def secret(self) -> dict[str, str]:
        """The `data` of a kubernetes.io/tls Secret."""
        named = {"tls.crt": self.chain, "tls.key": self.key, "ca.crt": self.ca}
        return {name: base64.b64encode(pem).decode() for name, pem in named.items()}


_SIGNS = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)
"""What a CA's key is for: Python 3.13 verifies it, by X509_V_FLAG_X509_STRICT."""


class Authority:
    """A certificate authority of one's own."""

    def __init__(
        self,
        name: str = "Private CA",
        *,
        kind: str = "ecdsa",
        permitted: Iterable[str] = (),
        lasts: float = 7 * 86400.0,
    ) -> None:
        """`permitted` are DNS names: the CA may sign for them and for names below them only. `lasts`: seconds."""
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = new_key(kind)
        builder = (
            _builder(self.name, self.name, self._key, lasts=lasts)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_SIGNS, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
        )
        subtrees = [x509.DNSName(each) for each in permitted]
        if subtrees:
            builder = builder.add_extension(x509.NameConstraints(subtrees, None), critical=True)
        self._certificate = builder.sign(self._key, hashes.SHA256())
        self.pem = self._certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def pair(self) -> bytes:
        """Its key and its certificate, as PEM."""
        return pem_of(self._key) + self.pem

    def issue(
        self,
        *names: str,
        kind: str = "ecdsa",
        client: bool = False,
        expired: bool = False,
        lasts: float = 7 * 86400.0,
        ips: Iterable[str] = (),
        common_name: str = "",
        alternatives_der: bytes = b"",
    ) -> Certificate:
        """A leaf for DNS names and addresses; `client` adds the client-authentication usage. `lasts`: seconds.

        Its subject is the first name, or `common_name`; without names and addresses it has no alternative names.
        `alternatives_der` stands in their place as it is, however malformed.
        """
        key = new_key(kind)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name or names[0])])
        alternatives: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
        alternatives += [x509.IPAddress(ipaddress.ip_address(ip)) for ip in ips]
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, *([ExtendedKeyUsageOID.CLIENT_AUTH] if client else [])]
        builder = _builder(subject, self.name, key, lasts=-86400.0 if expired else lasts)
        if alternatives_der:
            raw = x509.UnrecognizedExtension(x509.SubjectAlternativeName.oid, alternatives_der)
            builder = builder.add_extension(raw, critical=False)
        elif alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        certificate = (
            builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return Certificate(
            chain=certificate.public_bytes(serialization.Encoding.PEM),
            key=pem_of(key),
            ca=self.pem,
            serial=certificate.serial_number,
        )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: PrivateKey, *, lasts: float = 7 * 86400.0
) -> x509.CertificateBuilder:
    end = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=lasts)
    start = end - dt.timedelta(days=8)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
    )
