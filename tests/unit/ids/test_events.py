"""What a Suricata says becomes records of its own pod's alerts, or nothing."""

import json
import time
from ipaddress import ip_address

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidestep.ids import events
from sidestep.protocols import eve
from sidestep.protocols.eve_records import Kubernetes
from sidestep.protocols.eve_redaction import Redaction
from tests.effort import examples

KUBERNETES = Kubernetes("shop", "orders-1", "deployment/orders", "n1")
NOW = 1_800_000_000_123_456_000
POLICIES = ("base", "shop/orders")
SECRET = "S3CRET"
POD = (ip_address("10.0.0.2"), ip_address("fd00::2"))


def said(**more):
    """An alert as Suricata 7.0.10 writes it; a member that is None is left out."""
    event = {
        "timestamp": eve.timestamp(NOW), "flow_id": 84205220062742, "pcap_cnt": 4, "event_type": "alert",
        "src_ip": "10.0.0.1", "src_port": 40000, "dest_ip": "10.0.0.2", "dest_port": 8080, "proto": "TCP",
        "pkt_src": "wire/pcap", "tx_id": 0,
        "alert": {"action": "allowed", "gid": 2, "signature_id": 7, "rev": 0, "signature": "uri", "category": "Web",
                  "severity": 3},
        "http": {"hostname": "a", "url": f"/evil?token={SECRET}", "http_user_agent": "sqlmap", "http_method": "POST",
                 "http_refer": f"https://u:{SECRET}@b/?q={SECRET}", "protocol": "HTTP/1.1", "length": 0,
                 "request_headers": [{"name": "cookie", "value": SECRET}], "http_request_body": SECRET},
        "files": [{"filename": f"/{SECRET}"}], "app_proto": "http", "direction": "to_server", "payload": SECRET,
        "flow": {"pkts_toserver": 3},
    }  # fmt: skip
    return json.dumps({name: value for name, value in (event | more).items() if value is not None}).encode() + b"\n"


def read(line, *, redaction=None, now=NOW):
    event = events.decode(line)
    assert event is not None
    return events.record(
        event, policies=POLICIES, redaction=redaction or Redaction(), pod=POD, kubernetes=KUBERNETES, now=now
    )


def test_an_alert_is_that_of_its_policy_and_pod():
    made = json.loads(eve.encode(read(said())))
    assert made["sidestep"] == {
        "policy": "shop/orders", "rule": "7", "action": "Alert", "inspected": True, "engine": "suricata",
    }  # fmt: skip
    assert made["kubernetes"]["pod"] == "orders-1"
    assert made["alert"] == {
        "action": "allowed", "gid": 1, "signature_id": 7, "rev": 0, "signature": "uri", "category": "Web",
        "severity": 3,
    }  # fmt: skip
    assert made["http"]["url"] == "/evil?token=[redacted]"
    assert made["timestamp"] == eve.timestamp(NOW)
    assert SECRET not in json.dumps(made)


def test_what_policies_redact_is_redacted():
    made = read(said(), redaction=Redaction(headers=frozenset((b"user-agent",))))
    assert made.http.http_user_agent == "[redacted]"
    made = read(said(http={"url": "/a?b=c", "http_method": "GET"}), redaction=Redaction(query_values=False))
    assert made.http.url == "/a?b=c"


@pytest.mark.parametrize(
    ("src", "dest", "towards", "direction"),
    [
        ("10.0.0.1", "10.0.0.2", "to_server", None),
        ("10.0.0.2", "10.0.0.1", "to_client", None),
        ("10.0.0.2", "10.0.0.1", "to_server", "egress"),
        ("10.0.0.1", "10.0.0.2", "to_client", "egress"),
        ("fd00::2", "fd00::1", "to_server", "egress"),
        ("fd00:0000:0000:0000:0000:0000:0000:0002", "fd00:0000:0000:0000:0000:0000:0000:0001", "to_server", "egress"),
        ("10.0.0.2", "10.0.0.2", "to_server", None),
        ("10.0.0.2", "10.0.0.1", None, "egress"),
    ],
)
def test_an_alert_of_a_connection_that_the_pod_makes_says_so(src, dest, towards, direction):
    assert read(said(src_ip=src, dest_ip=dest, direction=towards)).sidestep.direction == direction


def test_http2_names_its_stream():
    http = {"version": "2", "url": "/a", "http_method": "GET", "http2": {"stream_id": 5, "request": {}, "response": {}}}
    made = read(said(http=http, app_proto="http2"))
    assert (made.http.version, made.http.http2.stream_id, made.app_proto) == ("2", 5, "http2")


def test_an_alert_without_a_request():
    made = read(said(http=None, tx_id=None, app_proto=None))
    assert (made.http, made.tx_id, made.app_proto) == (None, None, None)


@pytest.mark.parametrize(
    "timestamp", ["", "yesterday", eve.timestamp(NOW - 10 * events.SKEW), "2026-13-41T00:00:00.1+0000"]
)
def test_a_time_that_is_not_now_is_replaced(timestamp):
    assert read(said(timestamp=timestamp)).timestamp == eve.timestamp(NOW)


ALERT = json.loads(said())["alert"]


@pytest.mark.parametrize(
    "more",
    [
        {"alert": ALERT | {"gid": 0}},
        {"alert": ALERT | {"gid": 3}},
        {"alert": None},
        {"src_ip": "evil.test"},
        {"dest_ip": ""},
    ],
)
def test_what_no_rule_of_the_pod_can_have_said(more):
    assert read(said(**more)) is None


@pytest.mark.parametrize(
    "line",
    [
        b"", b"\n", b"nonsense\n", b"[]\n", b"{}\n", b"\xff\n", b"[" * 100_000,
        said(alert=ALERT | {"gid": "1"}), said(alert=ALERT | {"signature": 1}), said(src_port=65536), said(flow_id=-1),
        said(http={"url": 1}),
    ],
)  # fmt: skip
def test_what_cannot_be_read(line):
    assert events.decode(line) is None


def test_what_says_that_it_is_alive_is_no_alert():
    assert not events.decode(b'{"event_type": "stats", "stats": {"uptime": 3}}\n').is_alert
    assert events.decode(said()).is_alert


@settings(max_examples=examples(300), deadline=None)
@given(st.binary(max_size=100), st.integers(0, 900), st.integers(0, 400))
def test_anything_is_nothing_or_one_printable_line_of_its_own_pod(noise, at, gone):
    line = said()
    event = events.decode(line[:at] + noise + line[at + gone :])
    if event is None:
        return
    made = events.record(
        event, policies=POLICIES, redaction=Redaction(), pod=POD, kubernetes=KUBERNETES, now=time.time_ns()
    )
    if made is not None:
        text = eve.encode(made).decode()
        assert text.rstrip("\n").isprintable()
        assert len(text) <= eve.MAX_RECORD
        assert json.loads(text)["kubernetes"] == msgspec.to_builtins(KUBERNETES)
