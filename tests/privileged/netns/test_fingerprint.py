"""Whatever changes the table of listening sockets changes the fingerprint."""

from __future__ import annotations

import contextlib
import socket

import pytest

from sidestep.netns import Netns
from sidestep.netns.fingerprint import fingerprint
from tests.harness.namespaces import pod_namespace

pytestmark = pytest.mark.privileged


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::")])
def test_listeners_of_both_families_change_it(family, address):
    with pod_namespace() as space, Netns.open(str(space.pod.path)) as netns:
        empty = fingerprint(netns)
        assert empty
        assert fingerprint(netns) == empty

        def listen():
            server = socket.socket(family)
            server.bind((address, 8080))
            server.listen(4)
            return server

        with contextlib.closing(netns.run(listen)) as server:
            one = fingerprint(netns)
            assert one != empty
            assert fingerprint(netns) == one
            with contextlib.closing(netns.run(lambda: socket.create_connection(("127.0.0.1", 8080), 5))):
                assert fingerprint(netns) != one  # the length of the queue is part of it
            server.accept()[0].close()
        assert fingerprint(netns) == empty


def test_established_connections_do_not_change_it():
    with (
        pod_namespace() as space,
        Netns.open(str(space.pod.path)) as netns,
        contextlib.closing(netns.run(lambda: socket.create_server(("127.0.0.1", 8080)))) as server,
    ):
        before = fingerprint(netns)
        client = netns.run(lambda: socket.create_connection(("127.0.0.1", 8080), 5))
        with contextlib.closing(client), contextlib.closing(server.accept()[0]):
            assert fingerprint(netns) == before
