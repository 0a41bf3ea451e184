"""The zygote's answers, without forking."""

from __future__ import annotations

import errno
import gc
import os
import signal
import socket
import ssl
from collections.abc import Iterator

import pytest

from sidestep.aio.packets import ChannelClosed
from sidestep.proxy.control import messages
from sidestep.proxy.control.channel import ControlChannel
from sidestep.proxy.runtime import zygote


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """A zygote changes its process; this one goes on."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)}
    umask = os.umask(0o022)
    yield
    os.umask(umask)
    gc.unfreeze()
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_a_fork_that_fails_is_an_answer_and_leaves_no_descriptor(monkeypatch):
    def refuse() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", refuse)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    daemon = ControlChannel(ours, receives=messages.FromZygote)
    channel = ControlChannel(theirs, receives=messages.ToZygote)
    before = len(os.listdir("/proc/self/fd"))
    control, proxys = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with control, proxys:
        daemon.send(messages.Ack(1))
        daemon.send(messages.Spawn(1), proxys.fileno())
    ours.shutdown(socket.SHUT_WR)
    with pytest.raises(ChannelClosed):
        zygote.Zygote(channel, lambda channel, store, pulse: None, ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)).serve()
    hello, _ = daemon.receive()
    assert (hello.version, hello.pid) == (messages.VERSION, os.getpid())
    answer, _ = daemon.receive()
    assert answer == messages.Ack(1, "the zygote cannot fork: Resource temporarily unavailable")
    assert len(os.listdir("/proc/self/fd")) == before
    daemon.close()
    channel.close()


def test_a_worker_that_is_not_there_is_one_line(capfd):
    assert zygote.main(["0", "--worker", "sidestep.nowhere:run"]) == 1
    assert capfd.readouterr().err == "the zygote cannot load sidestep.nowhere:run: No module named 'sidestep.nowhere'\n"
