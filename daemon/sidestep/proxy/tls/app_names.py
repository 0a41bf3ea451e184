"""Whether an app's certificate is for a name, where OpenSSL is not asked.

OpenSSL compares names during the handshake, as clients do, but only the one that is sent as SNI. It is not asked where
nothing is sent (the client dials an address), nor for two ways to write a name that it takes literally while clients
do not: with a trailing dot, and with an underscore beside a wildcard. There the certificate is looked at afterwards.
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
