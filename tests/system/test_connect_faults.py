"""Connections that a pod makes: what stops them, many at once, and what becomes of them when a part ends."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading

import pytest

from tests.harness.cli import sidestep
from tests.harness.peers import Server, http_app
from tests.harness.pod_world import connect, curl, orders
from tests.harness.processes import alive, child, descendants
from tests.harness.waiting import until

pytestmark = pytest.mark.long

ECHO = """
import asyncio, resource, sys
async def serve(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
async def main():
    server = await asyncio.start_server(serve, sys.argv[1], 0, backlog=2048)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
asyncio.run(main())
"""
MIB = 1024 * 1024


@pytest.fixture
def pod(tmp_path):
    with orders(tmp_path) as found:
        yield found


@contextlib.contextmanager
def echo(space):
    """A server in the client's namespace that says everything again; its port."""
    command = space.client.enter([sys.executable, "-c", ECHO, space.client_ip])
    with child(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        process.stdin.close()
        process.kill()


def through_socks(port, host, target):
    """A connection through the proxy, by name."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=60)
    name = host.encode()
    sock.sendall(b"\x05\x01\x00\x05\x01\x00\x03" + bytes((len(name),)) + name + target.to_bytes(2, "big"))
    answer = b""
    while len(answer) < 12:
        data = sock.recv(12 - len(answer))
        assert data, answer
        answer += data
    assert answer[:4] == b"\x05\0\x05\0"
    return sock


def rule(space, text):
    """A rule of nftables for what leaves the pod."""
    chain = "type filter hook output priority 0; policy accept; "
    space.pod.run("nft", f"table inet of_the_test {{\nchain out {{ {chain}{text}; }}\n}}")


def test_a_rule_of_the_pods_network_stops_it_as_it_stops_the_pod(pod, tmp_path):
    space, daemon = pod
    with (
        Server(http_app, name="db", netns=space.client, address=space.client_ip) as server,
        connect(daemon, tmp_path) as one,
    ):
        url = f"http://db:{server.port}/"
        assert curl(one.urls["ALL_PROXY"], url)[:2] == (0, "db\n")
        rule(space, f"tcp dport {server.port} drop")
        mine = subprocess.run(
            space.pod.enter(["curl", "-sS", "--max-time", "2", f"http://{space.client_ip}:{server.port}/"]),
            capture_output=True, timeout=30, check=False,
        )  # fmt: skip
        assert mine.returncode == 28
        before = len(server.connections)
        code, body, _ = curl(one.urls["HTTP_PROXY"], url)
        assert (code, len(server.connections)) == (0, before)
        told = f"{space.client_ip}:{server.port} did not answer within the time (20 s in all)"
        assert told in body
        assert told in one.said
        space.pod.run("nft", "delete", "table", "inet", "of_the_test")
        rule(space, f"tcp dport {server.port} reject with tcp reset")
        assert f"{space.client_ip}:{server.port} refused the connection" in curl(one.urls["HTTP_PROXY"], url)[1]
        rule(space, "udp dport 53 drop")
        assert "the pod's name servers do not answer" in curl(one.urls["HTTP_PROXY"], "http://other/")[1]


def test_a_thousand_connections_at_once(pod, tmp_path):
    space, daemon = pod
    opened = []

    async def one(port, target, number, ready, go):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        opened.append(writer)
        writer.write(b"\x05\x01\x00\x05\x01\x00\x03\x02db" + target.to_bytes(2, "big"))
        assert (await reader.readexactly(12))[:4] == b"\x05\0\x05\0"
        ready.release()
        await go.wait()
        said = b"connection %04d" % number
        writer.write(said)
        assert await reader.readexactly(len(said)) == said
        writer.write_eof()
        assert await reader.read() == b""

    async def all_of_them(port, target):
        ready, go = asyncio.Semaphore(0), asyncio.Event()
        tasks = [asyncio.ensure_future(one(port, target, number, ready, go)) for number in range(1000)]
        try:
            for _ in range(1000):
                waiting = asyncio.ensure_future(ready.acquire())
                done, _ = await asyncio.wait({waiting, *tasks}, return_when=asyncio.FIRST_COMPLETED, timeout=240)
                assert waiting in done
            go.set()
            await asyncio.wait_for(asyncio.gather(*tasks), 240)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for writer in opened:
                writer.close()
            await asyncio.gather(*(writer.wait_closed() for writer in opened), return_exceptions=True)

    with echo(space) as target, connect(daemon, tmp_path) as connection:
        proxy = daemon.status()["pods"][0]["proxy_pid"]
        try:
            asyncio.run(all_of_them(connection.port, target))
        except AssertionError:
            pytest.fail(connection.said)
        until(lambda: len(os.listdir(f"/proc/{proxy}/fd")) < 200, within=30, what="the proxy to close them")
        with through_socks(connection.port, "db", target) as sock:
            sock.sendall(b"still")
            assert sock.recv(5) == b"still"


def test_much_in_both_directions_arrives_as_it_was_sent(pod, tmp_path):
    space, daemon = pod
    size = 64 * MIB
    piece = random.Random(18).randbytes(MIB)
    with echo(space) as target, connect(daemon, tmp_path) as connection:
        sock = through_socks(connection.port, "db", target)
        with sock:
            sending = threading.Thread(target=lambda: [sock.sendall(piece) for _ in range(size // MIB)])
            sending.start()
            digest, received = hashlib.sha256(), 0
            while received < size:
                data = sock.recv(MIB)
                assert data
                digest.update(data)
                received += len(data)
            sending.join(20)
        expected = hashlib.sha256()
        for _ in range(size // MIB):
            expected.update(piece)
        assert digest.digest() == expected.digest()


def test_it_ends_with_its_session(pod, tmp_path):
    space, daemon = pod
    with echo(space) as target, connect(daemon, tmp_path) as connection:
        with through_socks(connection.port, "db", target) as sock:
            sock.sendall(b"hello")
            assert sock.recv(5) == b"hello"
            [session] = daemon.status()["intercepts"]
            assert (session["kind"], session["port"]) == ("access", "network")
            left = sidestep("leave", session["name"], "-n", "shop", socket=daemon.socket)
            assert left.code == 0, left.stderr
            with contextlib.suppress(ConnectionError):
                assert sock.recv(1) == b""
        assert connection.process.wait(30) == 1
        assert "has ended: ended by" in connection.said
        assert "Traceback" not in connection.said
    until(lambda: daemon.status()["pods"] == [], within=40, what="the pod to be a target no more")


def test_the_end_of_the_daemon_ends_it_and_leaves_nothing(pod, tmp_path):
    space, daemon = pod
    with echo(space) as target, connect(daemon, tmp_path) as connection:
        with through_socks(connection.port, "db", target) as sock:
            sock.sendall(b"hello")
            assert sock.recv(5) == b"hello"
            family = [daemon.pid, *descendants(daemon.pid)]
            os.kill(daemon.pid, signal.SIGKILL)
            with contextlib.suppress(ConnectionError):
                assert sock.recv(1) == b""
        until(lambda: not any(map(alive, family)), within=40, what="the daemon's processes to end")
        assert f":{target} " not in space.pod.run("ss", "-Htn", "state", "established")
        until(lambda: "The access to orders is interrupted: " in connection.said, within=30, what="a word of it")
        body = curl(connection.urls["HTTP_PROXY"], f"http://db:{target}/")[1]
        assert "no pod can be used now" in body
        assert "No connection to db" in connection.said
        assert "Traceback" not in connection.said
        assert connection.said.count("is interrupted") == 1


def test_a_daemon_that_comes_back_is_told_before_anything_is_asked(pod, tmp_path):
    space, daemon = pod
    with echo(space) as target, connect(daemon, tmp_path) as connection:
        daemon.kill()
        daemon.start()
        until(lambda: "The access to orders is back." in connection.said, within=60, what=lambda: connection.said)
        assert "The access to orders is interrupted: " in connection.said
        with through_socks(connection.port, "db", target) as sock:
            sock.sendall(b"again")
            assert sock.recv(5) == b"again"


def test_the_end_of_the_pods_proxy_ends_what_it_has_and_the_next_goes_on(pod, tmp_path):
    space, daemon = pod
    with echo(space) as target, connect(daemon, tmp_path) as connection:
        with through_socks(connection.port, "db", target) as sock:
            first = daemon.status()["pods"][0]["proxy_pid"]
            os.kill(first, signal.SIGKILL)
            with contextlib.suppress(ConnectionError):
                assert sock.recv(1) == b""
        until(lambda: daemon.status()["pods"][0]["proxy_pid"] not in (0, first), within=30, what="another proxy")
        with through_socks(connection.port, "db", target) as sock:
            sock.sendall(b"again")
            assert sock.recv(5) == b"again"
