"""The worker with its real loop, sockets and control channel, stepped by the test; the test plays the daemon."""

import contextlib
import os
import select
import socket
import ssl
import struct
import threading
import time
from ipaddress import IPv4Network

import msgspec
import pytest

from sidestep.aio.pulse import Pulse, Watched
from sidestep.engine.leg import Leg, Role
from sidestep.model.condition import ConditionType
from sidestep.proxy.connection import datagram_flow, datagrams
from sidestep.proxy.connection.datagrams import Datagrams
from sidestep.proxy.connection.endpoints import ConnectionInfo, Endpoints
from sidestep.proxy.connection.live_ports import LivePort
from sidestep.proxy.connection.protocol_probe import ProbeResult
from sidestep.proxy.control import messages
from sidestep.proxy.control.channel import ControlChannel
from sidestep.proxy.io.loop import READ, Loop
from sidestep.proxy.runtime.worker import Worker
from sidestep.snapshots.filter_row import FilterRow
from sidestep.snapshots.hindrance import Hindrance
from sidestep.snapshots.ports import PortSnapshot, RuleSnapshot
from tests.harness.authority import Authority
from tests.harness.peers import server_context

AUTHORITY = Authority()
APP = AUTHORITY.issue("app.test")
RESET = struct.pack("ii", 1, 0)


class Scene:
    """A worker, an app's listener, and clients that the worker is handed as if they had been accepted."""

    def __init__(self, stack):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.daemon = stack.enter_context(contextlib.closing(ControlChannel(ours, receives=messages.FromProxy)))
        watched = stack.enter_context(contextlib.closing(Watched()))
        pulse = stack.enter_context(contextlib.closing(Pulse(os.dup(watched.fd))))
        self.worker = Worker(ControlChannel(theirs), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), pulse)
        stack.callback(self.worker._loop.close)
        # What was closed in an orderly way lingers for a while; it is seen out.
        stack.callback(lambda: self.run(lambda: len(self.worker._loop._callbacks) <= 1, within=3.0))
        stack.callback(self.worker._drain_over)
        self.worker._link.watch()
        stack.callback(self.worker._link._channel.close)
        self.app = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.app.settimeout(5)
        self.number = self.app.getsockname()[1]
        self.stack = stack

    def port(self, *, tls="never", rules=(), **fields):
        return LivePort(PortSnapshot(self.number, "tcp", tls, "never", rules, **fields))

    def client(self, port, first=b""):
        """A client's end; `first` is there before the worker looks. Call `accept` to have it judged."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            client = self.stack.enter_context(socket.create_connection(server.getsockname()))
            sock, address = server.accept()
        client.settimeout(5)
        sock.setblocking(False)
        client.sendall(first)
        if first:
            select.select([sock], [], [], 5)
        self.accept = lambda: self.worker._accepted(
            port, sock, Endpoints(address[0], address[1], "127.0.0.1", self.number)
        )
        return client

    def run(self, until=lambda: False, within=1.0):
        """Step the loop until something holds; tell the processor time it took."""
        loop = self.worker._loop
        deadline = time.monotonic() + within
        began = time.process_time()
        while not until() and time.monotonic() < deadline:
            loop.later(0.02, loop.stop)
            loop.run()
        return time.process_time() - began


@pytest.fixture
def scene():
    with contextlib.ExitStack() as stack:
        yield Scene(stack)


def hello(name="app.test"):
    """A whole ClientHello."""
    out = ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = name is not None
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name).do_handshake()
    return out.read()


@pytest.mark.parametrize("first", [b"GE", b"\x16\x03\x01"])
def test_a_client_that_ends_within_its_first_message_costs_nothing_and_is_a_wire(scene, first):
    client = scene.client(scene.port(), first)
    scene.accept()
    client.shutdown(socket.SHUT_WR)
    scene.run(lambda: scene.worker._connections.relayed)
    app, _ = scene.app.accept()
    with app:
        assert scene.run(within=0.5) < 0.25
        app.settimeout(5)
        assert app.recv(10) == first
        assert app.recv(10) == b""


def test_a_client_that_breaks_during_the_handshake_with_the_app_is_gone(scene):
    fd = os.memfd_create("test")
    os.write(fd, APP.key + APP.chain)
    scene.worker.credentials.add("identity", "identity", fd)
    client = scene.client(scene.port(tls="always", identity="identity", skip_verify=True), hello())
    scene.accept()
    scene.run(lambda: select.select([scene.app], [], [], 0)[0])
    app, _ = scene.app.accept()
    with app:
        scene.run(lambda: select.select([app], [], [], 0)[0])
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        client.close()
        assert scene.run(within=0.5) < 0.25
        assert not scene.worker._connections.setups
        app.settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            while app.recv(4096):
                pass
    assert not select.select([scene.app], [], [], 0)[0]  # and was not dialled again
    scene.worker.credentials.keep(set())


def test_a_first_message_with_much_behind_it_is_still_judged(scene):
    body = bytes(200_000)
    head = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
    client = scene.client(scene.port())
    client.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while sent < len(head + body):
            sent += client.send((head + body)[sent:])
    scene.accept()
    scene.run(lambda: scene.worker._connections.relayed)
    (conductor,) = scene.worker._connections.relayed
    assert conductor.relay.anomaly is None


def test_without_the_daemon_a_request_for_a_handler_goes_to_the_app_at_once(scene):
    scene.daemon.close()
    scene.run(lambda: scene.worker._draining)
    client = scene.client(scene.port(global_uid="u"), b"hello")
    scene.accept()
    scene.run(lambda: select.select([scene.app], [], [], 0)[0])
    app, _ = scene.app.accept()
    with app:
        scene.run(lambda: select.select([app], [], [], 0)[0])
        app.settimeout(0)
        assert app.recv(10) == b"hello"
        client.close()


def test_a_daemon_that_does_not_listen_is_not_asked_without_bound(scene):
    answers = []
    for _ in range(5000):
        scene.worker._handlers.ask(
            answers.append, uid="u", port=1, protocol="udp", tls=False, server_name="", client=("127.0.0.1", 1)
        )
    scene.run(lambda: len(answers) > 3000)
    assert not scene.worker._draining
    assert set(answers) == {None}


def test_a_process_of_several_keeps_to_its_part(scene):
    """Of what the whole pod proxy may use; told the same again it changes nothing."""
    worker = scene.worker
    whole = (worker.backlog.total, worker.ledger.limits, worker.ledger.inspection.total)
    for workers in (4, 4, 1):
        worker._configure(messages.Configure(0, generation=1, ports=(), workers=workers))
        assert worker.backlog.total == whole[0] // workers
        assert worker.ledger.inspection.total == whole[2] // workers
        assert worker.ledger.limits.together == whole[1].together // workers
        assert worker.ledger.limits.copy == whole[1].copy
        assert worker._log._bucket._rate * workers == worker.records._bucket._rate * workers == 2 * 1024 * 1024
        assert worker.ledger.gate._budget._limits.share * workers == pytest.approx(0.1)
    assert worker.ledger.limits == whole[1]


def test_the_earliest_of_two_deadlines_for_draining_holds(scene):
    """One that leaves others has a day; when the daemon is gone, it ends with it."""
    client = scene.client(scene.port(), b"GET / HTTP/1.1\r\n")
    scene.accept()
    worker = scene.worker
    worker._drain(86_400.0)
    scene.run(lambda: worker._connections.relayed)
    worker._drain_timeout = 0.0
    worker._orphaned()
    scene.run(lambda: not worker._connections.count, within=5.0)
    assert not worker._connections.count
    client.close()


def test_one_that_leaves_others_keeps_its_connections_and_closes_its_listeners_at_once(scene):
    worker, client = scene.worker, scene.client(scene.port(), b"GET / HTTP/1.1\r\n")
    scene.accept()
    scene.run(lambda: worker._connections.relayed)
    worker._configure(messages.Configure(0, generation=1, ports=(scene.port().snapshot,), workers=2))
    worker._obey(messages.Listen(0, scene.number, "tcp"), os.dup(scene.app.fileno()))
    worker._obey(messages.Drain(0, 60.0, leave=True), None)
    assert not worker._listeners._acceptors
    assert not worker._listeners.are_retiring
    client.sendall(b"Host: a\r\n\r\n")
    scene.run(lambda: select.select([scene.app], [], [], 0)[0], within=5.0)
    app, _ = scene.app.accept()
    with app:
        scene.run(lambda: select.select([app], [], [], 0)[0], within=5.0)
        assert app.recv(100).startswith(b"GET / ")
        assert worker._connections.count == 1


def test_an_idle_connection_of_a_draining_proxy_ends_without_a_reset(scene):
    client = scene.client(scene.port(), b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    scene.accept()
    scene.run(lambda: select.select([scene.app], [], [], 0)[0])
    app, _ = scene.app.accept()
    with app:
        app.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        scene.run(lambda: select.select([client], [], [], 0)[0])
        assert client.recv(100).endswith(b"\r\n\r\n")

        def cross():
            scene.worker._connections.retire_idle(scene.worker._loop.now)
            client.sendall(b"GET /late HTTP/1.1\r\nHost: a\r\n\r\n")

        scene.worker._draining = True
        scene.worker._loop.later(0.0, cross)
        began = time.monotonic()
        scene.worker._loop.run()  # as long as the process would live
        assert time.monotonic() - began > 0.5
        assert client.recv(100) == b""
        app.recv(100)
        assert app.recv(100) == b""


def test_what_clients_said_is_made_printable(scene):
    port = scene.port()
    scene.worker.report(port, ConditionType.ALPN_UNSUPPORTED, "offered \x1b[2J\n" + "x" * 100_000)
    received = scene.daemon.receive()
    assert received[0].text.isprintable()
    assert len(received[0].text) <= 2048


def test_clients_cannot_make_a_condition_come_and_go_all_the_time(scene):
    port, kind = scene.port(), ConditionType.UPSTREAM_UNVERIFIED
    for _ in range(100):
        scene.worker.report(port, kind, "not verified")
        scene.worker.report(port, kind, "")
    told = []

    def cleared():
        while (received := scene.daemon.receive()) is not None:
            told.append(received[0].text)
        return told and not told[-1]

    scene.run(cleared, within=5)
    assert told == ["not verified", ""]


def test_a_condition_that_is_met_again_is_not_taken_back(scene):
    port, kind = scene.port(), ConditionType.UPSTREAM_UNVERIFIED
    for text in ("not verified", "", "not verified"):
        scene.worker.report(port, kind, text)
    assert not port.clearing
    assert list(port.conditions) == [kind]


def test_a_bug_in_an_owner_s_end_does_not_end_the_others(scene, capfd):
    class Broken:
        def abandon(self):
            raise RuntimeError("again")

    scene.worker._crashed(Broken(), ValueError("once"))
    assert "ValueError: once" in capfd.readouterr().err


def test_events_of_a_closed_descriptor_do_not_reach_its_successor():
    with contextlib.ExitStack() as stack:
        loop = Loop(on_crash=lambda owner, error: None)
        stack.callback(loop.close)
        pairs = [stack.enter_context(sock) for _ in range(3) for sock in socket.socketpair()]
        watched, (quiet, _) = (pairs[0], pairs[2]), pairs[4:]
        pairs[1].sendall(b"x")
        pairs[3].sendall(b"x")
        called = []

        def replace(_mask):
            """The first of two events of one batch: the other's descriptor is closed, its number used again."""
            called.append("first")
            for sock in watched:
                loop.remove(sock.fileno())
                os.dup2(quiet.fileno(), sock.fileno())
                loop.add(sock.fileno(), lambda mask: called.append("stale"), READ)
            loop.later(0.05, loop.stop)

        for sock in watched:
            loop.add(sock.fileno(), replace, READ)
        loop.run()
        assert called == ["first"]


def test_a_flood_of_datagrams_from_many_sources_asks_for_a_bounded_number_of_streams():
    loop = Loop(on_crash=lambda owner, error: None)
    asked = []
    udp = Datagrams(loop, lambda key, done: asked.append(done) or (lambda: None))
    key = ("u", 53, "10.0.0.1", 1000, "10.0.0.2")
    udp._carry(key, b"mine", answers=True)
    for number in range(3 * datagrams.MAX_FLOWS):
        udp._carry(("u", 53, f"10.1.{number >> 8}.{number & 255}", 1000, "10.0.0.2"), b"x", answers=True)
    assert len(asked) == datagrams.MAX_OPENING
    assert key in udp._flows
    for done in asked[1:]:
        done(None)
    assert udp.opening == 1
    for number in range(datagram_flow.HELD_TOGETHER // datagram_flow.HELD * 2):
        for _ in range(6):
            udp._carry(("u", 53, "10.0.0.3", number, "10.0.0.2"), bytes(60_000), answers=True)
    assert udp.held <= datagram_flow.HELD_TOGETHER + 65_536
    udp.close()
    assert (udp.held, udp.opening, udp.flows) == (0, 0, 0)
    loop.close()


def test_words_before_a_quick_end_inside_tls_reach_the_app(scene):
    """The app chooses no protocol, so the client's words tell; here they end before they do."""
    fd = os.memfd_create("test")
    os.write(fd, APP.key + APP.chain)
    scene.worker.credentials.add("identity", "identity", fd)
    port = scene.port(tls="always", identity="identity", skip_verify=True)
    client = scene.client(port)
    scene.accept()
    found = []

    def serve():
        sock, _ = scene.app.accept()
        with server_context(APP, alpn=()).wrap_socket(sock, server_side=True) as app:
            app.settimeout(5)
            found.append(app.recv(10))
            found.append(app.recv(10))

    def speak():
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        sock = scene.stack.enter_context(context.wrap_socket(client, server_hostname="app.test"))
        sock.sendall(b"GET")
        with contextlib.suppress(OSError):
            sock.unwrap()

    threads = [threading.Thread(target=serve), threading.Thread(target=speak)]
    for thread in threads:
        thread.start()
    scene.run(lambda: not any(thread.is_alive() for thread in threads), within=8)
    for thread in threads:
        thread.join(10)
    assert found == [b"GET", b""]
    scene.run(lambda: not scene.worker._connections.relayed, within=3)
    scene.worker.credentials.keep(set())


@pytest.mark.parametrize("name", ["", "other.test", "app.test"])
def test_without_a_server_name_the_app_is_verified_by_the_port_s_or_not_at_all(scene, name):
    for kind, pem in (("identity", APP.key + APP.chain), ("trust", AUTHORITY.pem)):
        fd = os.memfd_create("test")
        os.write(fd, pem)
        scene.worker.credentials.add(kind, kind, fd)
    port = scene.port(tls="always", identity="identity", upstream_trust="trust", upstream_name=name)
    scene.client(port, hello(None))
    scene.accept()
    ended = threading.Event()

    def serve():
        with contextlib.suppress(OSError):
            sock, _ = scene.app.accept()
            with server_context(APP, alpn=()).wrap_socket(sock, server_side=True):
                ended.wait(5)

    thread = threading.Thread(target=serve)
    thread.start()
    scene.run(
        lambda: (
            port.conditions
            or (scene.worker._connections.setups and not next(iter(scene.worker._connections.setups))._ends.client)
        ),
        within=3,
    )
    assert list(port.conditions) == ([] if name == "app.test" else [ConditionType.UPSTREAM_UNVERIFIED])
    ended.set()
    thread.join(10)
    scene.worker._drain_over()
    scene.run(within=0.1)
    scene.worker.credentials.keep(set())


DEV = RuleSnapshot("u", "shop/dev", "intercept", (FilterRow("header", "exact", "x-dev", "ada"),), divert_probes=False)
MATCH = b"GET / HTTP/1.1\r\nHost: a\r\nx-dev: ada\r\n\r\n"


@pytest.fixture
def greeting(scene):
    """A port with a filter whose app begins; its first client waited for, then heard `words`."""
    scene.worker.detection_timeout = 0.2
    port = LivePort(PortSnapshot(scene.number, "tcp", "never", "never", (DEV,)))

    def greet(words=b"220 ready\r\n"):
        client = scene.client(port)
        scene.accept()
        scene.run(lambda: select.select([scene.app], [], [], 0)[0])
        app = scene.stack.enter_context(scene.app.accept()[0])
        app.sendall(words)
        scene.run(lambda: select.select([client], [], [], 0)[0], within=5)
        assert client.recv(100) == words
        scene.worker.detection_timeout = 60.0
        return port

    return greet


def dialled(scene, within=5.0):
    scene.run(lambda: select.select([scene.app], [], [], 0)[0], within=within)
    return bool(select.select([scene.app], [], [], 0)[0])


def test_the_clients_of_an_app_that_greets_do_not_wait(scene, greeting):
    port = greeting()
    for _ in range(2):
        client = scene.client(port)
        scene.accept()
        assert dialled(scene)
        with scene.app.accept()[0] as app:
            app.sendall(b"220 ready\r\n")
            scene.run(lambda c=client: select.select([c], [], [], 0)[0], within=5)
            assert client.recv(100) == b"220 ready\r\n"


@pytest.mark.parametrize("there", [True, False], ids=["before it is accepted", "after the dial"])
def test_a_client_that_begins_is_judged_although_the_app_greets(scene, greeting, there):
    port = greeting()
    client = scene.client(port, MATCH if there else b"")
    scene.accept()
    if not there:
        assert dialled(scene)
        app = scene.stack.enter_context(scene.app.accept()[0])
        client.sendall(MATCH)
        app.sendall(b"220 ready\r\n")  # at the same moment: the client's words count
    asked = []

    def opened():
        while received := scene.daemon.receive():
            asked.append(received[0])
        return any(isinstance(each, messages.Open) for each in asked)

    scene.run(opened, within=5)
    assert opened()
    assert not port.server_first
    scene.client(port)
    scene.accept()
    assert not dialled(scene, within=0.3)  # contradicted: the next silent client is waited for again


@pytest.mark.parametrize("words", [b"HTTP/1.1 408 Request Timeout\r\n\r\n", b"\0\0\0\4\0\0\0\0\0"])
def test_http_that_times_out_or_begins_with_settings_is_no_greeting(scene, greeting, words):
    assert not greeting(words).server_first


def test_what_is_known_of_who_begins_ends_with_the_app_and_with_the_snapshot(greeting):
    port = greeting()
    port.replace(port.snapshot)
    assert port.server_first
    port.replace(msgspec.structs.replace(port.snapshot, app="another"))
    assert not port.server_first
    port.server_first = True
    port.replace(msgspec.structs.replace(port.snapshot, rules=()))
    assert not port.server_first


class Daemon:
    """What the test's end of the control channel has received, and answers."""

    def __init__(self, scene):
        self.scene = scene
        self.asked = []

    def read(self, *, answer=True):
        while received := self.scene.daemon.receive():
            message = received[0]
            self.asked.append(message)
            if answer and self.scene.daemon._codec.wants_answer(message):
                self.scene.daemon.acknowledge(message)

    def questions(self, kind):
        return [each for each in self.asked if isinstance(each, kind)]


def ask(scene, kind, answers):
    """One question of a kind; its outcome is appended to `answers`."""
    worker = scene.worker
    if kind is messages.NameClient:
        worker._naming.name(Endpoints("10.0.0.1", 1, "10.0.0.2", scene.number), "127.0.0.2", 2, answers.append)
    else:
        worker._handlers.ask(answers.append, uid="u", port=1, protocol="http/1.1", client=("10.0.0.1", 1))


@pytest.mark.alone
@pytest.mark.parametrize("kind", [messages.NameClient, messages.Open])
def test_after_one_unanswered_question_none_waits_until_the_daemon_answers_again(scene, kind):
    daemon = Daemon(scene)
    answers = []
    for _ in range(20):
        ask(scene, kind, answers)
    scene.run(lambda: answers, within=5)
    assert not any(answers)
    assert len(answers) == 20  # all that had waited are told with the first
    daemon.read(answer=False)
    began = time.monotonic()
    for _ in range(20):
        ask(scene, kind, answers)
    scene.run(lambda: len(answers) == 40, within=5)
    assert time.monotonic() - began < 0.9
    daemon.read(answer=False)
    assert len(daemon.questions(kind)) == 20  # the others were not asked
    scene.daemon.acknowledge(daemon.asked[0])
    scene.run(lambda: not scene.worker._link.breaker.is_silent, within=5)
    ask(scene, kind, answers)
    scene.run(lambda: daemon.read() or len(daemon.questions(kind)) == 21, within=5)
    assert len(daemon.questions(kind)) == 21


@pytest.mark.alone
def test_a_daemon_that_answers_late_again_is_waited_for_only_a_moment(scene):
    daemon = Daemon(scene)
    answers = []
    ask(scene, messages.NameClient, answers)
    scene.run(lambda: answers, within=5)
    daemon.read()
    scene.run(lambda: not scene.worker._link.breaker.is_silent, within=5)
    began = time.monotonic()
    ask(scene, messages.NameClient, answers)
    scene.run(lambda: len(answers) == 2, within=5)
    assert time.monotonic() - began < 0.9
    assert scene.worker._link.breaker.is_silent
    daemon.read()
    scene.run(lambda: not scene.worker._link.breaker.is_silent, within=5)
    ask(scene, messages.NameClient, answers)
    scene.run(lambda: daemon.read() or len(answers) == 3, within=5)
    assert answers == [False, False, True]


def test_a_handler_that_is_slow_is_waited_for_while_the_daemon_answers(scene):
    daemon = Daemon(scene)
    answers = []
    ask(scene, messages.Open, answers)
    scene.run(daemon.read, within=1.5)
    assert not answers
    assert not scene.worker._link.breaker.is_silent


def test_what_is_told_to_a_daemon_that_hangs_does_not_end_the_proxy(scene):
    port = scene.port()
    for number in range(10_000):
        scene.worker.no_app(port, "10.0.0.2")
        text = "" if number % 2 else "something"
        scene.worker.report(port, ConditionType.ALPN_UNSUPPORTED, text)
        scene.worker._probes._probed(port, ProbeResult(number % 2 == 0))
    assert not scene.worker._draining
    assert scene.worker._link.is_backlogged


def test_connections_are_counted_while_their_clients_cannot_be_named(scene):
    scene.worker._client_sources = IPv4Network("127.128.0.0/9")
    port = scene.worker._ports[scene.number] = scene.port()
    for count in (1, 2):
        scene.client(port, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        scene.accept()
        assert dialled(scene)
        scene.stack.enter_context(scene.app.accept()[0])
        assert port.counters["clients_unnamed"] == count


def test_flows_of_datagrams_to_a_handler_that_leaves_them_are_opened_rarely():
    loop = Loop(on_crash=lambda owner, error: None)
    asked = []
    udp = Datagrams(loop, lambda key, done: asked.append(done) or (lambda: None))
    gate = udp.mirror_scheduler.gate
    for number in range(1000):
        key = ("u", 53, "10.0.0.1", number, "10.0.0.2")
        if gate.takes(53, "u", begun=key in udp._flows):
            udp._carry(key, b"x", answers=False)
            asked[-1](None)
    assert len(asked) < 10
    assert sum(gate.take_losses().values()) == 1000 - len(asked)
    udp.close()
    loop.close()


def test_a_stream_whose_descriptor_was_lost_is_refused_and_the_daemon_is_told(scene):
    streams = []
    rule = RuleSnapshot("uid-1", "shop/orders", "intercept", (), divert_probes=False)
    live = scene.port(rules=(rule,))
    info = ConnectionInfo(Endpoints("127.0.0.2", 999, "127.0.0.1", scene.number))
    scene.worker.open_stream(info, Leg(Role.HANDLER, live.steered.route.intercepts[0]), streams.append)
    scene.worker._dispatch(messages.Opened(1, 1), None)
    assert streams == [None]
    told = []
    while (received := scene.daemon.receive()) is not None:
        told.append(received[0])
    assert any(isinstance(each, messages.Hindered) and each.hindrances[0].kind == "no-descriptors" for each in told)


def test_without_descriptors_to_spare_no_handler_is_asked_and_the_app_is_there(scene):
    streams = []
    rule = RuleSnapshot("uid-1", "shop/orders", "intercept", (), divert_probes=False)
    live = scene.port(rules=(rule,))
    scene.worker._room._limit = 1
    scene.worker._room.is_left()
    info = ConnectionInfo(Endpoints("127.0.0.2", 999, "127.0.0.1", scene.number))
    scene.worker.open_stream(info, Leg(Role.HANDLER, live.steered.route.intercepts[0]), streams.append)
    scene.run(lambda: streams)
    assert streams == [None]
    received = scene.daemon.receive()
    assert received is not None
    assert isinstance(received[0], messages.Hindered)
    assert received[0].hindrances == (Hindrance("no-room"),)
    assert scene.daemon.receive() is None
