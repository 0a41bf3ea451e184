"""One dial to an app on loopback: its outcomes, from where it comes, and how it is named and cancelled."""

from __future__ import annotations

import errno
import socket
from ipaddress import IPv4Network, ip_address

import pytest

from sidestep.proxy.connection.dial import Dial, Naming, is_unacknowledged, plain_address, random_source
from tests.unit.proxy.looping import stepped

SOURCES = IPv4Network("127.128.0.0/9")


@pytest.mark.parametrize(
    ("address", "plain"),
    [
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("10.0.0.1", "10.0.0.1"),
        ("fe80::1", "fe80::1"),
        ("::ffff:0:1", "::ffff:0:1"),
    ],
)
def test_a_mapped_address_is_told_as_ipv4(address, plain):
    assert plain_address(address) == plain


def test_random_sources_are_neither_the_first_nor_the_last_address():
    small = IPv4Network("127.128.0.0/30")
    assert {random_source(small) for _ in range(200)} == {"127.128.0.1", "127.128.0.2"}


class Dialled:
    """A dial, and what came of it."""

    def __init__(self, scene, address, **options):
        self.results = []
        self.scene = scene
        self.dial = Dial(scene.loop, *address, lambda sock, error: self.results.append((sock, error)), **options)

    def result(self):
        assert self.scene.run(lambda: self.results)
        (result,) = self.results
        return result


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_the_app_sees_the_address_that_the_client_dialled(family, host):
    """Without naming the source is the destination's address, which the lookup program lets pass."""
    with stepped() as scene, socket.create_server((host, 0), family=family) as app:
        sock, error = Dialled(scene, app.getsockname()[:2]).result()
        accepted, address = app.accept()
        with sock, accepted:
            assert error is None
            assert address[0] == host
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert not is_unacknowledged(sock)


def refusing():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()


@pytest.mark.parametrize(
    ("address", "code"), [(refusing(), errno.ECONNREFUSED), (("192.0.2.9", 80), errno.EADDRNOTAVAIL)]
)
def test_a_failure_is_told_on_a_later_turn(address, code):
    with stepped() as scene:
        dialled = Dialled(scene, address)
        assert not dialled.results
        sock, error = dialled.result()
        assert (sock, error.errno) == (None, code)


@pytest.mark.parametrize("named", [True, False])
def test_a_named_dial_waits_for_its_name_and_goes_on_without(named):
    with stepped() as scene, socket.create_server(("127.0.0.1", 0)) as app:
        asked = []

        def name(source, port, ready):
            asked.append((source, port, ready))
            return lambda: None

        dialled = Dialled(scene, app.getsockname(), naming=Naming(name, SOURCES))
        assert not scene.run(lambda: dialled.results, within=0.1)
        ((source, port, ready),) = asked
        assert ip_address(source) in SOURCES
        assert dialled.dial.since is None
        ready(named)
        sock, _ = dialled.result()
        accepted, address = app.accept()
        with sock, accepted:
            assert (address == (source, port)) is named
            assert dialled.dial.since is not None


def test_a_cancelled_dial_tells_nothing_and_cancels_its_naming():
    with stepped() as scene, socket.create_server(("127.0.0.1", 0)) as app:
        cancelled = []
        waiting = Dialled(scene, app.getsockname(), naming=Naming(lambda *_: lambda: cancelled.append(True), SOURCES))
        connecting = Dialled(scene, app.getsockname())
        refused = Dialled(scene, refusing())
        for dialled in (waiting, connecting, refused):
            dialled.dial.cancel()
        scene.run(within=0.2)
        assert [dialled.results for dialled in (waiting, connecting, refused)] == [[], [], []]
        assert cancelled == [True]
