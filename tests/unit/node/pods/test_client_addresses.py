"""What a pod proxy may have named."""

from __future__ import annotations

from ipaddress import IPv4Network, ip_address
from typing import Any

import pytest

from sidestep.model.errors import KernelError, RefusedError
from sidestep.node.pods.client_addresses import ClientAddresses
from sidestep.proxy.control.messages import ForgetClient, NameClient

OWN = frozenset({ip_address("10.0.0.1"), ip_address("fd00::1")})
PORTS = {8443}


class Names:
    """Stands for the kernel's map."""

    sources = IPv4Network("127.9.0.0/16")

    def __init__(self) -> None:
        self.named: dict[Any, Any] = {}
        self.makers: dict[Any, int] = {}
        self.fails = False
        self.closed = False

    def name(self, peer, peer_port, port, *, client, client_port, maker):
        self.named[str(peer), peer_port, port] = (str(client), client_port)
        self.makers[str(peer), peer_port, port] = maker

    def forget(self, peer, peer_port, port, *, maker):
        assert maker == self.makers[str(peer), peer_port, port]
        del self.named[str(peer), peer_port, port]

    def forget_all(self, maker=None):
        if self.fails:
            raise KernelError("bpf", 1)
        self.named = {key: name for key, name in self.named.items() if maker not in (None, self.makers[key])}

    def close(self):
        self.closed = True


def naming(peer="10.0.0.1", *, port=8443, client="192.0.2.7") -> NameClient:
    return NameClient(0, port, peer, 4000, client, 5000)


@pytest.mark.parametrize("peer", ["10.0.0.1", "fd00::1", "127.0.0.1", "::1"])
def test_a_connection_of_the_pods_own_is_named_and_forgotten(peer):
    names = Names()
    addresses = ClientAddresses(names, "on")
    addresses.name(naming(peer), ports=PORTS, own=OWN, worker=2)
    assert names.named == {(peer, 4000, 8443): ("192.0.2.7", 5000)}
    addresses.forget(ForgetClient(0, 8443, peer, 4000), worker=2)
    assert names.named == {}


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (naming("10.0.0.2"), "no address of the proxy's"),
        (naming(port=22), "port 22 is not served"),
        (naming("10.0.0"), "is no address"),
        (naming(client="x" * 100), "is no address"),
    ],
)
def test_what_may_not_be_named(message, reason):
    names = Names()
    with pytest.raises(RefusedError, match=reason):
        ClientAddresses(names, "on").name(message, ports=PORTS, own=OWN)
    assert names.named == {}


def test_off():
    addresses = ClientAddresses.off()
    assert addresses.sources == ""
    assert addresses.status.startswith("off: ")
    with pytest.raises(RefusedError, match="off"):
        addresses.name(naming(), ports=PORTS, own=OWN)
    addresses.forget(ForgetClient(0, 8443, "10.0.0.1", 4000))
    addresses.reset()
    addresses.close()


def test_names_end_with_the_process():
    names = Names()
    addresses = ClientAddresses(names, "on")
    assert addresses.sources == "127.9.0.0/16"
    addresses.name(naming(), ports=PORTS, own=OWN)
    addresses.name(naming("127.0.0.1"), ports=PORTS, own=OWN, worker=1)
    addresses.reset(1)
    assert names.named == {("10.0.0.1", 4000, 8443): ("192.0.2.7", 5000)}
    addresses.reset()
    assert names.named == {}
    assert addresses.status == "on"


def test_names_that_cannot_be_taken_back_switch_it_off():
    names = Names()
    names.fails = True
    addresses = ClientAddresses(names, "on")
    addresses.reset()
    assert names.closed
    assert addresses.status == "off: closed"


def test_a_cgroup_that_cannot_be_attached_to_switches_it_off(tmp_path):
    from sidestep.steering import CompiledProgram

    program = CompiledProgram(b"", ())
    addresses = ClientAddresses.attach((program, program), str(tmp_path / "gone"))
    assert addresses.status.startswith("off: open")
