"""What of a pod proxy's records is written: what has the form of a record, about the pod's policies, under its name."""

import json
import time

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidestep.model.errors import PeerError
from sidestep.node.records.checking import SKEW, checked, decode
from sidestep.protocols import eve
from sidestep.protocols.eve_records import FileInfo, Flow, Gap, Kubernetes, Record, Sidestep
from tests.effort import examples
from tests.unit.node.records.made import DECIDED, ORIGIN, RULES, alert, anomaly, encoded, http

KUBERNETES = Kubernetes("shop", "orders-1", "deployment/orders", "node-1")
NOW = time.time_ns()


def check(record, now=NOW):
    [data] = encoded(record)
    return checked(decode(data), rules=RULES, kubernetes=KUBERNETES, now=now)


def test_a_record_goes_on_under_the_name_of_its_pod():
    sent = msgspec.structs.replace(alert(at=NOW), kubernetes=Kubernetes("bank", "vault-1", "deployment/vault", "n2"))
    made = check(sent)
    assert made.kubernetes == KUBERNETES
    assert msgspec.structs.replace(made, kubernetes=sent.kubernetes) == sent


@pytest.mark.parametrize(
    "record", [alert(), anomaly(), eve.record(NOW, ORIGIN, http(), sidestep=Sidestep(inspected=True, id="a-1"))]
)
def test_what_an_honest_proxy_sends_is_written(record):
    assert check(record) is not None


def outbound(**fields):
    """An alert about a connection that the pod makes."""
    decided = msgspec.structs.replace(DECIDED, direction="egress", host="api.test", id=None)
    return msgspec.structs.replace(alert(), http=None, sidestep=msgspec.structs.replace(decided, **fields))


def test_records_of_connections_that_a_pod_makes():
    made = check(outbound())
    assert made.sidestep.direction == "egress"
    assert made.alert.signature == "shop/orders: " + DECIDED.rule
    assert check(outbound(host=None)) is not None
    assert check(outbound(host="a" * 254)) is None
    assert check(outbound(host="a\nb")) is None
    assert check(outbound(rule="other")) is None
    assert check(outbound(direction=None)) is None, "an alert without its exchange, and a host"
    with_exchange = msgspec.structs.replace(outbound(), http=http())
    assert check(with_exchange).sidestep.host == "api.test", "of one that is opened"
    with pytest.raises(PeerError):
        check(outbound(direction="inward"))


@pytest.mark.parametrize("off", [-10 * SKEW, -2 * SKEW, 2 * SKEW, 10**6 * SKEW])
def test_a_time_that_is_not_now_is_replaced(off):
    assert check(alert(at=NOW + off)).timestamp == eve.timestamp(NOW)


def firewall(pattern):
    """What becomes of an alert of a firewall with this pattern."""
    decided = msgspec.structs.replace(DECIDED, rule=eve.FIREWALL, pattern=pattern)
    [data] = encoded(msgspec.structs.replace(alert(), sidestep=decided))
    rules = {name: {*names, eve.FIREWALL} for name, names in RULES.items()}
    names = {942100: "SQL Injection", 932100: "Shell", 941100: "XSS"}
    made = checked(decode(data), rules=rules, kubernetes=KUBERNETES, now=NOW, names=names)
    return None if made is None else made.alert


def test_an_alert_of_a_firewall_has_numbers_and_texts_of_rules():
    found = firewall("942100 949110")
    assert (found.signature_id, found.signature) == (942100, "shop/orders: CRS 942100 SQL Injection")
    assert firewall("949110").signature_id == 949110
    assert firewall("942100 932100 941100 10000007").signature.endswith("CRS 941100 XSS and 1 more")
    assert firewall("10000007").signature.endswith(": custom rule 7")
    assert firewall("10100007 999999").signature.endswith(": custom rule 7; CRS 999999")
    assert firewall("over-limit").signature == "shop/orders: the request exceeds a limit of the firewall"
    assert firewall("").signature == "shop/orders: the request cannot be read"


@pytest.mark.parametrize("pattern", ["the body", "942100;", "9" * 11, " ".join(["1"] * 65), "942100 x", "-1"])
def test_an_alert_of_a_firewall_says_nothing_else(pattern):
    assert firewall(pattern) is None


def test_only_policies_with_a_firewall_have_such_alerts():
    assert check(msgspec.structs.replace(alert(), sidestep=msgspec.structs.replace(DECIDED, rule="WAF"))) is None


@pytest.mark.parametrize(
    "timestamp", ["", "yesterday", "2026-13-45T25:61:61.000000+0000", "9" * 400, "2026-02-30T00:00:00.000000+0000"]
)
def test_a_time_that_is_none_is_replaced(timestamp):
    assert check(msgspec.structs.replace(alert(), timestamp=timestamp)).timestamp == eve.timestamp(NOW)


def test_number_and_text_of_an_alert_are_those_of_its_rule():
    forged = eve.alert("shop/other", "fake", blocked=True)
    made = check(msgspec.structs.replace(alert(), alert=msgspec.structs.replace(forged, severity=9, gid=7, rev=-4)))
    assert made.alert == eve.alert("shop/orders", "no-admin", blocked=True)


@pytest.mark.parametrize(
    ("told", "is_good"),
    [
        ({}, True),
        ({"state": "TRUNCATED", "sha256": None}, True),
        ({"state": "TRUNCATED"}, False),
        ({"sha256": None}, False),
        ({"sha256": "AB" * 32}, False),
        ({"sha256": "ab"}, False),
        ({"size": -1}, False),
        ({"tx_id": 1 << 63}, False),
    ],
)
def test_a_body_has_a_hash_if_it_is_whole(told, is_good):
    fields = {
        "filename": "/a",
        "gaps": False,
        "state": "CLOSED",
        "sha256": "ab" * 32,
        "stored": False,
        "size": 1,
        "tx_id": 0,
    }
    decided = Sidestep(id="a-1", inspected=True)
    made = eve.record(NOW, ORIGIN, FileInfo(**(fields | told)), http=http(), sidestep=decided)
    assert (check(made) is not None) is is_good


FORGED = {
    "another policy": {"sidestep": msgspec.structs.replace(DECIDED, policy="bank/vault")},
    "another rule": {"sidestep": msgspec.structs.replace(DECIDED, rule="of another policy")},
    "no policy": {"sidestep": msgspec.structs.replace(DECIDED, policy=None, rule=None)},
    "half a name": {"sidestep": msgspec.structs.replace(DECIDED, rule=None)},
    "another engine": {"sidestep": msgspec.structs.replace(DECIDED, engine="suricata")},
    "nothing decided": {"sidestep": None},
    "an action that is no alert": {"sidestep": msgspec.structs.replace(DECIDED, action="Pass")},
    "no action": {"sidestep": msgspec.structs.replace(DECIDED, action=None)},
    "an action that is none": {"sidestep": msgspec.structs.replace(DECIDED, action="Applaud")},
    "a reason that is no word": {"sidestep": msgspec.structs.replace(DECIDED, reason="x y")},
    "a gap": {"sidestep": msgspec.structs.replace(DECIDED, gap=Gap(ports=(80,), start="", end="", seconds=1.0))},
    "counters": {"event_type": "stats", "stats": {"a": 1}},
    "counters in an alert": {"stats": {"a": 1}},
    "a type of its own": {"event_type": "confession"},
    "another type": {"event_type": "http"},
    "without its object": {"alert": None},
    "another object, too": {"flow": Flow(
        bytes_toserver=1, bytes_toclient=2, start="", end="", age=0, state="new", reason="forced", alerted=False)},
    "another protocol": {"proto": "UDP"},
    "no address": {"src_ip": None},
    "an address that is none": {"src_ip": "evil.test"},
    "a port that is none": {"dest_port": 1 << 16},
    "a negative port": {"src_port": -1},
    "a number too large": {"flow_id": (1 << 64) - 1},
    "a negative number": {"tx_id": -1},
    "a protocol that is no word": {"app_proto": "h t"},
}  # fmt: skip


@pytest.mark.parametrize("what", FORGED)
def test_what_no_honest_proxy_sends_is_refused(what):
    assert check(msgspec.structs.replace(alert(), **FORGED[what])) is None


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x90", b"\x80", b"\xff" * 100, b"\xdf\xff\xff\xff\xff", b'{"a": 1}'])
def test_what_is_no_record_is_an_error_of_the_peer(data):
    with pytest.raises(PeerError):
        decode(data)


def test_deep_nesting_is_an_error_of_the_peer():
    with pytest.raises(PeerError):
        decode(b"\x81\xa1a" * 10_000)


@settings(max_examples=examples(300), deadline=None)
@given(st.binary(max_size=300), st.integers(0, 400), st.integers(0, 400))
def test_anything_is_an_error_or_one_line_of_its_own_pod(noise, at, gone):
    [data] = encoded(alert())
    try:
        made = checked(
            decode(data[:at] + noise + data[at + gone :]), rules=RULES, kubernetes=KUBERNETES, now=time.time_ns()
        )
    except PeerError:
        return
    if made is not None:
        line = eve.encode(made)
        assert line.decode()[:-1].isprintable()
        assert line.endswith(b"\n")
        shown = json.loads(line)
        assert shown["kubernetes"] == {
            "namespace": "shop",
            "pod": "orders-1",
            "workload": "deployment/orders",
            "node": "node-1",
        }
        assert shown.get("sidestep", {}).get("policy") in (None, "shop/orders")


def test_a_text_cannot_begin_another_line():
    made = check(alert(b'/admin\n{"event_type":"alert"}\x1b[2J\xe2\x80\xae'))
    line = eve.encode(made)
    assert line.count(b"\n") == 1
    assert json.loads(line)["http"]["url"].startswith("/admin\n")
    assert isinstance(made, Record)
