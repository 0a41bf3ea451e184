"""The lines of a node's EVE log that what an observer was told comes to."""

from __future__ import annotations

import json
import time
from typing import Any

import msgspec

from sidestep.node.records.checking import checked, decode
from sidestep.policy.accepted_policy import Outcome
from sidestep.policy.inspection import Inspection
from sidestep.protocols import eve
from sidestep.protocols.eve_records import Kubernetes
from sidestep.proxy.connection.endpoints import Endpoints
from sidestep.proxy.connection.inspection_records import ConnectionRecords
from sidestep.proxy.connection.live_ports import LivePort
from sidestep.proxy.control.record_queue import RecordQueue
from sidestep.snapshots.ports import PortSnapshot
from tests.unit.engine.inspection.inspecting import SECRET, Recorder
from tests.unit.proxy.mirror.test_request_log import Clock, DaemonLink

POD = {"namespace": "shop", "pod": "orders-1", "node": "n1"}
ACTIONS = {Outcome.ALERT: "Alert", Outcome.BLOCK: "Block"}


def lines(seen: Recorder, inspected: Inspection) -> list[dict[str, Any]]:
    """Those of hits and of what was not inspected, through the proxy's queue and the daemon's checks."""
    link = DaemonLink()
    queue = RecordQueue(Clock(), link)
    queue.wanted = True
    port = LivePort(PortSnapshot(8443, "tcp", "always", "always", ()))
    made = ConnectionRecords(port, inspected, Endpoints("192.0.2.1", 40000, "10.0.0.7", 8443), queue)
    for record in seen.records:
        made.hit(record)
    for reason, closed in seen.reasons:
        made.uninspected(reason, closed=closed)
    queue.flush()
    rules = {each.policy.display: {rule.rule.name for rule in each.rules} for each in inspected.policies}
    found = []
    for message in link.sent:
        assert not message.dropped
        for data in message.records:
            record = checked(
                decode(data), rules=rules, kubernetes=Kubernetes("shop", "orders-1", None, "n1"), now=now()
            )
            assert record is not None, msgspec.msgpack.decode(data)
            line = json.loads(eve.encode(record))
            line["sidestep"].pop("pattern", None)  # a regex is named as it is
            assert SECRET.decode() not in json.dumps(line)
            found.append(line)
    return found


def now() -> int:
    return time.time_ns()


def assert_told(seen: Recorder, inspected: Inspection) -> None:
    """Whatever happened stands in the log: each hit as an alert, and what was not inspected as an anomaly."""
    found = lines(seen, inspected)
    assert found
    assert all(each["kubernetes"] == POD for each in found)
    assert all(8443 in (each["src_port"], each["dest_port"]) for each in found)
    alerts = [each for each in found if each["event_type"] == "alert"]
    assert len(alerts) == len(seen.records)
    for line, record in zip(alerts, seen.records, strict=True):
        assert (line["sidestep"]["policy"], line["sidestep"]["rule"]) == (record.policy, record.rule)
        assert line["sidestep"]["action"] == ("WouldBlock" if record.would_block else ACTIONS[record.action])
        assert line["sidestep"]["id"] == record.exchange.id
        assert line["alert"]["action"] == ("blocked" if record.action is Outcome.BLOCK else "allowed")
        assert line["http"]["url"]
        assert ("http2" in line["http"]) is (record.exchange.protocol == "h2")
    anomalies = [each for each in found if each["event_type"] == "anomaly"]
    told = [(each["anomaly"]["event"], each["sidestep"]["reason"], each["sidestep"]["action"]) for each in anomalies]
    assert told == [(reason, reason, "Close" if closed else "Pass") for reason, closed in seen.reasons]
    assert not any(each["sidestep"]["inspected"] for each in anomalies)
