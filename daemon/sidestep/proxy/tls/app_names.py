"""Whether an app's certificate is for a name, in the cases that OpenSSL does not check.

OpenSSL compares the name that is sent as SNI with the certificate during the handshake, as clients do. It does not
compare when no SNI is sent (the client dials an address), and it takes two spellings literally that clients do not: a
trailing dot, and an underscore beside a wildcard. In these cases the certificate is checked after the handshake.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import ip_address

_PLAIN = re.compile(r"[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*")


def openssl_compares(name: str | None) -> bool:
    """Whether OpenSSL compares this server name as clients do."""
    return name is not None and _PLAIN.fullmatch(name) is not None


def names_match(certificate: Mapping[str, object], name: str) -> bool:
    """Whether a certificate (`SSLSocket.getpeercert()`) is for a host name or an address.

    A wildcard stands for the first label (RFC 6125 section 6.4.3); the subject's common name counts where the
    certificate has no DNS name (section 6.4.4), as for curl and OpenSSL.
    """
    alternatives = certificate.get("subjectAltName", ())
    entries = [(str(kind), str(value)) for kind, value in alternatives] if isinstance(alternatives, tuple) else []
    address = _address(name)
    if address is not None:
        return any(kind == "IP Address" and _address(value) == address for kind, value in entries)
    patterns = [value for kind, value in entries if kind == "DNS"]
    return any(_matches(pattern, name) for pattern in patterns or _common_names(certificate))


def _matches(pattern: str, name: str) -> bool:
    pattern, name = pattern.lower().rstrip("."), name.lower().rstrip(".")
    if pattern == name:
        return True
    head, _, tail = name.partition(".")
    return pattern.startswith("*.") and bool(head) and tail == pattern[2:] and "." in tail


def _common_names(certificate: Mapping[str, object]) -> list[str]:
    subject = certificate.get("subject", ())
    pairs = [pair for part in subject for pair in part] if isinstance(subject, tuple) else []
    return [str(value) for key, value in pairs if key == "commonName"]


def _address(text: str) -> object:
    try:
        return ip_address(text)
    except ValueError:
        return None
