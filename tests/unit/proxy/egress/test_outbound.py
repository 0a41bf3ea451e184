"""Connections that the pod makes, on a real loop with real sockets: what reaches the server, and what is recorded."""

from __future__ import annotations

import contextlib
import select
import socket
from ipaddress import ip_address, ip_network

import msgspec
import pytest

from sidestep.aio.client_tls import default_client_context
from sidestep.engine.memory_budget import BACKLOG, Budget
from sidestep.engine.mirror.ledger import Ledger
from sidestep.model.egress import Destination, EgressMode
from sidestep.model.egress_table import Original
from sidestep.model.inspection import Action, Egress, FailurePolicy, InspectionPolicy, Match, Mode, Rule
from sidestep.policy.egress_rows import to_egress_snapshot
from sidestep.protocols.certificate_facts import facts
from sidestep.protocols.eve_records import Record
from sidestep.proxy.connection.inspector_link import InspectorLink
from sidestep.proxy.connection.kept_hellos import KeptHellos
from sidestep.proxy.control.messages import OUTBOUND
from sidestep.proxy.egress.outbound import Outbound
from sidestep.proxy.io.splice import Pipes
from sidestep.proxy.mirror.ids_feeds import IdsFeeds
from sidestep.proxy.mirror.scheduler import MirrorScheduler
from sidestep.proxy.tls.credentials import Credentials
from sidestep.snapshots.filter_row import FilterRow
from sidestep.snapshots.ports import PortSnapshot, RuleSnapshot
from tests.harness.client_hello import hello_of_ssl
from tests.unit.protocols import test_server_hello as servers
from tests.unit.proxy.looping import stepped

HERE = ip_network("127.0.0.0/8")
HELLO = hello_of_ssl("api.test", ["h2"])
GET = b"GET /secret HTTP/1.1\r\nHost: api.test\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
SSH = b"SSH-2.0-x\r\n"


class Live:
    """What sessions get, by uid."""

    def __init__(self):
        self.told = {}

    def add(self, record, uids):
        for uid in uids:
            self.told.setdefault(uid, []).append(record)


class Records:
    """A queue that keeps records."""

    now = 0.0

    def __init__(self):
        self.made = []
        self.wanted = True
        self.live = Live()

    def add(self, record):
        self.made.append(msgspec.msgpack.decode(msgspec.msgpack.encode(record), type=Record))


class Process:
    """What the process around does."""

    detection_timeout = 1.0

    def __init__(self, loop):
        self.hellos = KeptHellos()
        self.ledger = Ledger()
        self.mirror_scheduler = MirrorScheduler(loop, self.ledger.gate)
        self.ids = IdsFeeds(loop, self.mirror_scheduler.spend)
        self.inspector = InspectorLink(loop, lambda: None)
        self.lines, self.notes = [], []
        self.pipes = Pipes(lambda: True)
        self.backlog = Budget(BACKLOG)
        self.lingering = set()
        self.records = Records()
        self.credentials = Credentials(default_client_context())
        self.setups, self.relayed, self.failed = set(), set(), []
        self.unreachable = []
        self.firewalls = 0

    def no_server(self, host, port):
        self.unreachable.append((host, port))

    def firewalls_changed(self):
        self.firewalls += 1

    def setup_begins(self, setup):
        self.setups.add(setup)

    def setup_over(self, setup):
        self.setups.discard(setup)

    def setup_failed(self, error):
        self.failed.append(error)

    def log_flow(self, line):
        self.lines.append(line)

    def log_requests(self, connection):
        self.notes += connection.relay.mirror.notes
        connection.relay.mirror.notes.clear()

    def opened(self, connection):
        self.relayed.add(connection)

    def closed(self, connection):
        self.relayed.discard(connection)


class Table:
    """A table in which all connections were meant for one server."""

    def __init__(self, server):
        self.server = server

    def take(self, local, port):
        del local, port
        if self.server is None:
            return None
        return Original(ip_address(self.server[0]), self.server[1], 7)


class Scene:
    """A listener where connections are steered, and the server that they were meant for."""

    def __init__(self, stack):
        self.stack = stack
        self.stepped = stack.enter_context(stepped())
        self.process = Process(self.stepped.loop)
        self.outbound = Outbound(
            self.stepped.loop, self.process, has_room=lambda: True, outcome=lambda error: None, retired=lambda: None
        )
        self.server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.table = Table(self.server.getsockname())
        self.outbound.serve(self.listener.dup(), self.table)
        stack.callback(self.leave)

    def leave(self):
        self.outbound.retire()
        for each in (*self.process.setups, *self.process.relayed):
            each.abandon()

    def configure(self, *destinations, rules=(), mode=Mode.ENFORCE, fail=False, name="p"):
        chosen = destinations or (Destination("here", networks=(HERE,)),)
        failing = FailurePolicy.FAIL if fail else FailurePolicy.IGNORE
        policy = InspectionPolicy(name, "shop", mode=mode, egress=Egress(chosen, tuple(rules), failing))
        self.snapshot = to_egress_snapshot(policy)
        self.outbound.configure([self.snapshot])

    def listen(self, *rules):
        self.outbound.configure([], PortSnapshot(OUTBOUND, "tcp", tls="never", http2="never", rules=rules))

    def told_live(self, uid="u"):
        return self.process.records.live.told.get(uid, [])

    def client(self, first=b""):
        sock = self.stack.enter_context(socket.create_connection(self.listener.getsockname()))
        sock.settimeout(5)
        if first:
            sock.sendall(first)
        return sock

    def run(self, until):
        return self.stepped.run(until)

    def accepted(self):
        assert self.run(lambda: readable(self.server)), "the server was not connected to"
        sock = self.stack.enter_context(self.server.accept()[0])
        sock.settimeout(5)
        return sock

    def told(self, sock):
        assert self.run(lambda: readable(sock))
        return sock.recv(65536)

    def is_reset(self, sock):
        assert self.run(lambda: readable(sock))
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        return True

    def untouched(self):
        """Whether the server was never connected to."""
        return not readable(self.server)

    def ended(self, *socks):
        for sock in socks:
            sock.close()
        assert self.run(lambda: not self.process.relayed and not self.process.setups)

    @property
    def counters(self):
        return {name: count for name, count in self.outbound.port.counters.items() if count}

    @property
    def records(self):
        return [(record.event_type, record.sidestep.action) for record in self.process.records.made]


def listener(uid="u", *conditions, **wants):
    """A session that listens."""
    return RuleSnapshot(uid, f"shop/{uid}", "wiretap", conditions, divert_probes=False, **wants)


ONLY_POST = FilterRow("method", "exact", "", "POST")


def readable(sock):
    return bool(select.select([sock], [], [], 0)[0])


@pytest.fixture
def scene():
    with contextlib.ExitStack() as stack:
        yield Scene(stack)


def exchange(scene, client, server, first):
    """Both directions, both ends, byte by byte what was sent."""
    assert scene.told(server) == first
    if first.endswith(b"\r\n\r\n"):
        answer(scene, client, server)
        client.close()
        assert scene.told(server) == b""
        server.close()
        return
    server.sendall(b"answer")
    assert scene.told(client) == b"answer"
    client.shutdown(socket.SHUT_WR)
    assert scene.told(server) == b""
    server.sendall(b"last")
    server.shutdown(socket.SHUT_WR)
    assert scene.told(client) == b"last"
    assert scene.told(client) == b""


def answer(scene, client, server):
    server.sendall(OK)
    assert scene.told(client) == OK


@pytest.mark.parametrize("first", [HELLO, GET, b"SSH-2.0-x\r\n", b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00"])
def test_without_a_policy_every_byte_passes_and_nothing_is_told(scene, first):
    client = scene.client(first)
    exchange(scene, client, scene.accepted(), first)
    scene.ended(client)
    assert scene.records == []
    assert scene.counters == {"outbound": 1}


@pytest.mark.parametrize("first", [HELLO, GET, b"SSH-2.0-x\r\n"])
@pytest.mark.parametrize("fail", [False, True])
def test_what_no_rule_blocks_passes(scene, first, fail):
    scene.configure(fail=fail)
    client = scene.client(first)
    exchange(scene, client, scene.accepted(), first)
    scene.ended(client)
    assert scene.records[-1] == ("flow", None)
    assert scene.counters == {"outbound": 1}


def test_what_is_known_of_tls_is_told(scene):
    scene.configure(rules=[Rule("seen", Action.ALERT, match=Match(server_names=("api.test",)))])
    client = scene.client(HELLO)
    exchange(scene, client, scene.accepted(), HELLO)
    scene.ended(client)
    alert, tls, flow = scene.process.records.made
    host, port = scene.server.getsockname()
    for record in (tls, alert, flow):
        assert (record.sidestep.direction, record.sidestep.host) == ("egress", "api.test")
        assert (record.dest_ip, record.dest_port, record.src_ip) == (host, port, "127.0.0.1")
        assert record.flow_id == tls.flow_id
    assert tls.tls.sni == "api.test"
    assert tls.tls.ja4.startswith("t13d")
    assert len(tls.tls.ja3.hash) == 32
    assert (alert.alert.action, alert.alert.signature) == ("allowed", "shop/p: seen")
    assert flow.flow.bytes_toserver in (len(HELLO), len(HELLO) + 1), "the kernel counts a FIN as a byte"
    assert flow.flow.bytes_toclient == len(b"answerlast")
    assert flow.flow.alerted
    assert scene.counters == {"outbound": 1, "inspection_alerted": 1}


@pytest.mark.parametrize("cut", [1, 5, 6, 60, len(HELLO) - 1])
def test_a_hello_in_pieces_is_judged_whole(scene, cut):
    scene.configure(rules=[Rule("no", Action.BLOCK, match=Match(server_names=("api.test",)))])
    client = scene.client(HELLO[:cut])
    assert scene.run(lambda: scene.process.setups)
    client.sendall(HELLO[cut:])
    assert scene.is_reset(client)
    assert scene.counters["inspection_blocked"] == 1


def test_a_name_that_is_blocked_never_reaches_its_server(scene):
    scene.configure(rules=[Rule("no", Action.BLOCK, match=Match(server_names=("*.test",)))])
    client = scene.client(HELLO)
    assert scene.is_reset(client)
    scene.ended()
    assert scene.untouched()
    assert scene.records[-2:] == [("alert", "Block"), ("flow", None)]
    assert scene.counters == {"outbound": 1, "inspection_blocked": 1, "outbound_closed": 1}


def test_nothing_that_a_request_hides_is_in_a_record(scene):
    scene.configure(rules=[Rule("all", Action.ALERT)])
    request = b"GET /a?b=S3CRET HTTP/1.1\r\nHost: api.test\r\nCookie: S3CRET\r\n\r\n"
    client = scene.client(request)
    exchange(scene, client, scene.accepted(), request)
    scene.ended(client)
    assert scene.process.records.made
    assert b"S3CRET" not in msgspec.msgpack.encode(scene.process.records.made)


def test_detecting_blocks_nothing(scene):
    scene.configure(rules=[Rule("no", Action.BLOCK)], mode=Mode.DETECT, fail=True)
    client = scene.client(HELLO)
    exchange(scene, client, scene.accepted(), HELLO)
    scene.ended(client)
    assert ("alert", "WouldBlock") in scene.records
    assert scene.counters == {"outbound": 1, "inspection_would_block": 1}


def test_an_address_that_is_blocked_is_not_dialled_though_the_client_is_silent(scene):
    scene.configure(rules=[Rule("no", Action.BLOCK, match=Match(networks=(HERE,)))])
    client = scene.client()
    assert scene.is_reset(client)
    assert scene.untouched()
    assert scene.counters == {"outbound": 1, "inspection_blocked": 1, "outbound_closed": 1}


def test_a_server_that_speaks_first_is_heard(scene):
    scene.configure()
    client = scene.client()
    server = scene.accepted()
    server.sendall(b"220 mail\r\n")
    assert scene.told(client) == b"220 mail\r\n"
    client.sendall(b"QUIT\r\n")
    assert scene.told(server) == b"QUIT\r\n"
    scene.ended(client, server)


def test_a_server_that_speaks_first_leaves_the_name_in_doubt(scene):
    no = Rule("no", Action.BLOCK, match=Match(server_names=("a.test",)))
    scene.configure(rules=[no])
    client = scene.client()
    server = scene.accepted()
    server.sendall(b"220 mail\r\n")
    assert scene.told(client) == b"220 mail\r\n"
    assert scene.records == [("anomaly", "Pass")]
    assert scene.counters == {"outbound": 1, "inspection_bypassed_server_first": 1}
    scene.ended(client, server)
    scene.configure(rules=[no], fail=True)
    client = scene.client()
    scene.accepted().sendall(b"220 mail\r\n")
    assert scene.is_reset(client)
    assert scene.counters["inspection_closed_server_first"] == 1


def test_a_client_that_is_late_is_judged_all_the_same(scene):
    scene.configure(rules=[Rule("no", Action.BLOCK, match=Match(server_names=("api.test",)))])
    client = scene.client()
    server = scene.accepted()
    client.sendall(HELLO)
    assert scene.is_reset(client)
    assert scene.run(lambda: readable(server))
    with pytest.raises(ConnectionResetError):
        server.recv(1)


def test_without_a_ca_tls_passes_end_to_end_and_is_counted_or_closed(scene):
    scene.configure(Destination("d", EgressMode.DECRYPT, networks=(HERE,)))
    client = scene.client(HELLO)
    exchange(scene, client, scene.accepted(), HELLO)
    scene.ended(client)
    assert scene.counters == {"outbound": 1, "inspection_bypassed_no_issuer": 1}
    scene.configure(Destination("d", EgressMode.DECRYPT, networks=(HERE,)), fail=True)
    assert scene.is_reset(scene.client(HELLO))
    assert scene.untouched()
    assert ("anomaly", "Close") in scene.records


def test_a_server_that_refuses_resets_the_client(scene):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # held, and nobody listens: no other test can get the port
        scene.table.server = nobody.getsockname()
        refused(scene)


def refused(scene):
    client = scene.client(HELLO)
    assert scene.is_reset(client)
    assert scene.counters == {"outbound": 1, "servers_refused": 1}
    client = scene.client()
    assert scene.is_reset(client)
    assert scene.counters == {"outbound": 2, "servers_refused": 2}
    assert scene.process.unreachable == [scene.table.server] * 2


def test_a_connection_to_the_listener_itself_is_closed_and_nothing_is_dialled(scene):
    scene.table.server = None
    client = scene.client()
    assert scene.told(client) == b""
    assert scene.counters == {"outbound_unknown": 1}


def test_a_client_that_leaves_leaves_nothing(scene):
    scene.configure()
    client = scene.client(HELLO[:20])
    assert scene.run(lambda: scene.process.setups)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
    assert scene.run(lambda: not scene.process.setups and not scene.process.relayed)


def test_connections_keep_the_policies_that_they_began_with(scene):
    scene.configure()
    client = scene.client(HELLO)
    server = scene.accepted()
    assert scene.told(server) == HELLO
    scene.configure(rules=[Rule("no", Action.BLOCK)])
    server.sendall(b"answer")
    assert scene.told(client) == b"answer"
    assert scene.is_reset(scene.client(HELLO))
    scene.ended(client, server)


def test_a_listener_that_is_given_up_accepts_for_a_moment_more(scene):
    scene.outbound.retire()
    client = scene.client(HELLO)
    assert scene.told(scene.accepted()) == HELLO
    assert scene.outbound.is_retiring
    assert scene.run(lambda: not scene.outbound.is_retiring)
    client.close()


# --- sessions that listen -------------------------------------------------------------------------------------------


def visit(scene, first):
    client = scene.client(first)
    exchange(scene, client, scene.accepted(), first)
    scene.ended(client)


def test_a_session_is_told_of_connections_that_no_policy_is_about_and_the_log_is_not(scene):
    scene.listen(listener(records="all"))
    visit(scene, HELLO)
    visit(scene, GET)
    assert scene.run(lambda: len(scene.told_live()) == 4)
    assert [each.event_type for each in scene.told_live()] == ["tls", "flow", "http", "flow"]
    for record in scene.told_live():
        assert (record.sidestep.direction, record.sidestep.host) == ("egress", "api.test")
        assert record.sidestep.inspected is False
    tls, _, http, _ = scene.told_live()
    assert tls.tls.sni == "api.test"
    assert (http.http.http_method, http.http.url, http.http.hostname) == ("GET", "/secret", "api.test")
    assert scene.records == []


def test_what_a_request_says_of_credentials_is_told_to_nobody(scene):
    scene.listen(listener(records="all"), listener("f", heads_only=True))
    visit(scene, b"GET /?token=S3CRET HTTP/1.1\r\nHost: api.test\r\nAuthorization: Bearer S3CRET\r\n\r\n")
    assert b"S3CRET" not in msgspec.msgpack.encode(scene.told_live())
    assert b"S3CRET" not in b"".join(b"".join(map(b"".join, each.fields)) for each in scene.process.notes)
    assert any((b"authorization", b"[redacted]") in each.fields for each in scene.process.notes)


def test_a_session_of_alerts_is_told_of_what_rules_find_and_of_what_is_not_inspected(scene):
    scene.configure(rules=[Rule("no", Action.BLOCK, match=Match(server_names=("api.test",)))])
    scene.outbound.configure(
        [scene.snapshot], PortSnapshot(OUTBOUND, "tcp", "never", "never", (listener(records="alerts"),))
    )
    assert scene.is_reset(scene.client(HELLO))
    visit(scene, b"SSH-2.0-x\r\n")
    assert [each.event_type for each in scene.told_live()] == ["alert", "anomaly"]


def test_a_filter_is_about_requests(scene):
    scene.listen(listener("u", ONLY_POST, records="all"), listener("f", ONLY_POST, heads_only=True))
    visit(scene, HELLO)
    visit(scene, GET)
    assert scene.told_live() == scene.process.lines == scene.process.notes == []
    post = b"POST /a HTTP/1.1\r\nHost: api.test\r\nContent-Length: 0\r\n\r\n"
    visit(scene, post)
    assert scene.run(lambda: len(scene.told_live()) == 2)
    assert [each.event_type for each in scene.told_live()] == ["http", "flow"]
    assert {note.rule.uid for note in scene.process.notes} == {"f"}


@pytest.mark.parametrize(
    ("first", "protocol", "shown"),
    [
        (HELLO, "tls", ("", "", "api.test")),
        (b"SSH-2.0-x\r\n", "tcp", ("", "", "")),
    ],
)
def test_flows_are_one_line_for_each_connection(scene, first, protocol, shown):
    scene.listen(listener("f", heads_only=True))
    visit(scene, first)
    [line] = scene.process.lines
    assert (line.protocol, (line.method, line.path, line.authority)) == (protocol, shown)
    assert (line.server, line.port) == scene.server.getsockname()
    assert scene.told_live() == scene.records == []


def test_who_has_left_is_told_nothing_more(scene):
    scene.listen(listener(records="all"), listener("f", heads_only=True))
    scene.outbound.configure([])
    visit(scene, HELLO)
    assert scene.told_live() == scene.process.lines == []


# --- what the server answers ------------------------------------------------------------------------------------------


def answered(scene, first):
    """The `tls` record of a connection whose server says this, in these pieces; the client gets every byte."""
    scene.configure()
    client = scene.client(HELLO)
    server = scene.accepted()
    assert scene.told(server) == HELLO
    for piece in first:
        server.sendall(piece)
        assert scene.told(client) == piece
    client.sendall(b"more")
    assert scene.told(server) == b"more"
    server.sendall(b"last")
    assert scene.told(client) == b"last"
    scene.ended(client, server)
    [tls] = [each.tls for each in scene.process.records.made if each.event_type == "tls"]
    assert scene.records[-1] == ("flow", None)
    return tls


def test_the_version_that_the_server_has_chosen_is_told(scene):
    assert answered(scene, [servers.MODERN]).version == "TLS 1.3"


def test_the_certificate_that_the_server_shows_in_tls_1_2_is_told(scene):
    tls = answered(scene, [servers.OLD[:3], servers.OLD[3:400], servers.OLD[400:]])
    assert (tls.version, tls.session_resumed) == ("TLS 1.2", False)
    shown = facts(servers.DER)
    assert (tls.subject, tls.fingerprint) == (shown.subject or None, shown.fingerprint)
    assert tls.serial
    assert tls.notafter


def test_a_session_that_goes_on_shows_no_certificate(scene):
    tls = answered(scene, [servers.RESUMED])
    assert (tls.version, tls.session_resumed, tls.fingerprint) == ("TLS 1.2", True, None)


@pytest.mark.parametrize("first", [[], [b"HTTP/1.1 400 Bad Request\r\n\r\n"], [b"\x16"]])
def test_a_server_that_says_something_else_leaves_the_version_open(scene, first):
    assert answered(scene, first).version == "UNDETERMINED"


def test_once_the_server_was_heard_the_kernel_moves_the_bytes(scene):
    scene.configure()
    client = scene.client(HELLO)
    server = scene.accepted()
    assert scene.told(server) == HELLO
    [connection] = scene.process.relayed
    assert connection._splicer is None
    server.sendall(servers.MODERN)
    assert scene.told(client) == servers.MODERN
    assert scene.run(lambda: connection._splicer is not None)
    scene.ended(client, server)
