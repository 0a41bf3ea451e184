"""Records of pod proxies for sessions: checked like those of the log, bounded for the node, all losses counted."""

import json
from collections import Counter

import msgspec
import pytest

from sidestep.model.errors import PeerError
from sidestep.node.records import live
from sidestep.node.records.live import LiveRecordRelay
from sidestep.protocols.eve_records import Kubernetes, Sidestep
from sidestep.proxy.control import messages
from tests.unit.node.records.made import RULES, alert, anomaly, encoded, pod


class Feed:
    def __init__(self):
        self.lines = []
        self.lost = Counter()

    def put(self, line, pod):
        assert pod == "shop/orders-1"
        self.lines.append(json.loads(line))

    def lose(self, pod, reason, count):
        assert pod == "shop/orders-1"
        self.lost[reason] += count


@pytest.fixture
def feed():
    return Feed()


def relay(feed):
    return LiveRecordRelay(node="n1", feed=lambda uid: feed if uid == "s" else None)


def message(*records, uid="s", **dropped):
    return messages.LiveRecords(1, uid, encoded(*records), dropped)


def test_records_go_to_their_session_under_the_name_of_their_pod(feed):
    forged = msgspec.structs.replace(alert(), kubernetes=Kubernetes("bank", "vault-1", "deployment/vault", "n9"))
    relay(feed).take(pod(), message(forged, anomaly()), RULES)
    assert [each["event_type"] for each in feed.lines] == ["alert", "anomaly"]
    own = {"namespace": "shop", "pod": "orders-1", "workload": "deployment/orders", "node": "n1"}
    assert all(each["kubernetes"] == own for each in feed.lines)
    assert not feed.lost


def test_records_of_a_session_that_is_gone_are_dropped(feed):
    relay(feed).take(pod(), message(alert(), uid="other"), RULES)
    assert not feed.lines


def test_what_a_proxy_may_not_send_is_counted(feed):
    foreign = alert(sidestep=Sidestep(policy="bank/vault", rule="x", action="Block", inspected=True))
    relay(feed).take(pod(), message(foreign, alert()), RULES)
    assert len(feed.lines) == 1
    assert feed.lost == {"refused": 1}


def test_what_is_no_record_is_an_error_of_the_proxy(feed):
    with pytest.raises(PeerError):
        relay(feed).take(pod(), messages.LiveRecords(1, "s", (b"\xc1",), {}), RULES)


def test_what_the_proxy_dropped_is_told_by_reasons_that_there_are(feed):
    relay(feed).take(pod(), message(rate=2, connection=1, gossip=7, size=-5, daemon=1 << 40), RULES)
    assert feed.lost == {"rate": 2, "connection": 1, "other": 7}


def test_all_sessions_together_have_a_bound(feed, monkeypatch):
    monkeypatch.setattr(live, "BURST", 4096)
    monkeypatch.setattr(live, "RATE", 1)
    made = relay(feed)
    for _ in range(20):
        made.take(pod(), message(alert(b"/" * 1000)), RULES)
    assert 0 < len(feed.lines) < 5
    assert feed.lost == {"node": 20 - len(feed.lines)}


def test_no_record_is_larger_than_a_line_may_be(feed):
    """JSON's escapes may make a record of 32 KiB six times as large."""
    widest = alert("\u202e".encode() * 4000)
    relay(feed).take(pod(), message(widest), RULES)
    assert len(feed.lines) == 1
