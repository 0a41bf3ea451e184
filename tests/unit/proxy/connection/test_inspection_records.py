"""Records that a real worker makes of real connections to a port with policies, as the daemon gets them."""

import contextlib
import hashlib
import json
import os
import select
import socket
import threading
import time
from pathlib import Path

import msgspec
import pytest

from sidestep.aio.client_tls import default_client_context
from sidestep.engine.inspection.sampling import Sampling
from sidestep.model.filter import Filter, PathCondition, PathTest
from sidestep.model.inspection import (
    Action,
    Builtin,
    Direction,
    InspectionPolicy,
    Match,
    Mode,
    Pattern,
    RateLimit,
    Redaction,
    Rule,
)
from sidestep.node.records.checking import checked
from sidestep.policy.inspection_rows import to_snapshot
from sidestep.protocols import eve
from sidestep.protocols.eve_records import FileInfo, Kubernetes, Record
from sidestep.proxy.connection import inspection_records
from sidestep.proxy.connection.kept_hellos import KeptHellos
from sidestep.proxy.control import messages
from tests.harness.peers import server_context
from tests.unit.protocols.json_paths import paths
from tests.unit.proxy.runtime.test_worker import APP, AUTHORITY, RESET, Scene

NAMES = json.loads((Path(__file__).parents[2] / "protocols" / "suricata_names.json").read_text())
CARD = b"4111111111111111"
ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: 2\r\nSet-Cookie: S3CRET\r\n\r\nok"
)


def path(value):
    return Match(Filter(paths=(PathCondition(PathTest.PREFIX, value),)))


RULES = (
    Rule("no-admin", Action.BLOCK, match=path("/admin")),
    Rule("noted", Action.LOG, match=path("/noted")),
    Rule("cards", Action.ALERT, patterns=(Pattern(Builtin.CARD_NUMBER),)),
    Rule("leak", Action.ALERT, Direction.RESPONSE, match=path("/leak"), patterns=(Pattern(regex=r"\bok\b"),)),
    Rule("often", Action.ALERT, match=path("/often"), rate_limit=RateLimit(2, 60.0)),
)


def policy(*, mode=Mode.ENFORCE, sample=0.0, rules=RULES, **more):
    made = InspectionPolicy("p", "shop", mode=mode, sample_percent=sample, rules=rules, **more)
    return (to_snapshot(made),)


class Talk:
    """One client's connection to an app that answers everything alike."""

    def __init__(self, scene, port):
        self.scene = scene
        self.client = scene.client(port)
        scene.accept()
        self.app = None

    def ask(self, *heads, answers=ANSWER, wanted=b"ok"):
        """Send requests one after another; the bytes that the client got."""
        got = b""
        for head in heads:
            self.client.sendall(head)
            got = b""
            while not got.endswith(wanted):
                self.scene.run(lambda: self.step(answers), within=0.1)
                if select.select([self.client], [], [], 0)[0]:
                    data = self.client.recv(65536)
                    if not data:
                        return got
                    got += data
        return got

    def step(self, answers):
        if self.app is None and select.select([self.scene.app], [], [], 0)[0]:
            self.app = self.scene.stack.enter_context(contextlib.closing(self.scene.app.accept()[0]))
        if self.app is not None and select.select([self.app], [], [], 0)[0]:
            got = self.app.recv(65536)
            self.app.sendall(answers * got.count(b"\r\n\r\n"))
        return bool(select.select([self.client], [], [], 0)[0])


@pytest.fixture
def scene():
    with contextlib.ExitStack() as stack:
        made = Scene(stack)
        made.worker.records.wanted = True
        yield made


def received(scene, count, *, within=10.0, which="others"):
    """The first records that the daemon gets, decoded; what was dropped.

    They are the "answers" after hits, the "files", or all others.
    """
    records, dropped = [], {}

    def receive():
        while (packet := scene.daemon.receive()) is not None:
            if isinstance(packet[0], messages.Records):
                made = [msgspec.msgpack.decode(data, type=Record) for data in packet[0].records]
                check(made)
                records.extend(each for each in made if kind_of(each) == which)
                dropped.update(packet[0].dropped)
        return len(records) >= count

    scene.run(receive, within=within)
    return records, dropped


def kind_of(record):
    """See `received`."""
    if record.event_type == "fileinfo":
        return "files"
    is_answer = record.event_type == "http" and record.sidestep.id is not None and record.sidestep.policy is None
    return "answers" if is_answer else "others"


def check(records):
    for record in records:
        line = eve.encode(record)
        assert b"S3CRET" not in line
        assert foreign(json.loads(line)) == {}


def foreign(shown):
    """Members that Suricata's records of this type do not have, or have with another type."""
    known = dict(NAMES[shown["event_type"]])
    known |= {path: what for path, what in NAMES["http"].items() if path.startswith("http.") and "http" in known}
    theirs = {name: what for name, what in paths(shown).items() if not name.startswith(("kubernetes", "sidestep"))}
    return {name: what for name, what in theirs.items() if known.get(name) != what}


def get(target, *fields):
    lines = (
        b"GET " + target + b" HTTP/1.1",
        b"Host: shop.test:8443",
        b"User-Agent: curl/8",
        b"Cookie: S3CRET",
        *fields,
    )
    return b"\r\n".join(lines) + b"\r\n\r\n"


def test_each_hit_becomes_a_record_of_its_kind(scene):
    talk = Talk(scene, scene.port(policies=policy()))
    talk.ask(get(b"/noted?token=S3CRET"), get(b"/leak"), get(b"/"))
    refused = talk.ask(get(b"/admin/users"), wanted=b"\n")
    assert b"403 Forbidden" in refused
    records, dropped = received(scene, 3)
    noted, leak, blocked = records
    assert [each.event_type for each in records] == ["http", "alert", "alert"]
    assert [each.tx_id for each in records] == [0, 1, 3]
    assert len({each.flow_id for each in records}) == 1
    assert (noted.http.url, noted.http.hostname, noted.http.http_port) == ("/noted?token=[redacted]", "shop.test", 8443)
    assert (noted.sidestep.action, noted.sidestep.rule, noted.alert) == ("Log", "noted", None)
    assert (leak.http.status, leak.http.http_content_type, leak.sidestep.action) == (200, "text/html", "Alert")
    assert (leak.sidestep.pattern, leak.alert.action) == (r"regex \bok\b", "allowed")
    assert (leak.src_port, leak.dest_ip) == (scene.number, "127.0.0.1")  # what the server sent
    assert blocked.alert == eve.alert("shop/p", "no-admin", blocked=True)
    assert blocked.sidestep.id.encode() in refused
    assert (blocked.dest_port, blocked.http.http_user_agent, blocked.app_proto) == (scene.number, "curl/8", "http")
    assert dropped == {}


def test_detect_says_what_it_would_have_blocked(scene):
    talk = Talk(scene, scene.port(policies=policy(mode=Mode.DETECT)))
    assert talk.ask(get(b"/admin")) == ANSWER
    [record], _ = received(scene, 1)
    assert (record.event_type, record.alert.action, record.sidestep.action) == ("alert", "allowed", "WouldBlock")


def test_the_answer_to_a_request_of_which_a_hit_was_told_is_told_after_it(scene):
    talk = Talk(scene, scene.port(policies=policy(mode=Mode.DETECT)))
    talk.ask(get(b"/admin/users"), get(b"/"), get(b"/noted"), get(b"/leak"), get(b"/pay/" + CARD))
    records, _ = received(scene, 3, which="answers")
    assert [each.tx_id for each in records] == [0, 2, 4]
    assert [each.http.url for each in records] == ["/admin/users", "/noted", "[redacted]"]
    assert {(each.http.status, each.http.length, each.http.http_content_type) for each in records} == {
        (200, 2, "text/html")
    }


def test_hits_are_told_before_the_answer_under_the_same_name(scene):
    talk = Talk(scene, scene.port(policies=policy(mode=Mode.DETECT)))
    talk.client.sendall(get(b"/admin"))
    [hit], _ = received(scene, 1)
    assert (hit.event_type, hit.http.status) == ("alert", None)
    scene.run(lambda: talk.step(ANSWER))
    [answer], _ = received(scene, 1, which="answers")
    assert (answer.flow_id, answer.tx_id, answer.sidestep.id) == (hit.flow_id, hit.tx_id, hit.sidestep.id)
    assert answer.http.status == 200


def test_the_body_in_which_a_pattern_was_found_is_a_file(scene):
    talk = Talk(scene, scene.port(policies=policy(mode=Mode.DETECT)))
    body = b"number=" + CARD
    talk.ask(get(b"/leak/report.pdf?a=S3CRET"))
    talk.ask(get(b"/upload", b"Content-Length: %d" % len(body)).replace(b"GET", b"POST") + body)
    talk.ask(get(b"/pay/" + CARD))  # found in the head
    (down, up), _ = received(scene, 2, which="files")
    assert down.fileinfo == FileInfo(
        filename="/leak/report.pdf", gaps=False, state="CLOSED", sha256=hashlib.sha256(b"ok").hexdigest(), stored=False,
        size=2, tx_id=0,
    )  # fmt: skip
    assert (down.src_port, down.http.status, down.app_proto) == (scene.number, 200, "http")
    assert (up.fileinfo.sha256, up.fileinfo.size) == (hashlib.sha256(body).hexdigest(), len(body))
    assert (up.dest_port, up.fileinfo.tx_id, up.fileinfo.filename) == (scene.number, 1, "/upload")
    for each in (down, up):
        assert checked(each, rules={}, kubernetes=Kubernetes("shop", "p"), now=time.time_ns()) is not None


def test_no_answer_is_told_of_what_was_blocked_or_is_beyond_the_rate(scene):
    talk = Talk(scene, scene.port(policies=policy()))
    talk.ask(get(b"/often"), get(b"/often"), get(b"/often"))
    talk.ask(get(b"/admin"), wanted=b"\n")
    records, _ = received(scene, 2, which="answers")
    scene.run(within=0.2)
    assert [each.tx_id for each in records + received(scene, 0, which="answers")[0]] == [0, 1]


@pytest.mark.parametrize(
    "head",
    [
        get(b"/pay/" + CARD),
        get(b"/pay/%34111111111111111"),
        get(b"/pay", b"Referer: https://a.test/" + CARD),
        get(b"/pay", b"X-Forwarded-For: " + CARD),
        get(b"/noted/" + CARD),
        get(b"/pay?q=" + CARD),
    ],
)
def test_what_a_rule_has_found_is_in_no_record(scene, head):
    talk = Talk(scene, scene.port(policies=policy(sample=100.0, redaction=Redaction(query_values=False))))
    talk.ask(head)
    records, _ = received(scene, 1)
    scene.run(within=0.1)
    assert "cards" in {each.sidestep.rule for each in records}
    for record in records:
        shown = eve.encode(record)
        assert CARD[1:] not in shown
        assert record.sidestep.policy == "shop/p"


def test_alerts_beyond_the_rate_of_a_rule_are_not_told(scene):
    talk = Talk(scene, scene.port(policies=policy()))
    talk.ask(*[get(b"/often")] * 5, get(b"/noted"))
    records, dropped = received(scene, 3)
    assert [each.sidestep.rule for each in records] == ["often", "often", "noted"]
    assert dropped == {}


def test_a_share_of_the_other_requests_is_told(scene):
    talk = Talk(scene, scene.port(policies=policy(sample=50.0)))
    talk.ask(*[get(b"/%d" % number) for number in range(20)])
    records, _ = received(scene, 1)
    chosen = Sampling(50.0, records[0].flow_id).chooses
    wanted = [number for number in range(20) if chosen(number)]
    assert 9 <= len(wanted) <= 11
    records += received(scene, len(wanted) - len(records))[0]
    assert [each.tx_id for each in records] == wanted
    for record in records:
        assert (record.event_type, record.http.status, record.http.length) == ("http", 200, 2)
        assert record.http.url == f"/{record.tx_id}"
        assert (record.sidestep.policy, record.sidestep.inspected) == (None, True)


def test_a_running_connection_follows_what_its_policies_hide_and_sample(scene):
    lax = Redaction(query_values=False)
    port = scene.port(policies=policy(redaction=lax))
    talk = Talk(scene, port)
    talk.ask(get(b"/noted?a=1"), get(b"/"))
    assert received(scene, 1)[0][0].http.url == "/noted?a=1"
    secret = Rule("secret", Action.ALERT, patterns=(Pattern(regex="top-secret"),))
    rules = (*RULES, secret)
    port.replace(msgspec.structs.replace(port.snapshot, policies=policy(sample=100.0, rules=rules)))
    talk.ask(get(b"/noted?a=1"), get(b"/noted/top-secret"), get(b"/noted/" + CARD), get(b"/"))
    records, _ = received(scene, 6)
    shown = [(each.sidestep.rule, each.http.url) for each in records]
    assert shown == [
        ("noted", "/noted?a=[redacted]"),
        ("noted", "[redacted]"),
        ("secret", "[redacted]"),
        ("noted", "[redacted]"),
        ("cards", "[redacted]"),
        (None, "/"),
    ]
    port.replace(msgspec.structs.replace(port.snapshot, policies=policy(redaction=lax)))
    talk.ask(get(b"/"), get(b"/noted?a=1"))
    assert [each.http.url for each in received(scene, 1)[0]] == ["/noted?a=1"]


def test_what_is_not_inspected_is_an_anomaly(scene):
    talk = Talk(scene, scene.port(policies=policy(mode=Mode.DETECT)))
    talk.ask(get(b"/").replace(b"Host:", b"Host :"))
    other = Talk(scene, scene.port(policies=policy(mode=Mode.DETECT)))
    other.ask(b"SSH-2.0-x\r\n\r\n")
    records, _ = received(scene, 2)
    assert [(each.event_type, each.anomaly.event, each.anomaly.layer) for each in records] == [
        ("anomaly", "h1-field", "proto_parser"),
        ("anomaly", "not-http", "proto_detect"),
    ]
    assert [(each.sidestep.inspected, each.sidestep.action, each.sidestep.reason) for each in records] == [
        (False, "Pass", "h1-field"),
        (False, "Pass", "not-http"),
    ]


def test_one_connection_cannot_fill_the_log(scene, monkeypatch):
    monkeypatch.setattr(inspection_records, "HITS", (0.001, 3.0))
    talk = Talk(scene, scene.port(policies=policy()))
    talk.ask(*[get(b"/noted")] * 8)
    records, dropped = received(scene, 3)
    scene.run(lambda: received(scene, 1, within=0.05)[1], within=0.5)
    assert len(records) == 3
    assert talk.app is not None
    other = Talk(scene, scene.port(policies=policy()))
    other.ask(get(b"/noted"))
    assert len(received(scene, 1)[0]) == 1
    assert set(dropped) <= {"connection"}


def test_nothing_is_made_while_nobody_reads(scene):
    scene.worker.records.wanted = False
    port = scene.port(policies=policy(sample=100.0))
    talk = Talk(scene, port)
    talk.ask(get(b"/noted"), get(b"/"))
    assert received(scene, 1, within=0.3) == ([], {})
    assert port.counters["inspection_logged"] == 1


def test_a_port_without_policies_has_no_records(scene):
    talk = Talk(scene, scene.port())
    talk.ask(get(b"/noted"))
    assert received(scene, 1, within=0.3) == ([], {})


@pytest.mark.parametrize("how", ["close", "reset", "refused"])
def test_the_end_of_a_connection_of_which_something_was_told_is_a_flow(scene, how):
    talk = Talk(scene, scene.port(policies=policy()))
    sent = [get(b"/noted"), get(b"/")]
    talk.ask(*sent)
    got = 2 * len(ANSWER)
    if how == "refused":
        sent.append(get(b"/admin").replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        got += len(talk.ask(sent[-1], wanted=b"\n"))
    if how == "reset":
        talk.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    talk.client.close()
    if how == "close":
        talk.app.close()
    records, _ = received(scene, 3 if how == "refused" else 2)
    told = records[-1]
    assert told.event_type == "flow"
    assert told.flow_id == records[0].flow_id
    assert told.flow.bytes_toserver - sum(map(len, sent)) in (0, 1)  # a FIN counts as one
    assert told.flow.bytes_toclient == got
    assert told.flow.pkts_toserver >= 2
    assert told.flow.alerted is (how == "refused")
    assert told.flow.start < told.flow.end
    assert (told.flow.age, told.flow.state, told.app_proto) == (0, "closed", "http")


def test_a_connection_of_which_nothing_was_told_is_no_flow(scene):
    talk = Talk(scene, scene.port(policies=policy()))
    talk.ask(get(b"/"))
    talk.client.close()
    assert received(scene, 1, within=0.3) == ([], {})


# --- TLS --------------------------------------------------------------------------------------------------------------


class TlsTalk:
    """A client over TLS, in a thread, to an app over TLS, in another one."""

    def __init__(self, scene, port, requests):
        self.got = b""
        self._requests = requests
        self._scene = scene
        self._raw = scene.client(port)
        scene.accept()
        self.threads = [threading.Thread(target=each, daemon=True) for each in (self._serve, self._ask)]
        for thread in self.threads:
            thread.start()
        scene.run(lambda: not any(thread.is_alive() for thread in self.threads), within=15)

    def _serve(self):
        with (
            self._scene.app.accept()[0] as raw,
            server_context(APP, alpn=["http/1.1"]).wrap_socket(raw, server_side=True) as app,
        ):
            for _ in self._requests:
                data = b""
                while b"\r\n\r\n" not in data:
                    data += app.recv(65536)
                app.sendall(ANSWER)

    def _ask(self):
        context = default_client_context(cadata=AUTHORITY.pem.decode())
        context.set_alpn_protocols(["http/1.1"])
        with context.wrap_socket(self._raw, server_hostname="app.test") as client:
            for request in self._requests:
                client.sendall(request)
                self.got = b""
                while not self.got.endswith(b"ok"):
                    self.got += client.recv(65536)


def identity(scene):
    fd = os.memfd_create("test")
    os.write(fd, APP.key + APP.chain)
    scene.worker.credentials.add("identity", "identity", fd)
    fd = os.memfd_create("test")
    os.write(fd, AUTHORITY.pem)
    scene.worker.credentials.add("trust", "trust", fd)
    return {"tls": "always", "identity": "identity", "upstream_trust": "trust"}


@pytest.mark.parametrize("sample", [0.0, 100.0])
def test_tls_is_told_once_for_a_connection(scene, sample):
    port = scene.port(policies=policy(sample=sample), **identity(scene))
    talk = TlsTalk(scene, port, [get(b"/"), get(b"/noted"), get(b"/noted")])
    assert talk.got == ANSWER
    records, _ = received(scene, 5 if sample else 4)
    kinds = [each.event_type for each in records]
    assert kinds == (["tls", "http", "http", "http", "flow"] if sample else ["tls", "http", "http", "flow"])
    told = records[0]
    assert (told.tls.sni, told.tls.version, told.sidestep.tls.alpn) == ("app.test", "TLS 1.3", "http/1.1")
    assert told.sidestep.tls.cipher.startswith("TLS_")
    assert told.sidestep.tls.weak == ()
    assert told.tls.ja4.startswith("t13d")
    assert len(told.tls.ja3.hash) == 32
    assert told.tls.subject == "CN=app.test"
    assert told.tls.issuerdn
    assert told.tls.notafter > told.tls.notbefore
    assert len({each.flow_id for each in records}) == 1
    scene.worker.credentials.keep(set())


def test_tls_is_told_without_what_was_offered_once_the_hello_was_given_up(scene):
    scene.worker.hellos = KeptHellos(bound=10)
    port = scene.port(policies=policy(), **identity(scene))
    TlsTalk(scene, port, [get(b"/noted")])
    told = received(scene, 2)[0][0]
    assert told.tls.version == "TLS 1.3"
    assert told.tls.subject == "CN=app.test"
    assert (told.tls.ja3, told.tls.ja4, told.tls.sni) == (None, None, None)
    assert port.counters["tls_unfingerprinted"] == 1
    scene.worker.credentials.keep(set())


def test_no_tls_is_told_without_a_hit_or_a_sample(scene):
    port = scene.port(policies=policy(), **identity(scene))
    TlsTalk(scene, port, [get(b"/")])
    assert received(scene, 1, within=0.3) == ([], {})
    assert scene.worker.hellos.size == 0  # the connection is over, and its ClientHello with it
    scene.worker.credentials.keep(set())
