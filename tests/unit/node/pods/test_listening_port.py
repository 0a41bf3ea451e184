"""A port with its listener, and resetting what waits there."""

from __future__ import annotations

import socket

import pytest

from sidestep.model.pod import Family, PodKey
from sidestep.node.planning.plan import PortPlan
from sidestep.node.pods.listening_port import ListeningPort, families_of
from sidestep.node.pods.sweeper import GRACE, Sweeper
from sidestep.snapshots.ports import PortSnapshot

PLAN = PortPlan(PortSnapshot(80, "tcp", "never", "never", ()), needs_app=True)


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        made = ListeningPort(plan=PLAN, listener=listener)
        yield made
        made.listener.close()


def test_families_of_sockets(port):
    assert families_of(port.listener) == port.families == (Family.IPV4,)
    with socket.socket(socket.AF_INET6) as dual:
        assert families_of(dual) == (Family.IPV4, Family.IPV6)


def test_a_dead_listener_is_replaced(port):
    dead = port.listener
    port.replacement.died(10.0)
    assert port.listener_dead
    port.replace_listener(socket.socket(socket.AF_INET6))
    assert not port.listener_dead
    assert dead.fileno() == -1
    assert port.families == (Family.IPV4, Family.IPV6)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def waiting(port):
    with socket.create_connection(port.listener.getsockname()) as client:
        client.settimeout(5)
        yield client


def is_reset(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        client.recv(1)
    except ConnectionResetError:
        return True
    except BlockingIOError:
        return False
    return False


def test_what_waits_while_no_proxy_is_there_is_reset(port, waiting):
    Sweeper(PodKey("shop", "orders"), now=Clock()).sweep_all([port])
    with pytest.raises(ConnectionResetError):
        waiting.recv(1)


def test_a_port_that_is_steered_is_not_swept(port, waiting):
    port.steered = {Family.IPV4}
    Sweeper(PodKey("shop", "orders"), now=Clock()).sweep_all([port])
    assert not is_reset(waiting)


def test_a_hindered_port_has_a_moment_to_empty_its_queue(port, waiting):
    clock = Clock()
    sweeper = Sweeper(PodKey("shop", "orders"), now=clock)
    sweeper.sweep_hindered({80: port})
    sweeper.hindered([80, 81])
    clock.now += GRACE / 2
    sweeper.hindered([80])
    sweeper.sweep_hindered({80: port})
    assert not is_reset(waiting)
    clock.now += GRACE
    sweeper.sweep_hindered({80: port})
    waiting.settimeout(5)
    with pytest.raises(ConnectionResetError):
        waiting.recv(1)


def test_a_port_that_can_be_served_again_keeps_its_queue(port, waiting):
    clock = Clock()
    sweeper = Sweeper(PodKey("shop", "orders"), now=clock)
    sweeper.hindered([80])
    sweeper.hindered([])
    clock.now += 2 * GRACE
    sweeper.sweep_hindered({80: port})
    assert not is_reset(waiting)
