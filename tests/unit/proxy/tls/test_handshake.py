"""Handshakes with clients, over real sockets and a real loop."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
import time

import pytest

from sidestep.proxy.io.loop import Loop
from sidestep.proxy.io.task import Task
from sidestep.proxy.tls import handshake
from sidestep.proxy.tls.credentials import Credentials
from sidestep.proxy.tls.handshake import answer_client
from sidestep.snapshots.ports import PortSnapshot
from tests.harness.authority import Authority
from tests.harness.tls_peers import client_tls

AUTHORITY = Authority()
APP = AUTHORITY.issue("app.test")


def memfd(data):
    fd = os.memfd_create("test")
    os.write(fd, data)
    return fd


@pytest.fixture
def requiring():
    """The context of a port that requires client certificates."""
    store = Credentials(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    store.add("identity", "identity", memfd(APP.key + APP.chain))
    store.add("trust", "trust", memfd(AUTHORITY.pem))
    named = {"identity": "identity", "client_trust": "trust", "client_auth": "require"}
    yield store.downstream(PortSnapshot(443, "tcp", "always", "probe", (), **named), None)
    store.keep(set())


def shake(context, tls, session=None):
    """One connection: what the client's library says of it, and whether the server's side went well."""
    loop = Loop(on_crash=lambda owner, error: pytest.fail(repr(error)))
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.settimeout(5)
    outcome, words = [], []

    def done(stream):
        outcome.append(stream is not None)
        if stream is not None:
            loop.remove(stream.fd)
            stream.write(b"hello")
            stream.finish(notify=True)
            words.append(stream)

    async def answer():
        try:
            done(await answer_client(loop, ours, context))
        except OSError:
            done(None)

    def talk():
        try:
            with tls.wrap_socket(theirs, server_hostname="app.test", session=session) as sock:
                outcome.append((sock.recv(5), sock.session, sock.session_reused))
        except OSError as error:
            outcome.append(error)
        finally:
            theirs.close()

    loop.add(ours.fileno(), lambda mask: None, 0)
    Task(answer()).start()
    thread = threading.Thread(target=talk)
    thread.start()
    deadline = time.monotonic() + 5
    while len(outcome) < 2 and time.monotonic() < deadline:
        loop.later(0.02, loop.stop)
        loop.run()
    thread.join(5)
    for stream in words:
        stream.close()
    with contextlib.suppress(OSError):
        loop.later(0.05, loop.stop)
        loop.run()
    loop.close()
    return next(each for each in outcome if not isinstance(each, bool)), True in outcome


class Clock:
    """Stands for the module `time`, so many seconds ahead."""

    def __init__(self, ahead):
        self.ahead = ahead

    def time(self):
        return time.time() + self.ahead


def test_a_resumed_session_does_not_outlive_its_client_s_certificate(requiring, monkeypatch):
    """TLS 1.2 resumes by session id, and then no certificate is shown or verified again."""
    lasts = 3600.0
    ada = AUTHORITY.issue("ada.test", client=True, lasts=lasts)
    tls = client_tls(AUTHORITY.pem, certificate=ada, version="TLSv1.2")
    (said, session, reused), served = shake(requiring, tls)
    assert (said, reused, served) == (b"hello", False, True)
    (said, session, reused), served = shake(requiring, tls, session)
    assert (said, reused, served) == (b"hello", True, True)
    monkeypatch.setattr(handshake, "time", Clock(lasts + 1))
    said, served = shake(requiring, tls, session)
    assert not served
    assert isinstance(said, OSError) or not said[0]
