"""Records of inspection of a real daemon: what nginx and curl make of a policy stands in the EVE log, and no secret."""

from __future__ import annotations

import contextlib
import hashlib
import json
import ssl

import hpack
import pytest

from sidestep.aio.client_tls import default_client_context
from sidestep.protocols.client_hello import parse
from sidestep.protocols.http2 import (
    DATA,
    PREFACE,
    SETTINGS,
    ErrorCode,
    frame,
    goaway,
    header_frames,
    rst_stream,
    settings,
)
from sidestep.protocols.ja4 import ja3, ja4
from tests.harness import scene
from tests.harness.http1 import ClosedError
from tests.harness.inspection import is_refusal, policies, policy, rule
from tests.harness.peers import Client
from tests.harness.waiting import until

HTTP = [pytest.param("--http1.1", id="h1"), pytest.param("--http2", id="h2")]
CARD = "4111111111111111"
TOKEN = "S3CRETtoken"
BODY = "S3CRETbody"
RULES = (
    rule(),
    rule("/noted", name="noted", action="Log"),
    {"name": "cards", "patterns": [{"builtin": "CardNumber"}], "action": "Alert"},
    {"name": "server", "direction": "Response", "patterns": [{"regex": "s3cret-of-the-app"}], "action": "Alert"},
)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """The scene with nginx, which speaks HTTP/2, as the app."""
    with scene.shop(tmp_path_factory.mktemp("shop")) as shop, scene.shop_nginx(shop, http2=True) as app:
        shop.nginx = app
        yield shop


def fresh(shop, count, *, before, within=10.0, which="others"):
    """The first `count` records after those `before`: "answers" after hits, "files", or all others but stats.

    The end of a connection of an earlier test may be told late: records of flows that are known are left out.
    """

    def look():
        records = shop.node.records()
        known = {each["flow_id"] for each in records[:before] if "flow_id" in each}
        found = [each for each in records[before:] if each.get("flow_id") not in known]
        found = [each for each in found if each["event_type"] != "stats" and kind_of(each) == which]
        return found if len(found) >= count else None

    return until(look, within=within, what=lambda: f"{count} records: {shop.node.records()[before:]}")


def kind_of(record):
    """See `fresh`."""
    if record["event_type"] == "fileinfo":
        return "files"
    is_answer = record["event_type"] == "http" and "id" in record["sidestep"] and "policy" not in record["sidestep"]
    return "answers" if is_answer else "others"


def secrets_in(shop):
    """Everything that was written or is shown, in one text."""
    texts = [path.read_text(errors="replace") for path in shop.node.folder.glob("eve.json*")]
    return "".join((*texts, shop.node.log(), json.dumps(shop.node.status())))


@pytest.mark.parametrize("version", HTTP)
def test_what_a_policy_finds_stands_in_the_log(shop, version):
    with policies(shop, policy(*RULES)):
        before = len(shop.node.records())
        options = [version, "--cookie", TOKEN]
        answer = shop.get(f"/admin/users?token={TOKEN}", f"Authorization: Bearer {TOKEN}", options=options)
        assert is_refusal(answer)
        shop.get(f"/noted?a={TOKEN}", options=options)
        shop.get(f"/pay/{CARD}", options=options)
        shop.get("/", f"Referer: https://a.test/{CARD}", options=options)
        # An app that answers before it has read a body may end the stream, and then nobody gets the rest of the body.
        shop.get("/echo", options=[*options, "--data", f"{BODY} {CARD}"])
        found = fresh(shop, 15, before=before)
        answers = fresh(shop, 4, before=before, which="answers")
        [file] = fresh(shop, 1, before=before, which="files")
    hits = [each for each in found if each["event_type"] not in ("tls", "flow")]
    assert [each["event_type"] for each in hits] == ["alert", "http", "alert", "alert", "alert"]
    assert [each["sidestep"]["rule"] for each in hits] == ["no-admin", "noted", "cards", "cards", "cards"]
    assert [each["sidestep"]["action"] for each in hits] == ["Block", "Log", "Alert", "Alert", "Alert"]
    refused, noted, path, referer, body = hits
    flows = [each for each in found if each["event_type"] == "flow"]
    assert sorted(each["flow_id"] for each in flows) == sorted(each["flow_id"] for each in hits)
    assert [each["flow"]["alerted"] for each in flows].count(False) == 1
    assert all(each["flow"]["bytes_toserver"] > 100 < each["flow"]["bytes_toclient"] for each in flows)
    for each in found:
        assert each["kubernetes"] == {
            "namespace": "shop", "pod": "orders-1", "workload": "deployment/orders", "node": each["kubernetes"]["node"],
        }  # fmt: skip
        assert (each["dest_ip"], each["dest_port"]) == (shop.space.ip, scene.TLS_PORT)
        assert each["src_ip"] != shop.space.ip
    assert refused["sidestep"]["id"] in answer.text
    assert refused["alert"]["action"] == "blocked"
    assert refused["http"]["url"] == "/admin/users?token=[redacted]"
    assert noted["http"]["url"] == "/noted?a=[redacted]"
    assert (path["http"]["url"], referer["http"]["http_refer"]) == ("[redacted]", "[redacted]")
    assert (body["http"]["url"], body["sidestep"]["pattern"]) == ("/echo", "CardNumber")
    assert ("http2" in noted["http"]) is (version == "--http2")
    tls = [each for each in found if each["event_type"] == "tls"]
    assert [each["flow_id"] for each in tls] == [each["flow_id"] for each in hits]
    for each in tls:
        assert (each["tls"]["sni"], each["tls"]["version"]) == (scene.HOST, "TLS 1.3")
        assert each["sidestep"]["tls"]["alpn"] == ("h2" if version == "--http2" else "http/1.1")
        assert {"subject", "issuerdn", "notafter"} <= set(each["tls"])
    assert [each["sidestep"]["id"] for each in answers] == [each["sidestep"]["id"] for each in hits[1:]]
    assert [each["flow_id"] for each in answers] == [each["flow_id"] for each in hits[1:]]
    for each in answers:
        assert each["http"]["status"] == 200
        assert each["http"]["length"] > 0
    assert file["fileinfo"] == {
        "filename": "/echo", "gaps": False, "state": "CLOSED", "stored": False, "tx_id": 0,
        "size": len(f"{BODY} {CARD}"),
        "sha256": hashlib.sha256(f"{BODY} {CARD}".encode()).hexdigest(),
    }  # fmt: skip
    assert file["flow_id"] == body["flow_id"]
    everything = secrets_in(shop)
    for secret in (CARD, TOKEN, BODY):
        assert secret not in everything


HTTP1_REQUEST = f"POST /echo HTTP/1.1\r\nHost: {scene.HOST}\r\nContent-Length: 1000\r\n\r\n{CARD}.".encode()
HTTP2_BEGIN = PREFACE + settings({})
BROKEN_OFF = {
    "h1, the connection ends": None,
    "h2, the connection ends": b"",
    "h2, the stream is reset": rst_stream(1, ErrorCode.CANCEL),
    "h2, the client goes away": goaway(0, ErrorCode.NO_ERROR),
}
"""What follows a part of a request over HTTP/2."""


def http2_request():
    """A request that is not ended, with a card number in its only DATA frame."""
    fields = [(":method", "POST"), (":scheme", "https"), (":path", "/echo"), (":authority", scene.HOST)]
    head = header_frames(1, hpack.Encoder().encode(fields), end_stream=False)
    return head + frame(DATA, 0, 1, CARD.encode() + b".")


def break_off(shop, more):
    """Send a part of a request, and end the connection.

    An app that has yet to show that it speaks HTTP/2 keeps a request waiting that may be refused, and nothing of that
    is read if its connection is reset meanwhile (`engine.http2.inspected_streams`). So its SETTINGS come first.
    """
    with shop.client(alpn=[] if more is None else ["h2"]) as client:
        if more is None:
            client.send(HTTP1_REQUEST)
        else:
            client.send(HTTP2_BEGIN)
            assert client.reader.exactly(9)[3] == SETTINGS
            client.send(http2_request() + more)


@pytest.mark.parametrize("mode", ["Detect", "Enforce"])
@pytest.mark.parametrize("how", BROKEN_OFF)
def test_what_has_come_of_a_request_that_is_broken_off_is_told_once(shop, how, mode):
    cards = {"name": "cards", "patterns": [{"builtin": "CardNumber"}], "action": "Block"}
    with policies(shop, policy(cards, mode=mode)):
        before = len(shop.node.records())
        break_off(shop, BROKEN_OFF[how])

        def told(kind):
            return [each for each in shop.node.records()[before:] if each["event_type"] == kind]

        # The record of TLS may be lost with the connection; that of its end is the last one.
        until(lambda: told("alert"), within=10, what=lambda: f"an alert: {shop.node.records()[before:]}")
        flow = told("alert")[0]["flow_id"]
        until(lambda: flow in [each["flow_id"] for each in told("flow")], within=10, what="the end of the connection")
        alerts = told("alert")
    assert [each["sidestep"]["rule"] for each in alerts] == ["cards"]
    assert alerts[0]["sidestep"]["action"] == ("WouldBlock" if mode == "Detect" else "Block")
    assert "internal error" not in shop.node.log()


@pytest.mark.parametrize("version", HTTP)
def test_requests_without_a_hit_are_sampled_and_answered(shop, version):
    with policies(shop, policy(rule(), log={"samplePercent": 50})):
        before = len(shop.node.records())
        shop.get_in_turn([(f"/{number}",) for number in range(20)], options=[version])

        def ended():
            found = fresh(shop, 10, before=before)
            return found if "flow" in [each["event_type"] for each in found] else None

        found = until(ended, within=10, what="the end of the connection")
        sampled = [each for each in found if each["event_type"] == "http"]
        assert 9 <= len(sampled) <= 11
        assert [each["http"]["url"] for each in sampled] == [f"/{each['tx_id']}" for each in sampled]
        assert {each["http"]["status"] for each in sampled} == {200}
        assert all(each["http"]["length"] > 0 for each in sampled)
        assert sorted({each["event_type"] for each in found}) == ["flow", "http", "tls"]
        assert [each["event_type"] for each in found].count("tls") == 1


def test_fingerprints_are_those_of_what_the_client_sent(shop):
    context = default_client_context(cadata=shop.authority.pem.decode())
    context.set_alpn_protocols(["http/1.1"])
    with policies(shop, policy(rule())):
        before = len(shop.node.records())
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_hostname=scene.HOST)
        with Client(shop.space.ip, scene.TLS_PORT, netns=shop.space.client) as client:  # TLS is spoken by hand
            hello = _shake(tls, incoming, outgoing, client.sock)
            tls.write(b"GET /admin HTTP/1.1\r\nHost: a\r\n\r\n")
            client.send(outgoing.read())
            assert client.sock.recv(65536)
        told = fresh(shop, 2, before=before)[0]
    offered = parse(hello)
    assert (told["tls"]["ja3"]["hash"], told["tls"]["ja4"]) == (ja3(offered), ja4(offered))


def _shake(tls, incoming, outgoing, sock):
    """Shake hands; the bytes of the ClientHello."""
    hello = b""
    while True:
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            sent = outgoing.read()
            hello = hello or sent
            sock.sendall(sent)
            incoming.write(sock.recv(65536))
        else:
            sock.sendall(outgoing.read())
            return hello


@pytest.mark.parametrize(("mode", "action"), [("Detect", "Pass"), ("Enforce", "Close")])
def test_what_is_not_inspected_is_told_by_reason(shop, mode, action):
    with policies(shop, policy(rule(), mode=mode, failurePolicy="Fail")):
        before = len(shop.node.records())
        with shop.client(port=scene.PLAIN_PORT) as client:
            client.send(b"GET / HTTP/1.1\r\nHost : a\r\n\r\n")
            with contextlib.suppress(OSError, ClosedError):
                client.reader.until(b"\r\n\r\n")
        told = fresh(shop, 1, before=before)[0]
        assert (told["event_type"], told["anomaly"]["event"]) == ("anomaly", "h1-field")
        assert told["sidestep"] == {"action": action, "inspected": False, "reason": "h1-field"}


def test_standard_output_carries_records_and_nothing_else(tmp_path):
    with scene.shop(tmp_path, start=False) as shop, scene.shop_nginx(shop):
        shop.node.eve = "-"
        shop.node.stdout = tmp_path / "stdout"
        shop.node.start()
        with policies(shop, policy(rule())):
            assert is_refusal(shop.get("/admin"))
            until(lambda: shop.node.stdout.stat().st_size, within=10, what="a record")
        shop.node.stop()
        lines = shop.node.stdout.read_text().splitlines()
        assert {json.loads(line)["event_type"] for line in lines} == {"tls", "alert", "flow", "stats"}
        assert json.loads(shop.node.log().splitlines()[0])["event"] == "starting"


def test_a_node_that_wants_none_gets_none(tmp_path):
    off = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "annotations": {"sidestep.dev/eve": "off"}}}
    with scene.shop(tmp_path, start=False) as shop, scene.shop_nginx(shop):
        shop.node.eve = None
        shop.node.write("node.yaml", off)
        shop.node.start()
        with policies(shop, policy(rule(), log={"samplePercent": 100})):
            assert is_refusal(shop.get("/admin"))
            assert shop.get("/").status == 200
        counters = shop.node.status()["node"]["counters"]
        assert not any(name.startswith("records_") for name in counters)


def test_a_log_that_cannot_be_written_holds_nobody_up(tmp_path):
    with scene.shop(tmp_path, start=False) as shop, scene.shop_nginx(shop):
        (tmp_path / "file").write_bytes(b"")
        shop.node.eve = tmp_path / "file" / "eve.json"
        shop.node.start()
        with policies(shop, policy(rule())):
            assert is_refusal(shop.get("/admin"))
            until(
                lambda: shop.node.status()["node"]["counters"].get("records_dropped_output", 0) >= 2,
                within=10,
                what="the count of what was lost",
            )
            assert is_refusal(shop.get("/admin"))
        until(lambda: "RecordsNotWritten" in shop.conditions(), within=10, what="the condition")
        (tmp_path / "file").unlink()
        with policies(shop, policy(rule())):
            assert is_refusal(shop.get("/admin"))
            until(shop.node.records, within=10, what="a record")
        until(lambda: "RecordsNotWritten" not in shop.conditions(), within=10, what="the condition to go")


def test_the_file_is_made_with_the_first_record_for_its_owner_only(tmp_path):
    with scene.shop(tmp_path, start=False) as shop, scene.shop_nginx(shop):
        shop.node.eve = tmp_path / "log" / "eve.json"
        shop.node.start()
        with policies(shop, policy(rule())):
            assert shop.get("/").status == 200
            assert not shop.node.eve.parent.exists()
            assert is_refusal(shop.get("/admin"))
            until(shop.node.eve.exists, within=10, what="the file")
            assert shop.node.eve.stat().st_mode & 0o777 == 0o600
            assert shop.node.eve.parent.stat().st_mode & 0o777 == 0o700
