"""`X-Forwarded-Client-Cert`: tells an app who its client proved to be, and removes what clients claim themselves.

The app sees Sidestep's certificate, so the verified client's identity travels in a field, in Envoy's format:

    Hash=<SHA-256 of the certificate, hex>;Subject="<RFC 2253>";URI=<...>;DNS=<...>

URI and DNS stand once per name. A value with a character that could end it (`,` `;` `=` `"` or a blank) is quoted, and
everything that is not printable ASCII is percent-encoded, so that no name in a certificate can pass for another field.

A field that a client sends under this name is removed, under every name that an app could take for it: CGI and WSGI
fold case and write `_` for `-`. Removing works on what was validated before: whole lines of a head, whole lines of a
trailer section, decoded fields.

Source: Envoy's documentation of the header; RFC 2253 section 2 for the subject.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Final

NAME: Final = b"X-Forwarded-Client-Cert"
LOWER: Final = NAME.lower()
"""The name as HTTP/2 writes it."""

_SHORT: Final = {
    "commonName": "CN",
    "countryName": "C",
    "domainComponent": "DC",
    "localityName": "L",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "stateOrProvinceName": "ST",
    "streetAddress": "STREET",
    "userId": "UID",
}
"""OpenSSL's long names (as `ssl` shows them) of the attributes of RFC 2253 section 2.3; others keep theirs."""

_SPECIAL: Final = re.compile(r'([,+"\\<>;])')
_DELIMITER: Final = re.compile(r'[,;="\s]')
_SPELLINGS: Final = re.compile(rb"^x[-_]forwarded[-_]client[-_]cert:", re.IGNORECASE)
_LENGTH: Final = len(NAME)
_NAMING: Final = frozenset(("URI", "DNS", "email"))


def is_forwarded(name: bytes) -> bool:
    """Whether an app could take a field of this name for the one that tells the client's identity."""
    return len(name) == _LENGTH and name.lower().replace(b"_", b"-") == LOWER


def describe(certificate: Mapping[str, object], der: bytes) -> bytes:
    """The field's value for a verified certificate, as `ssl.SSLSocket.getpeercert()` shows it, and its DER bytes."""
    parts = [f"Hash={hashlib.sha256(der).hexdigest()}", f"Subject={_quoted(_subject(certificate))}"]
    names = _alternative_names(certificate)
    for wanted in ("URI", "DNS"):
        parts += [f"{wanted}={_plain(name)}" for kind, name in names if kind == wanted]
    return ";".join(parts).encode("ascii")


def names_of(certificate: Mapping[str, object]) -> tuple[str, ...]:
    """The names in a verified certificate that rules are compared with: its subject, then URI, DNS and e-mail names."""
    names = _alternative_names(certificate)
    subject = _subject(certificate)
    return (*((subject,) if subject else ()), *(name for kind, name in names if kind in _NAMING))


def listed_name(certificate: Mapping[str, object], field: str) -> str:
    """The "subject" or "issuer" of a certificate in the order in which it lists its parts: `C=DE, O=Shop, CN=a`."""
    names = certificate.get(field, ())
    parts = [each for one in names for each in one] if isinstance(names, tuple) else []
    return ", ".join(f"{_SHORT.get(kind, kind)}={value}" for kind, value in parts)


def _alternative_names(certificate: Mapping[str, object]) -> list[tuple[str, str]]:
    entries = certificate.get("subjectAltName", ())
    return [(str(entry[0]), str(entry[1])) for entry in entries] if isinstance(entries, tuple) else []


def _subject(certificate: Mapping[str, object]) -> str:
    """RFC 2253: the most specific name first."""
    names = certificate.get("subject", ())
    relative = reversed(names) if isinstance(names, tuple) else ()
    return ",".join("+".join(f"{_SHORT.get(kind, kind)}={_escaped(value)}" for kind, value in one) for one in relative)


def _escaped(value: str) -> str:
    """RFC 2253 section 2.4."""
    value = _SPECIAL.sub(r"\\\1", value)
    if value[:1] in ("#", " "):
        value = "\\" + value
    if value[-1:] == " " and value[-2:] != "\\ ":
        value = value[:-1] + "\\ "
    return value


def _plain(value: str) -> str:
    return _quoted(value) if _DELIMITER.search(value) else _printable(value)


def _quoted(value: str) -> str:
    return '"' + _printable(value).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _printable(value: str) -> str:
    return "".join(
        character
        if " " <= character <= "~"
        else "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "replace"))
        for character in value
    )


def rewrite_head(head: bytes, value: bytes | None) -> bytes:
    """A valid HTTP/1 request head without the client's field and, unless `value` is None, with ours at its end."""
    lines = [line for line in head[:-2].split(b"\r\n")[:-1] if _SPELLINGS.match(line) is None]
    if value is not None:
        lines.append(NAME + b": " + value)
    return b"\r\n".join(lines) + b"\r\n\r\n"


def strip_trailer(lines: bytes) -> bytes:
    """Whole trailer lines without the client's field; the empty line at the end of the section stays."""
    return b"".join(line for line in lines.splitlines(keepends=True) if _SPELLINGS.match(line) is None)


def rewrite_fields(fields: Iterable[tuple[bytes, bytes]], value: bytes | None) -> tuple[tuple[bytes, bytes], ...]:
    """Decoded fields of a head (or, with None, of trailers) in the same way."""
    kept = [field for field in fields if not is_forwarded(field[0])]
    if value is not None:
        kept.append((LOWER, value))
    return tuple(kept)
