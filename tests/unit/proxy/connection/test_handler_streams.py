"""Connections to handlers, asked of a daemon that the test plays over a real control channel."""

from __future__ import annotations

import contextlib
import socket

import pytest

from sidestep.proxy.connection import handler_streams
from sidestep.proxy.connection.handler_streams import HandlerStreams
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
        self.link = DaemonLink(
            self.stepped.loop,
            ControlChannel(theirs),
            on_message=lambda message, fd: self.handlers.acknowledged(message),
            on_gone=self.gone,
        )
        self.link.watch()
        stack.callback(lambda: self.stepped.run(lambda: not self.link.is_open))
        stack.callback(self.daemon.close)
        self.crashes = []
        self.handlers = HandlerStreams(
            self.stepped.loop, self.link, on_crash=lambda owner, error: self.crashes.append(error)
        )
        self.answers = []

    def gone(self):
        self.handlers.refuse_all()

    def ask(self):
        return self.handlers.ask(
            self.answers.append, uid="u", port=8443, protocol="h2", client=("10.0.0.1", 1), tls=True, server_name="a"
        )

    def told(self):
        received = self.daemon.receive()
        return None if received is None else received[0]


@pytest.fixture
def scene():
    with contextlib.ExitStack() as stack:
        yield Scene(stack)


def test_a_stream_goes_to_who_asked_and_a_reset_of_it_is_told(scene):
    scene.ask()
    asked = scene.told()
    assert isinstance(asked, messages.Open)
    assert (asked.uid, asked.port, asked.protocol, asked.tls, asked.server_name) == ("u", 8443, "h2", True, "a")
    ours, theirs = socket.socketpair()
    with theirs:
        scene.handlers.arrived(asked.stream, ours)
        (stream,) = scene.answers
        assert not len(scene.handlers)
        theirs.sendall(b"x")
        assert stream.read() == b"x"
        stream.reset()
        told = scene.told()
        assert isinstance(told, messages.Reset)
        assert told.stream == asked.stream


def test_a_refusal_is_none(scene):
    scene.ask()
    scene.handlers.arrived(scene.told().stream, None)
    assert scene.answers == [None]


def test_a_stream_that_nobody_waits_for_any_more_is_closed(scene):
    scene.ask()()
    ours, theirs = socket.socketpair()
    with theirs:
        scene.handlers.arrived(scene.told().stream, ours)
        assert theirs.recv(1) == b""
    assert not scene.answers


def test_a_question_that_the_daemon_cannot_take_is_a_refusal(scene):
    scene.ask()
    scene.daemon.acknowledge(scene.told(), "no such intercept")
    assert scene.stepped.run(lambda: scene.answers)
    assert scene.answers == [None]


def test_a_daemon_that_does_not_answer_is_waited_for_until_the_deadline(scene, monkeypatch):
    monkeypatch.setattr(handler_streams, "OPEN_TIMEOUT", 0.1)
    patient = HandlerStreams(scene.stepped.loop, scene.link, on_crash=print)
    patient.ask(scene.answers.append, uid="u", port=1, protocol="tcp", client=("10.0.0.1", 1))
    scene.daemon.acknowledge(scene.told())
    assert scene.stepped.run(lambda: scene.answers)
    assert scene.answers == [None]


def test_without_the_daemon_all_that_wait_are_refused(scene):
    for _ in range(3):
        scene.ask()
    scene.daemon.close()
    assert scene.stepped.run(lambda: len(scene.answers) == 3)
    assert scene.answers == [None] * 3


def test_who_fails_with_its_stream_does_not_fail_the_daemon_s_message(scene):
    def broken(stream):
        raise RuntimeError("a bug")

    scene.handlers.ask(broken, uid="u", port=1, protocol="tcp", client=("10.0.0.1", 1))
    scene.handlers.arrived(scene.told().stream, None)
    assert [str(error) for error in scene.crashes] == ["a bug"]
