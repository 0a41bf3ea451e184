"""A node's log: what is written where, what is counted, and that nobody waits for it."""

import asyncio
import json
import os
import socket
import threading
import time

import msgspec
import pytest

from sidestep.config.node_settings import EveOutput
from sidestep.model.errors import PeerError
from sidestep.node.records import eve_log, writer
from sidestep.node.records.eve_log import EveLog
from sidestep.node.records.writer import Writer
from sidestep.protocols.eve_records import Sidestep
from sidestep.proxy.control import messages
from tests.harness.waiting import until
from tests.unit.node.records.made import RULES, alert, anomaly, message, pod


def close(log):
    asyncio.run(log.aclose())


def shown(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_records_are_written_with_what_the_daemon_knows(tmp_path):
    path = tmp_path / "eve.json"
    log = EveLog(node="node-1", path=path)
    assert log.wanted
    log.take(pod(), message(alert(), anomaly()), RULES)
    close(log)
    first, second, stats = shown(path)
    assert first["kubernetes"] == {
        "namespace": "shop", "pod": "orders-1", "workload": "deployment/orders", "node": "node-1",
    }  # fmt: skip
    assert (first["event_type"], first["http"]["url"], first["alert"]["action"]) == ("alert", "/admin", "blocked")
    assert (second["event_type"], second["sidestep"]["reason"]) == ("anomaly", "h1-ambiguous-length")
    assert stats["event_type"] == "stats"
    assert stats["kubernetes"] == {"node": "node-1"}
    assert stats["stats"]["records.received"] == 2
    assert log.counts["written"] == 3


def test_what_is_dropped_on_the_way_is_counted_and_told(tmp_path):
    path = tmp_path / "eve.json"
    log = EveLog(node="node-1", path=path)
    forged = alert(sidestep=Sidestep(policy="bank/vault", rule="x", action="Block", inspected=True))
    log.take(pod(), message(alert(), forged, rate=3, connection=2, gossip=7, daemon=1 << 40), RULES)
    log.take(pod(), message(rate=1), RULES)
    close(log)
    [_, stats] = shown(path)
    assert stats["stats"].pop("records.written") in (0, 1), "the thread that writes may have written the alert already"
    assert stats["stats"] | {"uptime": 0} == {
        "uptime": 0, "records.received": 2, "records.refused": 1, "records.dropped_rate": 4,
        "records.dropped_connection": 2, "records.dropped_other": 7, "records.dropped_output": 0,
    }  # fmt: skip


def test_what_is_no_record_is_an_error_of_the_peer(tmp_path):
    log = EveLog(node="n", path=tmp_path / "eve.json")
    with pytest.raises(PeerError):
        log.take(pod(), messages.Records(1, (b"\xc1",), {}), RULES)
    assert not (tmp_path / "eve.json").exists()


@pytest.mark.parametrize("output", [EveOutput.FILE, EveOutput.UNIX])
def test_the_setting_of_the_node_says_where(tmp_path, monkeypatch, output):
    monkeypatch.setattr(eve_log, "FILE", tmp_path / "eve.json")
    monkeypatch.setattr(eve_log, "SOCKET", tmp_path / "eve.sock")
    log = EveLog(node="node-1")
    assert not log.wanted
    log.take(pod(), message(alert()), RULES)
    assert not [*tmp_path.iterdir()]
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "eve.sock"))
        server.listen()
        server.settimeout(5)
        log.use(output)
        assert log.wanted
        log.take(pod(), message(alert()), RULES)
        if output is EveOutput.UNIX:
            with server.accept()[0] as reader:
                assert json.loads(reader.makefile("rb").readline())["event_type"] == "alert"
        else:
            until(lambda: (tmp_path / "eve.json").exists() and shown(tmp_path / "eve.json"), within=5, what="a line")
    until(lambda: log.counts["written"] == 1, within=5, what="the count of the line")
    log.use(EveOutput.OFF)
    assert not log.wanted
    log.take(pod(), message(alert()), RULES)
    close(log)
    assert log.counts["written"] == 1


def test_standard_output_carries_records(tmp_path):
    reading, writing = os.pipe()
    kept = os.dup(1)
    os.dup2(writing, 1)
    try:
        log = EveLog(node="n", path=None)
        log.use(EveOutput.STDOUT)
        log.take(pod(), message(alert()), RULES)
        line = os.read(reading, 1 << 16)
    finally:
        os.dup2(kept, 1)
    for fd in (reading, writing, kept):
        os.close(fd)
    assert json.loads(line)["event_type"] == "alert"


class Stuck:
    """A sink that does not come back until it is let."""

    def __init__(self):
        self.problem = ""
        self.let = threading.Event()
        self.got = []

    def write(self, lines):
        self.let.wait(20)
        self.got += lines
        return len(lines)

    def close(self):
        pass


def test_a_sink_that_hangs_holds_up_nobody_and_what_finds_no_room_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "WAITING", 100_000)
    log = EveLog(node="n", path=tmp_path / "eve.json")
    sink = Stuck()
    log._writer = Writer(sink, log.counts)
    began = time.thread_time()
    for _ in range(40):
        log.take(pod(), message(*[alert()] * 50), RULES)
    assert time.thread_time() - began < 5
    lost = log.counts["dropped_full"]
    assert lost > 1000
    assert log._writer._size <= 100_000
    sink.let.set()
    until(lambda: log.counts["written"] == 2000 - lost, within=10, what="what waited")
    assert len(sink.got) == 2000 - lost
    close(log)


def test_a_full_disk_is_told_once_and_counted(tmp_path, caplog):
    (tmp_path / "file").write_bytes(b"")
    told = []
    log = EveLog(node="n", path=tmp_path / "file" / "eve.json", on_problem=told.append)
    log.take(pod(), message(alert(), alert()), RULES)
    until(lambda: log.counts["dropped_output"] == 2, within=5, what="the count")
    log._tell_problem()
    log._tell_problem()
    assert told == ["File exists"] or told == ["Not a directory"]
    close(log)


def test_a_node_has_its_share_of_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(eve_log, "BURST", 2000)
    monkeypatch.setattr(eve_log, "RATE", 1)
    log = EveLog(node="n", path=tmp_path / "eve.json")
    for _ in range(20):
        log.take(pod(), message(alert()), RULES)
    assert 10 < log.counts["dropped_node"] < 20
    close(log)


def test_lines_before_a_record_that_cannot_be_read_are_written(tmp_path):
    path = tmp_path / "eve.json"
    log = EveLog(node="n", path=path)
    whole = message(alert())
    with pytest.raises(PeerError):
        log.take(pod(), messages.Records(whole.seq, (*whole.records, b"\xc1"), {}), RULES)
    close(log)
    assert shown(path)[0]["event_type"] == "alert"


def test_counts_are_told_when_something_has_happened(tmp_path):
    log = EveLog(node="n", path=tmp_path / "eve.json")
    log._tell_counts()
    assert not (tmp_path / "eve.json").exists()
    log.take(pod(), message(alert()), RULES)
    log._tell_counts()
    log._tell_counts()
    close(log)
    assert [each["event_type"] for each in shown(tmp_path / "eve.json")] == ["alert", "stats"]
    assert msgspec.json.decode((tmp_path / "eve.json").read_bytes().splitlines()[1])["stats"]["uptime"] >= 0
