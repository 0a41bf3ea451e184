"""Records on their way to the daemon: what one message holds, and what is only counted."""

from collections import Counter

import msgspec
import pytest

from sidestep.engine.http1.samples import Http1Sample
from sidestep.protocols.eve_records import Record
from sidestep.proxy.control import live_records, messages, record_queue
from sidestep.proxy.control.record_queue import RecordQueue
from tests.unit.node.records.made import alert
from tests.unit.proxy.mirror.test_request_log import Clock, DaemonLink


def queue(**options):
    link = DaemonLink(**options)
    made = RecordQueue(Clock(), link)
    made.wanted = True
    return link, made


def test_records_are_sent_once_in_order_and_in_messages_that_fit():
    link, records = queue()
    made = [alert(b"/%d/" % number + b"x" * (number % 7 * 300)) for number in range(300)]
    for each in made:
        records.add(each)
    records.flush()
    records.flush()
    sent = [msgspec.msgpack.decode(data, type=Record) for message in link.sent for data in message.records]
    assert sent == made
    assert len(link.sent) > 2
    assert all(message.dropped == {} for message in link.sent)


def test_what_finds_no_room_is_counted_in_the_next_message(monkeypatch):
    monkeypatch.setattr(record_queue, "WAITING", 2000)
    link, records = queue()
    for _ in range(10):
        records.add(alert())
    records.drop("connection")
    records.flush()
    [message] = link.sent
    assert 2 <= len(message.records) < 10
    assert message.dropped == {"room": 10 - len(message.records), "connection": 1}


def test_more_than_the_rate_is_dropped(monkeypatch):
    monkeypatch.setattr(record_queue, "BURST", 2000)
    link, records = queue()
    for _ in range(10):
        records.add(alert())
    records.flush()
    [message] = link.sent
    assert message.dropped == {"rate": 10 - len(message.records)}


def test_records_wait_while_the_daemon_is_behind_and_are_sent_once():
    link, records = queue(behind=1)
    made = [alert(b"/%d/" % number + b"x" * 2000) for number in range(60)]
    for each in made[:40]:
        records.add(each)
    records.flush()
    assert 0 < len(urls(link)) < 40
    for each in made[40:]:
        records.add(each)
        records.flush()
    link.behind = 1 << 30
    records.flush()
    records.flush()
    assert [msgspec.msgpack.decode(data, type=Record) for message in link.sent for data in message.records] == made
    assert all(message.dropped == {} for message in link.sent)


def test_while_the_daemon_is_behind_what_finds_no_room_is_counted(monkeypatch):
    monkeypatch.setattr(record_queue, "WAITING", 2000)
    link, records = queue(behind=0)
    for _ in range(10):
        records.add(alert())
        records.flush()
    link.behind = 1 << 30
    records.flush()
    records.add(alert())
    records.flush()
    assert sum(len(message.records) for message in link.sent) == 11 - link.sent[0].dropped["daemon"]
    assert [message.dropped for message in link.sent] == [{"daemon": 10 - len(link.sent[0].records)}, {}]


def test_a_flush_follows_while_the_daemon_is_behind():
    link, records = queue(behind=0)
    due = []
    records._loop.later = lambda _, call: due.append(call)
    records.add(alert())
    records.live.keep({"a"})
    records.live.add(alert(), ["a"])
    for _ in range(3):
        calls, due[:] = [*due], []
        assert calls
        for call in calls:
            call()
    link.behind = 2
    for call in due:
        call()
    assert {type(message) for message in link.sent} == {messages.Records, messages.LiveRecords}


def test_what_is_found_is_sent_soon_and_what_is_told_of_connections_waits():
    link, records = queue()
    due = []
    records._loop.later = lambda seconds, call: due.append((seconds, call))
    flow = msgspec.structs.replace(alert(), event_type="flow")
    records.add(flow)
    records.add(flow)
    assert [seconds for seconds, _ in due] == [record_queue.LATER]
    records.add(alert())
    records.add(flow)
    assert [seconds for seconds, _ in due] == [record_queue.LATER, record_queue.MOMENT]
    due[1][1]()
    assert len(link.sent[0].records) == 4
    records.defer(Maker(), sample(0))
    assert [seconds for seconds, _ in due[2:]] == [record_queue.MOMENT]
    for _, call in due:
        call()
    assert len(link.sent) == 2, "a flush that finds nothing sends nothing"


def test_many_records_of_connections_do_not_wait_until_there_is_no_room():
    _, records = queue()
    due = []
    records._loop.later = lambda seconds, call: due.append(seconds)
    flow = msgspec.structs.replace(alert(b"/" + b"x" * 1000), event_type="tls")
    while len(due) < 2:
        records.add(flow)
    assert due == [record_queue.LATER, record_queue.MOMENT]
    assert records._size < 2 * record_queue.ENOUGH < record_queue.WAITING


def test_nothing_is_sent_while_nobody_reads():
    link, records = queue()
    records.wanted = False
    records.add(alert())
    records.drop("connection")
    records.flush()
    assert link.sent == []


@pytest.mark.parametrize("text", [b"\xff", b"x", "\u202e".encode()])
def test_no_record_is_too_large_for_a_message(text):
    link, records = queue()
    records.add(alert(text * 4000))
    records.add(msgspec.structs.replace(alert(), app_proto="x" * (messages.MAX_RECORD + 1)))
    records.flush()
    [message] = link.sent
    assert len(message.records) == 1
    assert message.dropped == {"size": 1}


class Maker:
    """Makes records that tell which sample they are of, and remembers when."""

    def __init__(self):
        self.made = []

    def encode(self, at, sample):
        self.made.append(at)
        return msgspec.msgpack.encode(alert(b"/%d" % sample.number))


def sample(number, head=b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"):
    return Http1Sample(number, head, None)


def urls(link):
    sent = [msgspec.msgpack.decode(data, type=Record) for message in link.sent for data in message.records]
    return [each.http.url for each in sent]


def test_records_of_samples_are_made_later_and_stay_in_order():
    link, records = queue()
    maker = Maker()
    for number in range(3):
        records.defer(maker, sample(number))
    assert maker.made == []
    records.add(alert(b"/hit"))
    records.defer(maker, sample(3))
    assert len(maker.made) == 3
    records.flush()
    assert urls(link) == ["/0", "/1", "/2", "/hit", "/3"]
    assert maker.made == sorted(maker.made)
    assert all(message.dropped == {} for message in link.sent)


def test_samples_for_which_there_is_no_rate_are_not_made(monkeypatch):
    monkeypatch.setattr(record_queue, "BURST", 10 * record_queue.LIKELY)
    monkeypatch.setattr(record_queue, "RATE", 0.001)
    link, records = queue()
    maker = Maker()
    for number in range(30):
        records.defer(maker, sample(number))
    records.flush()
    [message] = link.sent
    assert len(maker.made) == 10
    assert len(message.records) + message.dropped["rate"] == 30


def test_what_samples_keep_is_bounded(monkeypatch):
    monkeypatch.setattr(record_queue, "WAITING", 2000)
    link, records = queue()
    for number in range(5):
        records.defer(Maker(), sample(number, b"GET / HTTP/1.1\r\n" + b"x" * 600))
    records.flush()
    assert link.sent[0].dropped == {"room": 2}
    assert urls(link) == ["/0", "/1", "/2"]
    records.defer(Maker(), sample(7))
    records.flush()
    assert urls(link)[3:] == ["/7"]


def test_no_sample_is_kept_while_nobody_reads():
    link, records = queue()
    records.wanted = False
    maker = Maker()
    records.defer(maker, sample(0))
    records.flush()
    assert (link.sent, maker.made) == ([], [])


def live(link):
    return [message for message in link.sent if isinstance(message, messages.LiveRecords)]


def test_each_session_gets_its_records_and_the_log_its_own():
    link, records = queue()
    records.live.keep({"a", "b"})
    records.add(alert(b"/log"))
    records.live.add(alert(b"/both"), ["a", "b", "gone"])
    records.live.add(alert(b"/a"), ["a"])
    records.live.drop("connection", ["b", "gone"])
    records.flush()
    told = {message.uid: (len(message.records), message.dropped) for message in live(link)}
    assert told == {"a": (2, {}), "b": (1, {"connection": 1})}
    assert sum(len(message.records) for message in link.sent if isinstance(message, messages.Records)) == 1


def test_records_of_sessions_go_on_while_there_is_no_log():
    link, records = queue()
    records.wanted = False
    records.live.keep({"a"})
    records.add(alert())
    records.live.add(alert(), ["a"])
    records.flush()
    [message] = link.sent
    assert (message.uid, len(message.records)) == ("a", 1)


def test_what_a_session_floods_costs_neither_the_log_nor_another_session(monkeypatch):
    monkeypatch.setattr(live_records, "LIVE_WAITING", 2 * messages.MAX_RECORD)
    link, records = queue()
    records.live.keep({"a", "b"})
    for _ in range(200):
        records.live.add(alert(b"/" * 1000), ["a"])
    records.live.add(alert(), ["b"])
    records.add(alert())
    records.flush()
    told = {message.uid: message.dropped for message in live(link)}
    assert told["a"]["room"] > 100
    assert told["b"] == {}
    assert any(isinstance(message, messages.Records) and not message.dropped for message in link.sent)


def test_each_session_has_an_equal_share_of_the_rate(monkeypatch):
    monkeypatch.setattr(live_records, "LIVE_BURST", 4 * messages.MAX_RECORD)
    link, records = queue()
    records.live.keep({"a", "b"})
    for _ in range(100):
        records.live.add(alert(b"/" * 2000), ["a", "b"])
        records.live.flush()
    told = {uid: sum(len(each.records) for each in live(link) if each.uid == uid) for uid in "ab"}
    assert told["a"] == told["b"] < 100


def test_what_waits_for_a_session_is_told_when_another_one_comes():
    link, records = queue(behind=0)
    records.live.keep({"a"})
    records.live.add(alert(), ["a"])
    records.live.drop("connection", ["a"])
    records.live.keep({"a", "b"})
    link.behind = 1
    records.flush()
    [message] = live(link)
    assert (message.uid, len(message.records), message.dropped) == ("a", 1, {"connection": 1})


def test_sessions_take_turns_while_the_daemon_takes_little():
    link, records = queue(behind=0)
    records.live.keep(set("abcd"))
    for turn in range(1, 9):
        records.live.add(alert(b"/%d" % turn), "abcd")
        link.behind += 1
        records.live.flush()
    assert Counter(message.uid for message in live(link)) == dict.fromkeys("abcd", 2)
    link.behind = 1 << 30
    records.live.flush()
    told = {uid: [each for message in live(link) if message.uid == uid for each in message.records] for uid in "abcd"}
    assert {len(each) for each in told.values()} == {8}
    assert not any(message.dropped for message in live(link))
