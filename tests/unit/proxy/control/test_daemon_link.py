"""The link to the daemon on a real loop and a real socketpair: what arrives, what is sent, how it ends."""

import contextlib
import socket

import pytest

from sidestep.model.errors import PeerError
from sidestep.proxy.control import messages
from sidestep.proxy.control.channel import ControlChannel
from sidestep.proxy.control.daemon_link import BACKLOG, DaemonLink
from sidestep.proxy.io.loop import Loop


class Scene:
    """A link and the daemon's end of it."""

    def __init__(self, stack):
        self.loop = Loop(on_crash=lambda owner, error: pytest.fail(f"{owner}: {error}"))
        stack.callback(self.loop.close)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.daemon = ControlChannel(theirs, receives=messages.FromProxy)
        stack.callback(self.daemon.close)
        self.raw = theirs
        self.received = []
        self.gone = 0
        self.refuses = False
        self.link = DaemonLink(self.loop, ControlChannel(ours), on_message=self._message, on_gone=self._gone)
        stack.callback(self.link._channel.close)
        self.link.watch()

    def _message(self, message, fd):
        if self.refuses:
            raise PeerError("not expected")
        self.received.append(message)

    def _gone(self):
        self.gone += 1

    def turn(self):
        self.loop.later(0.02, self.loop.stop)
        self.loop.run()

    def told(self):
        told = []
        while (packet := self.daemon.receive()) is not None:
            told.append(packet[0])
        return told

    def no_app(self):
        return messages.NoApp(self.link.next_seq(), 80, 2)


@pytest.fixture
def scene():
    with contextlib.ExitStack() as stack:
        yield Scene(stack)


def test_messages_arrive_in_order(scene):
    said = [messages.Drain(1, 1.0), messages.Refused(2, 5), messages.Ack(1)]
    for message in said:
        scene.daemon.send(message)
    scene.turn()
    assert scene.received == said
    assert scene.link.is_open


def test_messages_can_be_received_without_the_loop(scene):
    scene.daemon.send(messages.Drain(1, 1.0))
    scene.loop.urgent()
    assert scene.received == [messages.Drain(1, 1.0)]


def test_an_acknowledgement_reaches_the_breaker(scene):
    message = scene.no_app()
    scene.link.breaker.called(message.seq)
    scene.daemon.send(messages.Ack(message.seq))
    scene.turn()
    assert not scene.link.breaker._expected


@pytest.mark.parametrize("how", ["closed", "nonsense", "refused"])
def test_the_link_ends_once(scene, how):
    if how == "closed":
        scene.daemon.close()
    elif how == "nonsense":
        scene.raw.send(b"\xc1")
    else:
        scene.refuses = True
        scene.daemon.send(messages.Drain(1, 1.0))
    scene.turn()
    assert (scene.gone, scene.link.is_open, len(scene.loop)) == (1, False, 0)
    assert not scene.link.send(scene.no_app())
    scene.link.receive_now()
    scene.turn()
    assert scene.gone == 1


def test_sending_to_a_daemon_that_is_gone_ends_the_link(scene):
    scene.daemon.close()
    assert not scene.link.send(scene.no_app())
    assert (scene.gone, scene.link.is_open) == (1, False)


def test_what_waits_is_sent_when_the_daemon_reads_again(scene):
    count = 0
    while not scene.link.is_backlogged:
        assert scene.link.send(scene.no_app())
        count += 1
    assert scene.link._channel.pending == BACKLOG
    assert not scene.link.advise(scene.no_app())
    told = []
    for _ in range(1000):
        told += scene.told()
        scene.turn()
        if len(told) == count:
            break
    assert [message.seq for message in told] == list(range(1, count + 1))
    assert scene.link.advise(scene.no_app())
