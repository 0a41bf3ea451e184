"""Telling a proxy the difference between desired and told."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

import msgspec
import pytest

from sidestep.aio.packets import ChannelClosed, sealed_memfd
from sidestep.model.errors import ConfigurationError
from sidestep.model.inspection import Egress, InspectionPolicy
from sidestep.node.proxies.desired import (
    Acknowledged,
    CredentialSource,
    Desired,
    DestinationTable,
    ProxyError,
    is_told,
    tell_difference,
)
from sidestep.policy.egress_rows import to_egress_snapshot
from sidestep.proxy.control import messages
from sidestep.snapshots.egress import EgressSnapshot
from sidestep.snapshots.ports import PortSnapshot


class Proxy:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.pems: dict[str, bytes] = {}
        self.ports: tuple[PortSnapshot, ...] = ()
        self.egress: tuple[EgressSnapshot, ...] = ()
        self.refuse: set[str] = set()
        self.gone_at: str | None = None

    async def tell(self, message: messages.Message, fd: int | None = None, *, doing: str) -> None:
        name = getattr(message, "name", "") or str(getattr(message, "port", "")) or ""
        text = f"{type(message).__name__} {name}".strip()
        if text == self.gone_at:
            raise ChannelClosed("gone")
        if name in self.refuse:
            raise ProxyError(doing, "refused")
        self.told.append(text)
        if isinstance(message, messages.Credential):
            assert fd is not None
            self.pems[message.name] = os.pread(fd, 100, 0)
        if isinstance(message, messages.Configure):
            self.ports, self.egress = message.ports, message.egress


def source(pem: bytes) -> CredentialSource:
    async def read() -> int:
        return sealed_memfd("test", pem)

    return CredentialSource(read)


def port(number: int, **fields: Any) -> PortSnapshot:
    return PortSnapshot(number, "tcp", "probe", "probe", fields.pop("rules", ()), **fields)


def configure(*ports: PortSnapshot) -> messages.Configure:
    return messages.Configure(0, 1, ports)


def tell(proxy: Proxy, desired: Desired, told: Acknowledged) -> None:
    asyncio.run(tell_difference(proxy, desired, told, source_deadline=0.05))


@pytest.fixture
def sock():
    with socket.socket() as made:
        yield made


def test_everything_in_order_and_then_nothing(sock):
    proxy, told = Proxy(), Acknowledged()
    desired = Desired(
        {"id": source(b"pem"), "ca": source(b"ca"), "unnamed": source(b"x")},
        configure(port(443, identity="id", upstream_trust="ca")),
        {(443, "tcp"): sock},
    )
    tell(proxy, desired, told)
    assert proxy.told == ["Credential id", "Credential ca", "Configure", "Listen 443"]
    assert proxy.pems == {"id": b"pem", "ca": b"ca"}
    tell(proxy, desired, told)
    assert len(proxy.told) == 4


def test_only_what_changed_is_told(sock):
    proxy, told = Proxy(), Acknowledged()
    desired = Desired({"id": source(b"1")}, configure(port(1, identity="id")), {(1, "tcp"): sock})
    tell(proxy, desired, told)
    proxy.told.clear()
    desired.credentials = {"id": source(b"1"), "new": source(b"2")}
    desired.configuration = configure(port(1, identity="id"), port(2, identity="new"))
    desired.listeners = {(2, "tcp"): sock}
    tell(proxy, desired, told)
    assert proxy.told == ["Credential new", "Configure", "Unlisten 1", "Listen 2"]
    # A credential that no port names is forgotten by the proxy, and sent again when it is named again.
    proxy.told.clear()
    desired.configuration = configure(port(2, identity="new"))
    tell(proxy, desired, told)
    desired.configuration = configure(port(1, identity="id"))
    tell(proxy, desired, told)
    assert proxy.told == ["Configure", "Credential id", "Configure"]


def test_credentials_of_policies_about_connections_that_the_pod_makes():
    egress = to_egress_snapshot(InspectionPolicy("out", "shop", egress=Egress()))
    egress = msgspec.structs.replace(egress, issuer="ca", trust="roots")
    proxy, told = Proxy(), Acknowledged()
    configuration = messages.Configure(0, 1, (), egress=(egress,))
    desired = Desired({"ca": source(b"ca"), "roots": source(b"roots")}, configuration)
    tell(proxy, desired, told)
    assert proxy.told == ["Credential ca", "Credential roots", "Configure"]
    assert proxy.egress == (egress,)
    assert told.credentials == {"ca", "roots"}
    proxy, told = Proxy(), Acknowledged()
    proxy.refuse = {"ca"}
    tell(proxy, desired, told)
    assert told.failures == {"ca": "refused"}
    assert [(each.opens, each.credentials) for each in proxy.egress] == [(False, {})]


def test_the_table_of_destinations_is_told_before_its_listener_and_once(sock):
    proxy, told = Proxy(), Acknowledged()
    table = DestinationTable(sock.fileno(), "127.200.0.0/16", 1024)
    place = (messages.OUTBOUND, messages.OUTBOUND_TRANSPORT)
    desired = Desired({}, configure(), {place: sock}, table)
    tell(proxy, desired, told)
    assert proxy.told == ["Configure", "ShareTable", "Listen 65536"]
    tell(proxy, desired, told)
    assert len(proxy.told) == 3
    desired.table = DestinationTable(sock.fileno(), "127.201.0.0/16", 1024)
    tell(proxy, desired, told)
    assert proxy.told[3:] == ["ShareTable"]
    tell(proxy, desired, Acknowledged())
    assert proxy.told[4:] == ["Configure", "ShareTable", "Listen 65536"], "to the next process"
    sock.close()
    tell(proxy, desired, late := Acknowledged())
    assert proxy.told[7:] == ["Configure"], "the numbers of what is closed may be those of other files"
    assert is_told(desired, late)


def test_a_listener_that_its_owner_has_closed_is_desired_no_longer():
    """Else a new process would be told nothing, and never count as told, while `Desired` still names it."""
    proxy, told = Proxy(), Acknowledged()
    with socket.socket() as sock:
        desired = Desired({}, configure(port(1)), {(1, "tcp"): sock})
        tell(proxy, desired, told)
        assert is_told(desired, told)
    assert not is_told(desired, told)
    tell(proxy, desired, told)
    assert proxy.told == ["Configure", "Listen 1", "Unlisten 1"]
    assert is_told(desired, told)


def test_a_failed_credential_costs_only_its_port(sock):
    async def missing() -> int:
        raise ConfigurationError("no such file")

    async def endless() -> int:
        await asyncio.Event().wait()
        raise AssertionError

    proxy, told = Proxy(), Acknowledged()
    proxy.refuse = {"bad"}
    desired = Desired(
        {
            "bad": CredentialSource(source(b"x").read, about="annotation x"),
            "good": source(b"y"),
            "missing": CredentialSource(missing),
            "endless": CredentialSource(endless),
        },
        configure(
            port(1, identity="bad"),
            port(2, identity="good"),
            port(3, identity="good", upstream_identity="missing"),
            port(4, identity="endless"),
            port(6, identity="unknown"),
        ),
        {(1, "tcp"): sock},
    )
    tell(proxy, desired, told)
    assert told.failures == {
        "bad": "annotation x: refused",
        "missing": "no such file",
        "endless": "it could not be read within 0.05 s",
        "unknown": "it is not known",
    }
    assert [(p.number, p.identity) for p in proxy.ports] == [(1, ""), (2, "good"), (3, ""), (4, ""), (6, "")]
    assert proxy.told[-1] == "Listen 1"


def test_what_was_told_before_the_end_stays_told(sock):
    proxy, told = Proxy(), Acknowledged()
    desired = Desired({"id": source(b"1")}, configure(port(1, identity="id")), {(1, "tcp"): sock})
    proxy.gone_at = "Configure"
    with pytest.raises(ChannelClosed):
        tell(proxy, desired, told)
    assert told.credentials == {"id"}
    assert told.configuration is None
    proxy.gone_at = None
    tell(proxy, desired, told)
    assert proxy.told == ["Credential id", "Configure", "Listen 1"]


def test_a_failed_credential_costs_only_the_ports_that_name_it():
    proxy, told = Proxy(), Acknowledged()
    ports = (
        port(1, identity="i", client_trust="ct", upstream_identity="ui", upstream_trust="ut"),
        port(2, global_uid="g", global_taps=("t",)),
        port(3, identity="i"),
    )
    sources = {name: source(b"pem") for name in ("i", "ct", "ui")}
    tell(proxy, Desired(sources, configure(*ports)), told)
    assert told.failures == {"ut": "it is not known"}
    assert proxy.ports[0].credentials == {}
    assert proxy.ports[1:] == ports[1:]
    assert told.credentials == {"i"}
