"""What a container's /etc/resolv.conf (resolv.conf(5)) and /etc/hosts (hosts(5)) say. Pure; nothing is trusted.

As the C library does, what cannot be read is left out, line by line, and numbers are brought into their bounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

import msgspec

Address = IPv4Address | IPv6Address

MAX_SERVERS: Final = 3
"""MAXNS of resolv.h."""
MAX_SEARCH: Final = 32
"""Search domains; as many as Kubernetes permits."""
MAX_NDOTS: Final = 15
MAX_TIMEOUT, MAX_ATTEMPTS = 10, 5
"""Seconds; the C library permits 30, which is more than a connection may take here."""
MAX_HOSTS: Final = 4096
"""Lines of hosts that are read."""
MAX_ADDRESSES: Final = 16
"""Addresses of one name."""


class ResolverSettings(msgspec.Struct, frozen=True):
    """How names are looked up. `timeout` is in seconds, of one question to one server."""

    servers: tuple[Address, ...] = (IPv4Address("127.0.0.1"),)
    search: tuple[str, ...] = ()
    ndots: int = 1
    timeout: int = 5
    attempts: int = 2
    over_tcp: bool = False


def parse_resolv_conf(text: str) -> ResolverSettings:
    """Return what a resolv.conf says. Of several `search` or `domain` lines the last one counts."""
    servers: list[Address] = []
    search: tuple[str, ...] = ()
    options: dict[str, str] = {}
    for line in text.splitlines():
        keyword, *words = line.split("#")[0].split(";")[0].split() or [""]
        match keyword:
            case "nameserver" if words and (address := address_of(words[0])) is not None:
                servers.append(address)
            case "search" | "domain":
                search = tuple(each.strip(".") for each in words[:MAX_SEARCH])
            case "options":
                for word in words:
                    name, _, value = word.partition(":")
                    options[name] = value
            case _:
                pass
    return ResolverSettings(
        servers=tuple(servers[:MAX_SERVERS]) or ResolverSettings().servers,
        search=tuple(filter(None, search)),
        ndots=_number(options.get("ndots"), 1, 0, MAX_NDOTS),
        timeout=_number(options.get("timeout"), 5, 1, MAX_TIMEOUT),
        attempts=_number(options.get("attempts"), 2, 1, MAX_ATTEMPTS),
        over_tcp="use-vc" in options,
    )


def parse_hosts(text: str) -> Mapping[str, tuple[Address, ...]]:
    """Return the addresses of each name, in lower case."""
    found: dict[str, tuple[Address, ...]] = {}
    for line in text.splitlines()[:MAX_HOSTS]:
        first, *names = line.split("#")[0].split() or [""]
        address = address_of(first)
        if address is None:
            continue
        for name in names:
            known = found.get(name.lower(), ())
            if address not in known and len(known) < MAX_ADDRESSES:
                found[name.lower()] = (*known, address)
    return found


def address_of(text: str) -> Address | None:
    """Return the address that a text is; None where it is none, such as a name. `127.1` and `0x7f000001` are none."""
    try:
        return ip_address(text)
    except ValueError:
        return None


def candidates(name: str, settings: ResolverSettings) -> tuple[str, ...]:
    """Return the names to look up for a name, in order, without a final dot (resolv.conf(5), `ndots`)."""
    if name.endswith("."):
        return (name[:-1],)
    searched = [f"{name}.{domain}" for domain in settings.search]
    if name.count(".") >= settings.ndots:
        return (name, *searched)
    return (*searched, name)


def _number(value: str | None, default: int, least: int, most: int) -> int:
    if value is None or not (value.isascii() and value.isdigit()):
        return default
    return min(most, max(least, int(value[:6])))
