"""Connections of a pod proxy for sessions: made, refused, given up, with real sockets on loopback."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct

import pytest

from sidestep.model.errors import PeerError, RefusedError
from sidestep.protocols import capsules
from sidestep.proxy.access import access_side, connecting, datagram_relay, resolving
from sidestep.proxy.access.access_side import AccessSide
from sidestep.proxy.control.messages import Dial, Dialed, UseNetwork
from sidestep.proxy.io.splice import Pipes
from sidestep.proxy.io.stream import PLAIN_READ
from tests.unit.proxy.access.name_server import NameServer
from tests.unit.proxy.looping import stepped

RESOLV_CONF = "nameserver 127.0.0.1\nsearch shop.test test\noptions ndots:2 timeout:1 attempts:2\n"


class Link:
    """The daemon, as a proxy tells it."""

    def __init__(self):
        self.sent = []
        self._seq = 0

    def next_seq(self):
        self._seq += 1
        return self._seq

    def send(self, message):
        self.sent.append(message)
        return True


class Pod:
    """A proxy's part, and a daemon's sockets to it."""

    def __init__(self, running):
        self.running = running
        self.link = Link()
        self.room = True
        self.retired = 0
        self.side = AccessSide(
            running.loop, self.link, Pipes(), has_room=lambda: self.room, retired=lambda: setattr(self, "retired", 1)
        )
        self._last = 0

    def use(self, resolv_conf=RESOLV_CONF, hosts="", **fields):
        self.side.use(UseNetwork(0, resolv_conf, hosts, **fields))

    def dial(self, host, port, protocol="tcp", *, allow_loopback=True):
        self._last += 1
        ours, theirs = socket.socketpair()
        ours.settimeout(20)
        try:
            self.side.dial(Dial(0, self._last, host, port, protocol, allow_loopback), theirs.detach())
        except BaseException:
            assert ours.recv(1) == b""  # the other end was closed
            ours.close()
            raise
        return ours

    def wait(self, until):
        assert self.running.run(until=until, within=20)

    def outcome(self):
        """What the daemon is told about the last one."""

        def told():
            return [each for each in self.link.sent if isinstance(each, Dialed) and each.stream == self._last]

        self.wait(told)
        [found] = told()
        assert (found.address == "") is (found.error != "")
        return found.error


@pytest.fixture
def pod():
    with stepped() as running:
        found = Pod(running)
        found.use()
        yield found
        found.side.abandon()
        assert len(found.side) == 0
        assert running.crashes == []


@contextlib.contextmanager
def listening(backlog=16):
    with socket.create_server(("127.0.0.1", 0), backlog=backlog) as server:
        server.settimeout(20)
        yield server, server.getsockname()[1]


def hung_up(sock):
    poll = select.poll()
    poll.register(sock, 0)
    return bool(poll.poll(0))


def test_bytes_and_ends_in_both_directions(pod):
    with listening() as (server, port), pod.dial("127.0.0.1", port) as ours:
        assert pod.outcome() == ""
        there, _ = server.accept()
        with there:
            there.settimeout(20)
            ours.sendall(b"question")
            ours.shutdown(socket.SHUT_WR)
            pod.wait(lambda: select.select([there], [], [], 0)[0])
            assert there.recv(100) == b"question"
            there.sendall(b"answer")
            assert not hung_up(ours)
        pod.wait(lambda: len(pod.side) == 0)
        assert ours.recv(100) == b"answer"
        assert ours.recv(100) == b""
    assert pod.retired


def test_a_reset_closes_both_directions_at_once(pod):
    with listening() as (server, port), pod.dial("127.0.0.1", port) as ours:
        assert pod.outcome() == ""
        there, _ = server.accept()
        there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        there.close()
        pod.wait(lambda: hung_up(ours))
        assert len(pod.side) == 0


def test_the_daemon_resets_by_closing(pod):
    with listening() as (server, port):
        ours = pod.dial("127.0.0.1", port)
        assert pod.outcome() == ""
        there, _ = server.accept()
        with there:
            ours.close()
            pod.wait(lambda: len(pod.side) == 0)
            with pytest.raises(ConnectionResetError):
                there.recv(1)


@contextlib.contextmanager
def silent():
    """A port of loopback whose SYNs are dropped: the queue of its listener is full."""
    with listening(backlog=0) as (server, port), contextlib.ExitStack() as clients:
        for _ in range(4):
            client = clients.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
        select.select([server], [], [], 5)
        yield port


def test_a_destination_that_never_answers(pod, monkeypatch):
    monkeypatch.setattr(connecting, "TIME", 0.5)
    with silent() as port, pod.dial("127.0.0.1", port) as ours:
        assert pod.outcome() == f"127.0.0.1:{port} did not answer within the time (0.5 s in all)"
        assert ours.recv(1) == b""


def test_the_daemon_gives_up_before_there_is_an_answer(pod):
    before = set(os.listdir("/proc/self/fd"))
    with silent() as port:
        ours = pod.dial("127.0.0.1", port)
        pod.running.run(within=0.1)
        assert len(pod.side) == 1
        ours.close()
        pod.wait(lambda: len(pod.side) == 0)
    assert set(os.listdir("/proc/self/fd")) == before
    assert pod.link.sent == []


@pytest.mark.parametrize(
    ("host", "allow", "reason"),
    [
        ("127.0.0.1", False, "the pod's own"),
        ("localhost", False, "the pod's own"),
        ("x.localhost", False, "the pod's own"),
        ("aliased", False, "the pod's own"),
        ("169.254.169.254", True, "link-local"),
        ("::ffff:169.254.169.254", True, "link-local"),
        ("192.0.2.9", True, "the node's own"),
        ("203.0.113.5", True, "outbound-deny"),
        ("listed", True, "outbound-deny"),
        ("0.0.0.0", True, "of no host"),
        ("fe80::1%lo", True, "link-local"),
    ],
)
def test_denied_destinations_get_no_packet(pod, host, allow, reason, monkeypatch):
    made = []
    monkeypatch.setattr(connecting.Connecting, "_connect", lambda *_, **__: made.append(1))
    pod.use(hosts="127.0.0.9 aliased\n203.0.113.6 listed\n", denied=("203.0.113.0/24",), node=("192.0.2.9",))
    with pod.dial(host, 80, allow_loopback=allow) as ours:
        assert reason in pod.outcome()
        assert ours.recv(1) == b""
    assert made == []


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("db", ["db.shop.test"]),
        ("cache", ["cache.shop.test", "cache.test"]),
        ("a.b.c", ["a.b.c"]),
        ("big", ["big.shop.test"]),
        ("broken", ["broken.shop.test", "broken.test"]),
        ("odd", ["odd.shop.test", "odd.test"]),
    ],
)
def test_names_are_looked_up_as_the_pod_does(pod, name, asked, monkeypatch):
    there = ("127.0.0.1",)
    records = {
        ("db.shop.test", "A"): there, ("cache.test", "A"): there, ("a.b.c", "A"): there, ("big.shop.test", "A"): there,
        ("broken.test", "A"): there, ("odd.test", "A"): there, ("odd.shop.test", "TXT"): (),
    }  # fmt: skip
    ways = {"big.shop.test": "truncated", "broken.shop.test": "fails"}
    with NameServer(records, ways) as server, listening() as (_, port):
        monkeypatch.setattr(resolving, "PORT", server.port)
        with pod.dial(name, port):
            assert pod.outcome() == ""
        found = list(dict.fromkeys(each for each, _ in server.asked))
        assert found == asked
        assert {kind for _, kind in server.asked} == {"A", "AAAA"}
        assert bool(server.over_tcp) is (name == "big")


@pytest.mark.parametrize(
    ("name", "ways", "told"),
    [
        ("nobody", {}, "the pod knows no host nobody (asked for nobody.shop.test, nobody.test, nobody)"),
        ("mute", {"mute.shop.test": "silent"}, "name servers do not answer (127.0.0.1; asked for mute.shop.test)"),
        ("ill", {f"ill{end}": "fails" for end in (".shop.test", ".test", "")}, "cannot tell the address of ill"),
        ("bad", {"bad.shop.test": "garbage"}, "do not answer"),
        ("a..b", {}, "is no name of a host"),
    ],
)  # fmt: skip
def test_names_that_are_not_found(pod, name, ways, told, monkeypatch):
    with NameServer({}, ways) as server:
        monkeypatch.setattr(resolving, "PORT", server.port)
        with pod.dial(name, 80) as ours:
            assert told in pod.outcome()
            assert ours.recv(1) == b""


def test_the_next_server_is_asked(pod, monkeypatch):
    pod.use("nameserver 127.0.0.2\nnameserver 127.0.0.1\noptions timeout:1\n")
    with NameServer({("db", "A"): ("127.0.0.1",)}) as server, listening() as (_, port):
        monkeypatch.setattr(resolving, "PORT", server.port)
        with pod.dial("db", port):
            assert pod.outcome() == ""


def test_a_server_that_drops_questions_about_ipv6_does_not_cost_its_timeout(pod, monkeypatch):
    pod.use("nameserver 127.0.0.1\nsearch test\noptions timeout:30 attempts:1\n")  # all of it may take 20
    with NameServer({("db.test", "A"): ("127.0.0.1",)}, {"db.test": "half"}) as server, listening() as (_, port):
        monkeypatch.setattr(resolving, "PORT", server.port)
        with pod.dial("db", port):
            assert pod.outcome() == ""
    assert set(server.asked) == {("db.test", "A"), ("db.test", "AAAA")}


def test_each_address_of_a_name_is_tried_and_judged(pod):
    with listening() as (_, port):
        pod.use(hosts="127.0.0.3 db\n203.0.113.7 db\n127.0.0.1 db\n127.0.0.3 dead\n", denied=("203.0.113.0/24",))
        with pod.dial("db", port):
            assert pod.outcome() == ""
        with pod.dial("dead", port):
            assert pod.outcome() == f"dead: 127.0.0.3:{port} refused the connection"


def test_datagrams(pod):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as there:
        there.bind(("127.0.0.1", 0))
        there.settimeout(20)
        with pod.dial("127.0.0.1", there.getsockname()[1], "udp") as ours:
            assert pod.outcome() == ""
            ours.sendall(capsules.encode(b"one") + capsules.encode(b"two")[:2])
            pod.wait(lambda: select.select([there], [], [], 0)[0])
            data, peer = there.recvfrom(100)
            assert data == b"one"
            ours.sendall(capsules.encode(b"two")[2:])
            pod.wait(lambda: select.select([there], [], [], 0)[0])
            assert there.recv(100) == b"two"
            there.sendto(b"answer", peer)
            pod.wait(lambda: select.select([ours], [], [], 0)[0])
            assert capsules.Decoder().feed(ours.recv(100)) == [b"answer"]
        pod.wait(lambda: len(pod.side) == 0)


def test_flows_end_when_idle_and_survive_a_port_where_nobody_is(pod, monkeypatch):
    monkeypatch.setattr(datagram_relay, "IDLE", 0.5)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pod.dial("127.0.0.1", port, "udp") as ours:
        assert pod.outcome() == ""
        for _ in range(3):
            ours.sendall(capsules.encode(b"hello"))
            pod.running.run(within=0.05)
        assert len(pod.side) == 1
        pod.wait(lambda: len(pod.side) == 0)
        assert hung_up(ours)


def test_many_small_datagrams_are_taken_a_few_at_a_time(pod):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as there:
        there.bind(("127.0.0.1", 0))
        with pod.dial("127.0.0.1", there.getsockname()[1], "udp") as ours:
            assert pod.outcome() == ""
            [outgoing] = pod.side._present
            ours.sendall(capsules.encode(b"") * 30_000)
            pod.wait(lambda: outgoing._stream.full < PLAIN_READ)
            pod.wait(lambda: not select.select([outgoing._stream.fd], [], [], 0)[0])


def test_what_is_no_capsule_ends_the_flow(pod):
    with pod.dial("127.0.0.1", 9, "udp") as ours:
        assert pod.outcome() == ""
        ours.sendall(b"\x00\xff" + b"\xff" * 40)
        pod.wait(lambda: len(pod.side) == 0)


def test_what_cannot_be_begun_leaves_nothing(pod, monkeypatch):
    with stepped() as running, pytest.raises(PeerError):
        Pod(running).dial("127.0.0.1", 80)  # before `UseNetwork`
    pod.room = False
    with pytest.raises(RefusedError, match="as many connections"):
        pod.dial("127.0.0.1", 80)
    pod.room = True
    with pytest.raises(PeerError):
        pod.dial("127.0.0.1", 80, "sctp")
    with pytest.raises(ValueError, match="network"):
        pod.use(denied=("shop",))
    monkeypatch.setattr(access_side, "MAX_CONNECTIONS", 0)
    with pytest.raises(RefusedError):
        pod.dial("127.0.0.1", 80)
    assert len(pod.side) == 0
