"""What an inspection policy says of the connections that pods make to others: which, and how far they are opened.

Values only. `config.egress` parses documents into them, `policy.egress` judges connections by them.
"""

from __future__ import annotations

import enum
from ipaddress import IPv4Network, IPv6Network
from typing import Final

import msgspec

Network = IPv4Network | IPv6Network

HTTPS: Final = 443
"""The port of HTTPS, and of the QUIC that `quic: Block` is about (RFC 9110 section 4.2.2, RFC 9114 section 3.1)."""


class EgressMode(enum.StrEnum):
    """How far a connection to a destination is opened."""

    OBSERVE = "Observe"
    """TLS stays end to end: what is judged is the name, the address and the ClientHello."""
    ORIGINATE = "Originate"
    """Clear HTTP of the app is judged, and leaves the pod in TLS. Its TLS is observed."""
    DECRYPT = "Decrypt"
    """TLS of the app is opened with a certificate of the policy's issuer. Its clear HTTP is observed."""


class Quic(enum.StrEnum):
    """What becomes of UDP to port 443 of a destination, where HTTP/3 would leave unseen."""

    ALLOW = "Allow"
    BLOCK = "Block"


class SecretRef(msgspec.Struct, frozen=True):
    """A Secret with certificates. `namespace` is the policy's own, unless a ClusterInspectionPolicy names one."""

    namespace: str
    name: str


class Destination(msgspec.Struct, frozen=True):
    """Where a connection goes: AND between kinds, one of each. A kind that is empty does not restrict.

    `names` are in lower case, `*.example.com` stands for every name below it; they are compared with the SNI, or with
    the Host of clear HTTP. Without `networks` it is every external address (`policy.egress.is_external`).
    """

    name: str
    mode: EgressMode = EgressMode.OBSERVE
    names: tuple[str, ...] = ()
    networks: tuple[Network, ...] = ()
    ports: tuple[int, ...] = ()


EVERYTHING: tuple[Destination, ...] = (Destination("external"),)
"""The destinations of a policy that names none: whatever is external is observed."""
