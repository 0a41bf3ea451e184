"""UDP: a real DNS server behind an intercept, and beside a wiretap."""

import contextlib
import os
import random
import signal
import socket
import struct
import threading

import pytest

from tests.harness import manifests
from tests.harness.cli import intercept, sidestep
from tests.harness.namespaces import pod_namespace
from tests.harness.node import node
from tests.harness.processes import Process
from tests.harness.waiting import until

pytestmark = pytest.mark.privileged

PORT = 5353
QUESTION = struct.Struct("!HHHHHH")


def query(number, identity):
    """A DNS query (RFC 1035) for A of h<number>.shop.test."""
    name = b"".join(bytes([len(label)]) + label for label in (b"h%d" % number, b"shop", b"test")) + b"\0"
    return QUESTION.pack(identity, 0x0100, 1, 0, 0, 0) + name + struct.pack("!HH", 1, 1)


def answered(data, number, identity):
    """The address in an answer to `query`, None if it answers something else."""
    if len(data) < 12 or QUESTION.unpack_from(data)[0] != identity or QUESTION.unpack_from(data)[3] < 1:
        return None
    question = query(number, identity)[12:]
    if data[12 : 12 + len(question)] != question:
        return None
    return socket.inet_ntoa(data[-4:]) if QUESTION.unpack_from(data)[3] == 1 else None


class Dns:
    """The developer's DNS server: 203.0.113.x for every name, x from the name; remembers what it was asked."""

    def __init__(self, *, answers=True):
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.sock.bind(("127.0.0.1", 0))
        self.port = self.sock.getsockname()[1]
        self.received = []
        self.answers = answers
        self.thread = threading.Thread(target=self.serve)

    def serve(self):
        while True:
            data, peer = self.sock.recvfrom(65535)
            if data == b"stop":
                return
            self.received.append(data)
            if self.answers:
                self.sock.sendto(self.answer(data), peer)

    @staticmethod
    def answer(data):
        number = int(data[14 : 13 + data[12]])
        flags = QUESTION.pack(QUESTION.unpack_from(data)[0], 0x8180, 1, 1, 0, 0)
        record = struct.pack("!HHHIH", 0xC00C, 1, 1, 60, 4) + bytes([203, 0, 113, number % 250])
        return flags + data[12:] + record

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *exception):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"stop", ("127.0.0.1", self.port))
        self.thread.join(10)
        self.sock.close()


@contextlib.contextmanager
def dns_pod(folder):
    """A pod with dnsmasq on 5353 (198.51.100.7 for every name), and the node daemon."""
    folder.mkdir(parents=True, exist_ok=True)
    with pod_namespace() as space, node(folder, start=False) as daemon:
        command = ["dnsmasq", "-k", "-p", str(PORT), "-C", "/dev/null", "--no-resolv", "--no-hosts", "--bind-dynamic"]
        command += ["--address=/shop.test/198.51.100.7", "--log-facility=-", "--user=root", "--pid-file="]
        with Process(space.pod.enter(command), log=folder / "dnsmasq.log") as app:
            daemon.write(
                "dns.yaml",
                manifests.pod("dns", space, ports=[manifests.container_port(PORT, "dns", "UDP")]),
            )
            daemon.start()
            until(
                lambda: not app.running or f":{PORT}" in space.pod.run("ss", "-Hlnu"),
                within=10,
                what=lambda: f"dnsmasq\n{app.text()}",
            )
            yield space, daemon


def client(space, address, netns="client"):
    def make():
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
        sock.connect((address, PORT))
        sock.settimeout(2)
        return sock

    return getattr(space, netns).call(make)


def ask(sock, number, tries=4):
    """One question; retransmitted like a resolver does. Returns the answer's address."""
    identity = random.randrange(65536)
    for _ in range(tries):
        sock.send(query(number, identity))
        try:
            while True:
                found = answered(sock.recv(4096), number, identity)
                if found is not None:
                    return found
        except TimeoutError:
            continue
    return None


def test_ten_thousand_queries_from_fifty_sockets_are_answered_by_the_handler(tmp_path):
    with dns_pod(tmp_path) as (space, daemon), Dns() as handler:
        with client(space, space.ip) as sock:
            assert ask(sock, 1) == "198.51.100.7"
        wrong = []

        def many(index):
            address = space.ip6 if index % 2 else space.ip
            with client(space, address) as sock:
                for number in range(200):
                    name = index * 200 + number
                    found = ask(sock, name)
                    if found != f"203.0.113.{name % 250}":
                        wrong.append((name, found))

        with intercept(daemon, "dns", "--port", f"{handler.port}:{PORT}/UDP"):
            threads = [threading.Thread(target=many, args=(index,)) for index in range(50)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(100)
            assert not wrong, wrong[:10]
            with client(space, space.ip, "pod") as sock:
                assert ask(sock, 3) == "198.51.100.7", "the pod's own questions reach the app"

        def own_answer():
            with client(space, space.ip) as sock:
                return ask(sock, 2, tries=1) == "198.51.100.7"

        until(own_answer, within=5, what="the app's own answers")


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_large_fragmented_and_empty_datagrams_keep_their_boundaries(tmp_path, family):
    with dns_pod(tmp_path) as (space, daemon), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handler:
        handler.bind(("127.0.0.1", 0))
        handler.settimeout(5)
        with (
            intercept(daemon, "dns", "--port", f"{handler.getsockname()[1]}:{PORT}/UDP"),
            client(space, space.ip if family == "ipv4" else space.ip6) as sock,
        ):
            for size in (0, 1, 1472, 2400, 30_000):
                payload = bytes(index % 251 for index in range(size))
                sock.send(payload)
                got, peer = handler.recvfrom(65535)
                assert got == payload
                handler.sendto(payload[::-1], peer)
                assert sock.recv(65535) == payload[::-1]


def test_a_handler_that_is_gone_and_comes_back(tmp_path):
    with dns_pod(tmp_path) as (space, daemon), Dns() as first:
        port = first.port
        with intercept(daemon, "dns", "--port", f"{port}:{PORT}/UDP"), client(space, space.ip) as sock:
            assert ask(sock, 4) == "203.0.113.4"
            first.answers = False
            assert ask(sock, 5, tries=1) is None
            first.answers = True
            assert ask(sock, 6) == "203.0.113.6"


def test_a_filter_on_a_udp_port_is_refused(tmp_path):
    with dns_pod(tmp_path) as (_, daemon):
        words = ["intercept", "dns", "-n", "shop", "--port", f"1:{PORT}/UDP", "--http-header", "x=y"]
        done = sidestep(*words, socket=daemon.socket)
        assert done.code == 1
        assert "UDP" in done.error


def test_the_proxy_is_killed_and_datagrams_flow_again(tmp_path):
    with (
        dns_pod(tmp_path) as (space, daemon),
        Dns() as handler,
        intercept(daemon, "dns", "--port", f"{handler.port}:{PORT}/UDP"),
        client(space, space.ip) as sock,
    ):
        assert ask(sock, 7) == "203.0.113.7"
        before = daemon.proxy(space.pod)
        os.kill(before, signal.SIGKILL)
        daemon.proxy(space.pod, but=before)
        assert ask(sock, 8) == "203.0.113.8"


def wiretap(daemon, *words):
    """`sidestep wiretap dns`, running."""
    return intercept(daemon, "dns", *words, command="wiretap")


def test_a_wiretap_copies_every_datagram_and_the_app_answers(tmp_path):
    with (
        dns_pod(tmp_path) as (space, daemon),
        Dns() as handler,
        wiretap(daemon, "--port", f"{handler.port}:{PORT}/UDP"),
        client(space, space.ip) as four,
        client(space, space.ip6) as six,
    ):
        for number in range(50):
            assert ask(four if number % 2 else six, number) == "198.51.100.7"
        until(lambda: len(handler.received) >= 50, within=5, what="the copies")
        copied = {data[12 : 14 + data[12]] for data in handler.received}
        assert len(copied) == 50
        assert len(handler.received) == 50


def test_a_wiretap_beside_an_intercept_gets_what_the_handler_answers(tmp_path):
    with (
        dns_pod(tmp_path) as (space, daemon),
        Dns() as handler,
        Dns() as tap,
        intercept(daemon, "dns", "--port", f"{handler.port}:{PORT}/UDP"),
        wiretap(daemon, "--port", f"{tap.port}:{PORT}/UDP"),
        client(space, space.ip) as sock,
    ):
        for number in range(20):
            assert ask(sock, number) == f"203.0.113.{number}"
        until(lambda: len(tap.received) >= 20, within=5, what="the copies")
        assert sorted(tap.received) == sorted(handler.received)
        assert len(tap.received) == 20


def test_a_socket_that_somebody_in_the_pod_ends_is_replaced_and_datagrams_flow_again(tmp_path):
    with (
        dns_pod(tmp_path) as (space, daemon),
        Dns() as handler,
        intercept(daemon, "dns", "--port", f"{handler.port}:{PORT}/UDP"),
        client(space, space.ip) as sock,
    ):
        assert ask(sock, 9) == "203.0.113.9"
        proxy = daemon.proxy(space.pod)
        ours = next(line.split()[3] for line in space.pod.run("ss", "-Hnau").splitlines() if "ffff:127.0.0.1" in line)
        assert space.pod.run("ss", "-KHau", "sport", "=", f":{ours.rpartition(':')[2]}")
        space.pod.run("ss", "-KHaw")  # raw sockets are what answers leave by
        until(lambda: ask(sock, 10, tries=1) == "203.0.113.10", within=10, what="the handler to answer again")
        assert daemon.proxy(space.pod) == proxy
