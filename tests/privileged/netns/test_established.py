"""Connections of a real namespace: found by port, ended from outside, and no others."""

from __future__ import annotations

import socket
from ipaddress import ip_address

import pytest

from sidestep.netns import Netns, destroy, established
from tests.harness.namespaces import pod_namespace
from tests.harness.peers import Client, Server

pytestmark = pytest.mark.privileged


def hold(server, connection):
    """A script that waits for the end."""
    try:
        while connection.sock.recv(100):
            pass
    except OSError as error:
        connection.failure = type(error).__name__


@pytest.mark.parametrize("family", ["ipv4", "ipv6", "mapped"])
def test_the_named_connection_ends_and_no_other(family):
    with pod_namespace() as space, Netns.open(str(space.pod.path)) as netns:
        address = space.ip6 if family == "ipv6" else space.ip
        listen = "::" if family == "mapped" else address
        options = {"netns": space.pod, "address": listen, "port": 8080, "dual_stack": family == "mapped"}
        with (
            Server(hold, **options),
            Server(hold, netns=space.pod, address=address, port=8081),
            Client(address, 8080, netns=space.client) as first,
            Client(address, 8080, netns=space.client) as second,
            Client(address, 8081, netns=space.client),
            Client(address, 8080, netns=space.pod),
        ):
            found = established(netns, 8080)
            assert len(found) == 2
            wanted = space.client_ip6 if family == "ipv6" else space.client_ip
            assert {each.client for each in found} == {ip_address(wanted)}
            port = first.sock.getsockname()[1]
            one = next(each for each in found if each.client_port == port)
            assert destroy(netns, one) is True
            assert destroy(netns, one) is False
            first.sock.settimeout(5)
            with pytest.raises(ConnectionResetError):
                first.sock.recv(1)
            second.sock.sendall(b"still here")
            second.sock.settimeout(0.2)
            with pytest.raises(TimeoutError):
                second.sock.recv(1)
            assert len(established(netns, 8080)) == 1


def test_a_new_connection_with_the_same_addresses_is_not_meant():
    with pod_namespace() as space, Netns.open(str(space.pod.path)) as netns:

        def client():
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            sock.bind((space.client_ip, 45678))
            sock.connect((space.ip, 8080))
            return sock

        with Server(hold, netns=space.pod, address=space.ip, port=8080):
            before = space.client.call(client)
            (old,) = established(netns, 8080)
            before.close()
            after = space.client.call(client)
            assert [each.client_port for each in established(netns, 8080)] == [45678]
            assert destroy(netns, old) is False
            assert len(established(netns, 8080)) == 1
            after.close()
