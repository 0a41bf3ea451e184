"""Brings what one proxy process has acknowledged to what is desired of its pod.

The same code serves a change of the configuration and the replay to a new process, for which nothing is acknowledged
yet. The order is fixed: credentials, then the configuration that names them, then the table of destinations and
listeners, so that the proxy accepts no connection before it can serve it.

A credential that cannot be read, or that the proxy cannot load, does not stop the service of a port: the port is
configured without credentials, and the proxy carries its TLS end to end. Nor does one of a policy about connections
that the pod makes: the policy opens none then.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from sidestep.aio.time_limit import time_limit
from sidestep.model.errors import SidestepError
from sidestep.proxy.control.messages import (
    OUTBOUND,
    OUTBOUND_TRANSPORT,
    Configure,
    Credential,
    Listen,
    Message,
    ShareTable,
    Unlisten,
    UseNetwork,
)
from sidestep.snapshots.egress import EgressSnapshot
from sidestep.snapshots.ports import PortSnapshot


class CredentialSource(msgspec.Struct, frozen=True):
    """Where a credential is read from.

    `read` returns a sealed memfd with PEM, which the caller closes: key and chain of an identity, CA certificates of a
    trust. It raises SidestepError. `about` names the annotation that the credential comes from, for people.
    """

    read: Callable[[], Awaitable[int]]
    about: str = ""


PortKey = tuple[int, str]
"""Port number and transport ("tcp", "udp")."""


class ProxyError(SidestepError):
    """The pod proxy answered that it could not do what it was told."""

    def __init__(self, doing: str, reason: str) -> None:
        self.doing = doing
        self.reason = reason
        super().__init__(f"the pod proxy could not {doing}: {reason}")


class Receiver(Protocol):
    """The proxy process that is told."""

    async def tell(self, message: Message, fd: int | None = None, *, doing: str) -> None:
        """Send a message and wait until it has been carried out. Raises ProxyError when it could not."""


class DestinationTable(msgspec.Struct, frozen=True, eq=False):
    """Where connections that the pod makes were meant to go (`model.egress_table`). Its owner keeps `fd` open."""

    fd: int
    network: str
    entries: int


@dataclass(slots=True)
class Desired:
    """What the reconciler wants. The listeners are the daemon's own sockets."""

    credentials: Mapping[str, CredentialSource] = field(default_factory=dict)
    configuration: Configure | None = None
    listeners: dict[PortKey, socket.socket] = field(default_factory=dict)
    table: DestinationTable | None = None

    def before_listening(self) -> Desired:
        """What a process has to know before it accepts its first connection."""
        return Desired(self.credentials, self.configuration)

    def of_worker(self, number: int, *, leaving: bool) -> Desired:
        """What one of the proxy's workers is told: worker 0 everything. Others accept connections of TCP ports alone,
        because datagrams of one flow must meet one process, and none when they are leaving."""
        if not number:
            return self
        listeners = {key: sock for key, sock in self.listeners.items() if key[1] == "tcp" and not leaving}
        return Desired(self.credentials, self.configuration, listeners)

    def clear(self) -> None:
        """Want nothing."""
        self.credentials, self.configuration, self.table = {}, None, None
        self.listeners.clear()


@dataclass(slots=True)
class Acknowledged:
    """What one process has carried out; `failures` says, by name, why credentials could not be used."""

    credentials: set[str] = field(default_factory=set)
    failures: dict[str, str] = field(default_factory=dict)
    configuration: Configure | None = None
    listeners: dict[PortKey, socket.socket] = field(default_factory=dict)
    table: DestinationTable | None = None
    network: UseNetwork | None = None
    """What it was told with the last connection that it was asked for."""


async def tell_difference(proxy: Receiver, desired: Desired, told: Acknowledged, *, source_deadline: float) -> None:
    """Bring `told` to `desired`. Raises what `proxy.tell` raises; what was acknowledged until then stays told.

    `source_deadline` is seconds for one credential source.
    """
    wanted = desired.configuration
    if wanted is not None and wanted is not told.configuration:
        failures: dict[str, str] = {}
        for name, kind in _credentials(wanted.ports, wanted.egress).items():
            if name not in told.credentials:
                source = desired.credentials.get(name)
                problem = await _tell_credential(proxy, Credential(0, name, kind), source, source_deadline)
                if problem:
                    failures[name] = problem
                else:
                    told.credentials.add(name)
        failed = failures.keys()
        ports = tuple(
            port if failed.isdisjoint(port.credentials) else port.without_credentials() for port in wanted.ports
        )
        egress = tuple(
            each if failed.isdisjoint(each.credentials) else each.without_credentials() for each in wanted.egress
        )
        await proxy.tell(msgspec.structs.replace(wanted, ports=ports, egress=egress), doing="apply its configuration")
        told.credentials &= _credentials(ports, egress).keys()
        told.failures = failures
        told.configuration = wanted
    wanted_listeners = _open(desired.listeners)
    for key in [key for key, sock in told.listeners.items() if wanted_listeners.get(key) is not sock]:
        await proxy.tell(Unlisten(0, *key), doing=f"stop listening for port {key[0]}")
        del told.listeners[key]
    table = _open_table(desired)
    if table is not None and table is not told.table:
        message = ShareTable(0, table.network, table.entries)
        await proxy.tell(message, table.fd, doing="take the table of destinations")
        told.table = table
    for key, sock in list(desired.listeners.items()):
        if key not in told.listeners and sock.fileno() >= 0:
            await proxy.tell(Listen(0, *key), sock.fileno(), doing=f"listen for port {key[0]}")
            told.listeners[key] = sock


def is_told(desired: Desired, told: Acknowledged) -> bool:
    """Whether `tell_difference` would find nothing to tell."""
    is_configured = desired.configuration is None or desired.configuration is told.configuration
    table = _open_table(desired)
    has_table = table is None or table is told.table
    return is_configured and has_table and told.listeners == _open(desired.listeners)


def _open(listeners: Mapping[PortKey, socket.socket]) -> dict[PortKey, socket.socket]:
    """Without those that their owner has closed since a copy of what was desired was made."""
    return {key: sock for key, sock in listeners.items() if sock.fileno() >= 0}


def _open_table(desired: Desired) -> DestinationTable | None:
    """The table of destinations, which its owner closes with the listener: its number may be another file's since."""
    is_open = (OUTBOUND, OUTBOUND_TRANSPORT) in _open(desired.listeners)
    return desired.table if is_open else None


async def _tell_credential(
    proxy: Receiver, credential: Credential, source: CredentialSource | None, source_deadline: float
) -> str:
    """Send one credential; returns why it cannot be used ("" if it can)."""
    if source is None:
        return "it is not known"
    try:
        async with time_limit(source_deadline):
            fd = await source.read()
    except TimeoutError:
        return _named(source, f"it could not be read within {source_deadline:g} s")
    except SidestepError as error:
        return _named(source, str(error))
    try:
        await proxy.tell(credential, fd, doing="load a credential")
    except ProxyError as error:
        return _named(source, error.reason)
    finally:
        os.close(fd)
    return ""


def _named(source: CredentialSource, reason: str) -> str:
    return f"{source.about}: {reason}" if source.about else reason


def _credentials(ports: tuple[PortSnapshot, ...], egress: tuple[EgressSnapshot, ...]) -> dict[str, str]:
    """The credentials of all ports, and of policies about connections of the pod, with their kinds."""
    all_of_them = [*(each.credentials for each in ports), *(each.credentials for each in egress)]
    return {name: kind for each in all_of_them for name, kind in each.items()}
