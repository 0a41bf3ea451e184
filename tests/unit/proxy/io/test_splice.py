"""A spliced wire between real TCP sockets: bytes, ends and resets travel; buffers stay bounded."""

import hashlib
import os
import socket
import struct
import threading

import pytest

from sidestep.proxy.io.loop import READ, Loop
from sidestep.proxy.io.splice import Pipes, Splicer
from sidestep.proxy.io.stream import PlainStream
from tests.harness.waiting import until

DEADLINE = 20.0


def tcp_pair():
    """Two connected TCP sockets."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        other, _ = server.accept()
    for sock in (one, other):
        sock.settimeout(DEADLINE)
    return one, other


class Wire:
    """client <-> (near | far) <-> app, with a splicer between near and far in a thread of its own."""

    def __init__(self, far_pair=tcp_pair, *, pipes=None):
        self.crashes = []
        self.client, near = tcp_pair()
        far, self.app = far_pair()
        self.loop = Loop(on_crash=lambda owner, error: self.crashes.append(error))
        self.pipes = pipes or Pipes()
        streams = []
        for sock in (near, far):
            sock.setblocking(False)
            stream = PlainStream(sock)
            self.loop.add(stream.fd, lambda mask: None, READ)
            streams.append(stream)
        self.splicer = Splicer(
            self.loop, self.pipes, *streams, ended=(False, False), finished=(False, False), done=self.loop.stop
        )
        self.guard = self.loop.later(DEADLINE, self.loop.stop)
        self.thread = threading.Thread(target=self.loop.run)
        self.thread.start()

    def join(self):
        self.thread.join(DEADLINE + 5)
        assert not self.thread.is_alive()
        assert self.guard.call is not None
        assert not self.crashes


def no_descriptors():
    """Pipes of a process that has no descriptor to spare."""
    return Pipes(lambda: False)


@pytest.fixture(params=[Pipes, no_descriptors])
def wire(request):
    made = Wire(pipes=request.param())
    yield made
    for sock in (made.client, made.app):
        sock.close()
    made.join()
    made.loop.close()


def read_all(sock):
    digest = hashlib.sha256()
    size = 0
    while data := sock.recv(1 << 16):
        digest.update(data)
        size += len(data)
    return size, digest.hexdigest()


def send_all(sock, total, seed):
    block = (seed * 4096)[: 1 << 16]
    digest = hashlib.sha256()
    sent = 0
    while sent < total:
        piece = block[: total - sent]
        sock.sendall(piece)
        digest.update(piece)
        sent += len(piece)
    sock.shutdown(socket.SHUT_WR)
    return sent, digest.hexdigest()


def test_both_directions_at_once_arrive_whole(wire):
    results = {}

    def job(name, call, *args):
        results[name] = call(*args)

    jobs = [
        threading.Thread(target=job, args=("up", send_all, wire.client, 64 << 20, b"upload-")),
        threading.Thread(target=job, args=("down", send_all, wire.app, 64 << 20, b"download")),
        threading.Thread(target=job, args=("at app", read_all, wire.app)),
        threading.Thread(target=job, args=("at client", read_all, wire.client)),
    ]
    for thread in jobs:
        thread.start()
    for thread in jobs:
        thread.join(DEADLINE)
    assert results["at app"] == results["up"]
    assert results["at client"] == results["down"]
    wire.join()


@pytest.mark.parametrize("first", ["client", "app"])
def test_half_close_in_either_order_leaves_the_other_direction_open(wire, first):
    one, other = (wire.client, wire.app) if first == "client" else (wire.app, wire.client)
    one.sendall(b"question")
    one.shutdown(socket.SHUT_WR)
    assert read_all(other)[0] == len(b"question")
    other.sendall(b"a late answer")
    other.close()
    assert one.recv(100, socket.MSG_WAITALL) == b"a late answer"
    wire.join()


@pytest.mark.parametrize("first", ["client", "app"])
def test_a_reset_is_seen_as_a_reset(wire, first):
    one, other = (wire.client, wire.app) if first == "client" else (wire.app, wire.client)
    one.sendall(b"x")
    assert other.recv(1) == b"x"
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    one.close()
    with pytest.raises(ConnectionResetError):
        other.recv(1)
    wire.join()


def test_a_peer_that_never_reads_blocks_the_sender(wire):
    wire.client.settimeout(1.0)
    sent = 0
    with pytest.raises(TimeoutError):
        while sent < 1 << 30:
            sent += wire.client.send(bytes(1 << 16))
    assert sent < 64 << 20


def test_idle_wires_hold_no_pipes(wire):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        wire.client.sendall(b"ping")
        assert wire.app.recv(4, socket.MSG_WAITALL) == b"ping"
    assert len(os.listdir("/proc/self/fd")) - before <= 2
    until(
        lambda: all(direction.pipe is None for direction in wire.splicer._directions),
        within=5,
        what="the pipes' return",
    )


def test_a_handler_that_broke_off_is_seen_as_a_reset():
    """A unix socket knows no reset: closed in both directions at once is one, and no end of what it said."""
    wire = Wire(socket.socketpair)
    with wire.client, wire.app:
        wire.client.sendall(b"question")
        assert wire.app.recv(8, socket.MSG_WAITALL) == b"question"
        wire.app.sendall(b"half an ans")
        assert wire.client.recv(11, socket.MSG_WAITALL) == b"half an ans"
        wire.app.close()
        with pytest.raises(ConnectionResetError):
            wire.client.recv(1)
        wire.join()
    wire.loop.close()


def test_a_handler_s_end_is_an_end():
    wire = Wire(socket.socketpair)
    with wire.client, wire.app:
        wire.app.sendall(b"answer")
        wire.app.shutdown(socket.SHUT_WR)
        assert read_all(wire.client)[0] == 6
        wire.client.sendall(b"and more")
        wire.client.close()
        assert read_all(wire.app)[0] == 8
        wire.join()
    wire.loop.close()
