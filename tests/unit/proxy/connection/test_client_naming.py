"""Names for dials, asked of a daemon that the test plays over a real control channel."""

from __future__ import annotations

import contextlib
import socket

import pytest

from sidestep.proxy.connection import client_naming
from sidestep.proxy.connection.client_naming import ClientNaming
from sidestep.proxy.connection.endpoints import Endpoints
from sidestep.proxy.control import messages
from sidestep.proxy.control.channel import ControlChannel
from sidestep.proxy.control.daemon_link import DaemonLink
from tests.unit.proxy.looping import stepped


class Scene:
    """Both ends of a control channel."""

    def __init__(self, stack):
        self.stepped = stack.enter_context(stepped())
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.daemon = stack.enter_context(contextlib.closing(ControlChannel(ours, receives=messages.FromProxy)))
        link = DaemonLink(
            self.stepped.loop,
            ControlChannel(theirs),
            on_message=lambda message, fd: self.naming.acknowledged(message),
            on_gone=lambda: None,
        )
        link.watch()
        stack.callback(lambda: self.stepped.run(lambda: not link.is_open))
        stack.callback(self.daemon.close)
        self.naming = ClientNaming(self.stepped.loop, link)
        self.endpoints = Endpoints("10.0.0.1", 1000, "10.0.0.2", 8443)
        self.answers = []

    def name(self, port):
        return self.naming.name(self.endpoints, "127.128.0.5", port, self.answers.append)

    def told(self):
        received = self.daemon.receive()
        return None if received is None else received[0]


@pytest.fixture
def scene():
    with contextlib.ExitStack() as stack:
        yield Scene(stack)


@pytest.mark.parametrize("error", ["", "no such map"])
def test_a_dial_is_named_after_its_client_or_told_that_it_is_not(scene, error):
    scene.name(40000)
    question = scene.told()
    assert isinstance(question, messages.NameClient)
    assert (question.port, question.peer, question.peer_port) == (8443, "127.128.0.5", 40000)
    assert (question.client, question.client_port) == ("10.0.0.1", 1000)
    assert not scene.answers
    scene.daemon.acknowledge(question, error)
    assert scene.stepped.run(lambda: scene.answers)
    assert scene.answers == [not error]


def test_a_daemon_that_does_not_answer_is_not_waited_for(scene, monkeypatch):
    monkeypatch.setattr(client_naming, "NAME_TIMEOUT", 0.1)
    scene.name(40000)
    assert scene.stepped.run(lambda: scene.answers)
    assert scene.answers == [False]


def test_a_cancelled_name_is_not_answered_and_taken_back_with_the_connection(scene):
    scene.name(40000)()
    scene.daemon.acknowledge(scene.told())
    scene.stepped.run(within=0.1)
    assert not scene.answers
    scene.naming.release_names(scene.endpoints)
    back = scene.told()
    assert isinstance(back, messages.ForgetClient)
    assert (back.port, back.peer, back.peer_port) == (8443, "127.128.0.5", 40000)


def test_each_name_is_taken_back_once(scene):
    with socket.socket() as app:
        app.bind(("127.128.0.5", 0))
        number = app.getsockname()[1]
        for port in (number, number + 1):
            scene.name(port)
            scene.daemon.acknowledge(scene.told())
        for _ in range(2):
            scene.naming.release_name(scene.endpoints, app)
    assert scene.told().peer_port == number
    for _ in range(2):
        scene.naming.release_names(scene.endpoints)
    assert scene.told().peer_port == number + 1
    assert scene.told() is None


def test_a_connection_that_is_not_named_has_nothing_to_take_back(scene):
    with socket.create_server(("127.0.0.1", 0)) as app:
        scene.naming.release_name(scene.endpoints, app)
    scene.naming.release_names(scene.endpoints)
    assert scene.told() is None
