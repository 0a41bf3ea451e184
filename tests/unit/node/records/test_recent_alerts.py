"""The last alerts of a daemon: found by the id that a client was told, bounded, from the log and from sessions."""

import msgspec

from sidestep.node.records import recent_alerts
from sidestep.node.records.eve_log import EveLog
from sidestep.node.records.live import LiveRecordRelay
from sidestep.node.records.recent_alerts import MAX_EACH, RecentAlerts
from sidestep.protocols import eve
from sidestep.protocols.eve_records import Kubernetes
from sidestep.proxy.control import messages
from tests.unit.node.records.made import DECIDED, ORIGIN, RULES, alert, anomaly, encoded, http, message, pod


def of(exchange="a-1", **more):
    return alert(sidestep=msgspec.structs.replace(DECIDED, id=exchange, **more))


def whose(name, **more):
    return msgspec.structs.replace(of(**more), kubernetes=Kubernetes("shop", name))


def noted(*records):
    recent = RecentAlerts()
    for each in records:
        recent.note(each, eve.encode(each))
    return recent


def test_all_alerts_of_an_id_are_found_once_each():
    recent = noted(of(), of("b-2"), of(rule="cards"), of(), of(pattern="x"), anomaly())
    assert [(each.sidestep.rule, each.sidestep.pattern) for each in recent.of("a-1")] == [
        ("no-admin", None), ("cards", None), ("no-admin", "x"),
    ]  # fmt: skip
    assert len(recent) == 2
    assert not list(recent.of("c-3"))


def test_a_pod_that_tells_anothers_id_takes_none_of_its_room():
    recent = RecentAlerts()
    for number in range(MAX_EACH + 1):
        mine = whose("mallory", pattern=str(number))
        recent.note(mine, eve.encode(mine))
    recent.note(whose("orders-1"), eve.encode(whose("orders-1")))
    recent.note(whose("orders-1", rule="cards"), eve.encode(whose("orders-1", rule="cards")))
    assert len(recent) == 2
    assert [each.kubernetes.pod for each in [*recent.of("a-1")][-2:]] == ["orders-1", "orders-1"]


def test_what_names_no_rule_is_not_kept():
    answer = eve.record(1, ORIGIN, http(), sidestep=msgspec.structs.replace(DECIDED, policy=None, rule=None))
    assert not len(noted(answer))


def test_the_oldest_make_room(monkeypatch):
    monkeypatch.setattr(recent_alerts, "MAX_EXCHANGES", 3)
    recent = noted(*(of(f"a-{number}") for number in range(5)))
    assert [bool(list(recent.of(f"a-{number}"))) for number in range(5)] == [False, False, True, True, True]
    monkeypatch.setattr(recent_alerts, "MAX_EACH", 2)
    assert len(list(noted(*(of(pattern=str(number)) for number in range(5))).of("a-1"))) == 2


def test_their_bytes_are_bounded(monkeypatch):
    monkeypatch.setattr(recent_alerts, "MAX_BYTES", 3 * len(eve.encode(of("a-0"))))
    recent = noted(*(of(f"a-{number}") for number in range(7)))
    assert len(recent) == 3
    for number in range(7, 10):
        recent.note(of(f"a-{number}"), eve.encode(of(f"a-{number}")))
    assert len(recent) == 3


def test_those_of_the_log_and_of_sessions_are_noted_as_the_daemon_tells_them(tmp_path):
    log = EveLog(node="n", path=tmp_path / "eve.json")
    log.take(pod(), message(of(), of("f-1", policy="bank/vault")), RULES)
    relay = LiveRecordRelay(node="n", feed=lambda _uid: Feed(), recent=log.recent)
    relay.take(pod(), messages.LiveRecords(1, "s", encoded(of("b-2")), {}), RULES)
    assert len(log.recent) == 2, "what a proxy may not send is not kept"
    for each in ("a-1", "b-2"):
        [found] = log.recent.of(each)
        assert found.kubernetes.pod == "orders-1"
        assert found.alert.signature == "shop/orders: no-admin"


class Feed:
    def put(self, line, pod):
        pass

    def lose(self, pod, reason, count):
        raise AssertionError(reason)
