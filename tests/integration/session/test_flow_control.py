"""Back-pressure from the handler's socket to the pod proxy's, with memory measured at both ends."""

import contextlib
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from tests.harness.authority import Authority
from tests.harness.waiting import until
from tests.integration.session.node import intercepting
from tests.unit.laptop.peers import server_context, serving

pytestmark = pytest.mark.cold

MIB = 2**20


def resident(pid):
    """Resident memory of a process in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Pusher:
    """Writes `total` bytes into a socket from a thread, counting what was taken."""

    def __init__(self, sock, total):
        self.sent = 0
        self._sock = sock
        self._total = total
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        chunk = bytes(256 * 1024)
        with contextlib.suppress(OSError):
            while self.sent < self._total:
                self.sent += self._sock.send(chunk)

    def join(self):
        self._thread.join(60)
        assert not self._thread.is_alive()


def wait_stalled(*pushers):
    """Wait until nothing more is taken from anybody for half a second; returns what was."""
    last, since = -1, time.monotonic()

    def stalled():
        nonlocal last, since
        now = sum(pusher.sent for pusher in pushers)
        if now != last:
            last, since = now, time.monotonic()
        return time.monotonic() - since > 0.5

    until(stalled, within=20, what="the writers to be blocked")
    return last


@pytest.mark.parametrize("tls", [False, True], ids=["clear", "tls"])
def test_a_handler_that_never_reads_blocks_the_client_and_costs_no_memory(node, tmp_path, tls):
    context = server_context(Authority().issue("orders.shop"), tmp_path / "tls") if tls else None
    release = threading.Event()
    received = []

    def stubborn(connection):
        release.wait(60)
        received.append(sum(map(len, iter(lambda: connection.recv(MIB), b""))))

    total = 256 * MIB
    with serving(stubborn, context) as handler, intercepting(node, "orders", "--port", str(handler.port)) as cli:
        sock = node.open(tls=tls)
        ours, theirs = resident("self"), resident(cli.process.pid)
        pusher = Pusher(sock, total)
        taken = wait_stalled(pusher)
        assert taken < 16 * MIB
        assert resident("self") - ours < 12 * MIB
        assert resident(cli.process.pid) - theirs < 12 * MIB
        assert node.intercepts()
        release.set()
        pusher.join()
        sock.shutdown(socket.SHUT_WR)
        until(lambda: received, within=30, what="the handler to have read everything")
        assert received == [pusher.sent]
        assert pusher.sent >= total
        assert resident(cli.process.pid) - theirs < 20 * MIB
        sock.close()


def test_a_proxy_that_never_reads_blocks_the_handler_and_costs_no_memory(node):
    sent = []

    def generous(connection):
        chunk = bytes(256 * 1024)
        while sum(sent) < 256 * MIB:
            sent.append(connection.send(chunk))

    with serving(generous) as handler, intercepting(node, "orders", "--port", str(handler.port)) as cli:
        sock = node.open()
        ours, theirs = resident("self"), resident(cli.process.pid)
        until(lambda: sum(sent) > MIB, within=10, what="the first bytes")
        before = -1
        while before != (before := sum(sent)):
            time.sleep(0.3)
        assert before < 16 * MIB
        assert resident("self") - ours < 12 * MIB
        assert resident(cli.process.pid) - theirs < 12 * MIB
        sock.close()


@pytest.mark.alone
def test_stalled_connections_leave_others_their_speed(node):
    """Forty connections whose handler never reads, all of them full; the next ones go on."""
    release = threading.Event()
    threads = []

    def half_stubborn(connection):
        first = connection.recv(1)
        if first == b"s":
            thread = threading.Thread(target=_hold, args=(connection.dup(), release), daemon=True)
            threads.append(thread)
            thread.start()
            return
        connection.sendall(first)
        while data := connection.recv(65536):
            connection.sendall(data)

    with serving(half_stubborn) as handler, intercepting(node, "orders", "--port", str(handler.port)) as cli:
        before = resident(cli.process.pid)
        stuck = [node.open() for _ in range(40)]
        pushers = []
        for sock in stuck:
            sock.sendall(b"s")
            pushers.append(Pusher(sock, 64 * MIB))
        wait_stalled(*pushers)
        for _ in range(20):
            with node.open() as sock:
                began = time.monotonic()
                sock.sendall(b"ping")
                got = b""
                while len(got) < 4:
                    got += sock.recv(4)
                assert time.monotonic() - began < 1
        assert resident(cli.process.pid) - before < 40 * MIB
        release.set()
        for sock in stuck:
            sock.close()
        for thread in threads:
            thread.join(20)


def _hold(connection, release):
    release.wait(60)
    connection.close()
