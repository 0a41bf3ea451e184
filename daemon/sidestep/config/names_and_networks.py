"""Parses names and networks of inspection policies. Each function raises `FieldError` with the path of the field."""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import ip_network
from typing import Final

from sidestep.config.field_error import FieldError
from sidestep.model.egress import Network

_SERVER_NAME: Final = re.compile(
    r"(?=.{1,253}\Z)(\*\.)?[a-z0-9_]([-a-z0-9_]*[a-z0-9_])?(\.[a-z0-9_]([-a-z0-9_]*[a-z0-9_])?)*"
)


def server_names(read: Sequence[str], path: str) -> tuple[str, ...]:
    """Convert DNS names, of which the first label may be `*`, to lower case."""
    found = []
    for index, name in enumerate(read):
        if not _SERVER_NAME.fullmatch(name.lower()):
            raise FieldError(f"{path}[{index}]", f"{name[:64]!r} is no DNS name, nor *. and a DNS name")
        found.append(name.lower())
    return tuple(dict.fromkeys(found))


def networks(read: Sequence[str], path: str) -> tuple[Network, ...]:
    """Convert networks, in CIDR notation, and addresses."""
    return tuple(dict.fromkeys(_network(each, f"{path}[{index}]") for index, each in enumerate(read)))


def _network(text: str, path: str) -> Network:
    try:
        return ip_network(text)
    except ValueError:
        reason = f"{text[:64]!r} is no network: write an address, or like 10.0.0.0/8 with no bits beyond the prefix"
        raise FieldError(path, reason) from None
