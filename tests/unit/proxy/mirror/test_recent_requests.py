"""The ring of a port: what it keeps and for how long, and whom it shows what."""

from collections import Counter
from types import SimpleNamespace

import msgspec
import pytest

from sidestep.engine.mirror.gate import Loss, Why
from sidestep.engine.mirror.notes import Answer, Note
from sidestep.model.filter import Filter, HeaderCondition, HeaderTest, PathCondition, PathTest
from sidestep.model.shown import Shown
from sidestep.policy.matching import compile_filter
from sidestep.policy.route import Rule
from sidestep.proxy.control import messages
from sidestep.proxy.mirror.earlier_requests import STEP, EarlierRequests
from sidestep.proxy.mirror.recent_requests import ENTRIES, KEEPER, SIZE, Entry, RecentRequests
from sidestep.proxy.mirror.request_log import RequestLog
from tests.unit.proxy.mirror.test_request_log import DaemonLink

FIELDS = ((":method", "GET"), ("x-dev", "ada"), ("authorization", "[redacted]"))


def line(path="/", *, number=0, status=200, age=0.0, fields=FIELDS, authority="app.test"):
    answer = messages.LoggedAnswer(status, "app", "", 0.1, 0, 2, True, "x: y") if status else None
    return messages.LoggedRequest(
        "", 8080, "10.0.0.1", 40000, "GET", path, authority, True,
        fields=fields, protocol="http/1.1", age=age, number=number, answer=answer,
    )  # fmt: skip


def wanting(*, since=0.0, last=0, statuses=(), headers=(), paths=()):
    wanted = Filter(headers=headers, paths=paths)
    return Rule("u1", "shop/flows", compile_filter(wanted), heads_only=True, shown=Shown(statuses, since, last))


class Loop:
    """Calls what is due when it is asked to."""

    def __init__(self):
        self.now = 100.0
        self.due = []

    def later(self, delay, call):
        self.due.append(call)

    def run(self, turns=10_000):
        for _ in range(turns):
            if not self.due:
                return
            self.now += 0.01
            self.due.pop(0)()


class Port:
    """A port whose sessions are all there."""

    def __init__(self, ring):
        self.recent = ring
        self.was_kept = True
        self.gone = set()

    def serves(self, uid):
        return uid not in self.gone


def told(ring, rule, link=None):
    loop, link = Loop(), link or DaemonLink()
    EarlierRequests(loop, link).tell(Port(ring), 8080, rule)
    loop.run()
    lines = [each for message in link.sent for each in message.requests]
    [over] = [each for message in link.sent for each in message.earlier]
    assert over.count == len(lines)
    assert {each.uid for each in lines} <= {"u1"}
    assert all(each.earlier and not each.number for each in lines)
    return lines


@pytest.fixture
def ring():
    return RecentRequests()


def test_no_more_than_so_many_requests_are_kept_the_latest(ring):
    for number in range(ENTRIES + 7):
        ring.keep(line(f"/{number}"), 1.0)
    assert len(ring) == ENTRIES
    assert next(ring.latest_first()).read().path == f"/{ENTRIES + 6}"
    assert [*ring.latest_first()][-1].read().path == "/7"


def test_no_more_than_so_many_bytes_are_kept(ring):
    for _ in range(ENTRIES):
        ring.keep(line("/" + "x" * 2000), 1.0)
    held = sum(entry.size for entry in ring.latest_first())
    assert SIZE - 4096 < held <= SIZE
    assert ring._room == SIZE - held


def test_late_answers_count_and_are_shown():
    small = RecentRequests(size=4 * Entry(msgspec.msgpack.encode(line("/1", number=1, status=0)), 1.0, 1).size)
    room = small._room
    for number in range(1, 5):
        small.keep(line(f"/{number}", number=number, status=0), 1.0)
    before = len(small)
    assert (before, small._room) == (4, 0)
    for number in range(1, 5):
        small.keep(msgspec.structs.replace(line(status=503), number=number, is_answer=True), 2.0)
    assert len(small) < before
    assert small._room == room - sum(entry.size for entry in small.latest_first())
    assert {entry.read().answer.status for entry in small.latest_first()} == {503}
    assert not small._waiting


def test_answers_of_what_went_are_forgotten():
    small = RecentRequests(entries=2)
    for number in range(1, 6):
        small.keep(line(number=number, status=0), 1.0)
    assert [*small._waiting] == [4, 5]
    small.keep(msgspec.structs.replace(line(), number=1, is_answer=True), 2.0)
    assert len(small) == 2
    small.clear()
    assert (len(small), small._waiting, small._room, small.source) == (0, {}, SIZE, None)


def test_the_last_ones_are_told_in_order(ring):
    for number in range(100):
        ring.keep(line(f"/{number}"), 1.0)
    assert [each.path for each in told(ring, wanting(last=3))] == ["/97", "/98", "/99"]
    everything = told(ring, wanting(last=1000))
    assert [each.path for each in everything] == [f"/{number}" for number in range(100)]


def test_what_is_older_is_not_told_and_times_are_those_of_the_heads(ring):
    for number in range(90):
        ring.keep(line(f"/{number}", age=0.5), number + 0.5)
    lines = told(ring, wanting(since=20.0))
    assert [each.path for each in lines] == [f"/{number}" for number in range(80, 90)]
    assert 20.0 <= lines[0].age < 21.0


def test_one_that_was_told_late_hides_none_that_came_after_it(ring):
    ring.keep(line("/younger"), 85.0)
    ring.keep(line("/late", age=15.0), 90.0)
    ring.keep(line("/latest"), 91.0)
    assert [each.path for each in told(ring, wanting(since=20.0))] == ["/younger", "/latest"]


@pytest.mark.parametrize(
    ("rule", "paths"),
    [
        (wanting(last=9), ["/a", "/b?q=1", "/c", "/d"]),
        (wanting(last=9, statuses=("5xx",)), ["/b?q=1"]),
        (wanting(last=9, statuses=("none", "404")), ["/c", "/d"]),
        (wanting(last=1, statuses=("5xx", "404")), ["/c"]),
        (wanting(last=9, paths=(PathCondition(PathTest.EQUAL, "/b"),)), ["/b?q=1"]),
        (wanting(last=9, headers=(HeaderCondition("x-dev", HeaderTest.EXACT, "eve"),)), ["/d"]),
        (wanting(last=9, headers=(HeaderCondition("host", HeaderTest.EXACT, "app.test"),)), ["/a", "/b?q=1", "/c"]),
        (wanting(last=9, headers=(HeaderCondition("authorization", HeaderTest.EXACT, "Bearer S3CRET"),)), []),
        (wanting(last=9, headers=(HeaderCondition("authorization", HeaderTest.PRESENT),)), ["/a", "/b?q=1", "/c"]),
    ],
)
def test_a_session_is_shown_what_matches_as_it_is_shown(ring, rule, paths):
    ring.keep(line("/a"), 1.0)
    ring.keep(line("/b?q=1", status=502), 2.0)
    ring.keep(line("/c", status=404), 3.0)
    ring.keep(line("/d", status=0, fields=(("x-dev", "eve"), ("host", "other.test"))), 4.0)
    assert [each.path for each in told(ring, rule)] == paths


def test_what_the_daemon_does_not_take_is_told_later(ring):
    for number in range(3 * STEP):
        ring.keep(line(f"/{number}" + "x" * 1900), 1.0)
    link, loop = DaemonLink(behind=1), Loop()
    EarlierRequests(loop, link).tell(Port(ring), 8080, wanting(last=1000))
    loop.run(turns=50)
    assert len(link.sent) == 1
    link.behind = 1 << 30
    loop.run()
    lines = [each for message in link.sent for each in message.requests]
    assert [each.path.strip("x") for each in lines] == [f"/{number}" for number in range(3 * STEP)]


def test_a_session_that_is_gone_is_told_no_more_and_the_next_one_is(ring):
    for number in range(STEP * 4):
        ring.keep(line(f"/{number}"), 1.0)
    link, loop, port = DaemonLink(), Loop(), Port(ring)
    earlier = EarlierRequests(loop, link)
    earlier.tell(port, 8080, wanting(last=1000))
    earlier.tell(port, 8080, Rule("u2", "", lambda *_: True, heads_only=True, shown=Shown(last=2)))
    loop.run(turns=2)
    port.gone.add("u1")
    loop.run()
    assert {each.uid for message in link.sent for each in message.requests} == {"u2"}
    assert [each.uid for message in link.sent for each in message.earlier] == ["u2"]


# --- what it is fed with --------------------------------------------------------------------------------------------

ANSWER = Answer(500, "app", "", 0.25, 0, 0, is_whole=True)


def logged(*notes, source):
    link, ring, loop = DaemonLink(), RecentRequests(), Loop()
    ring.source = source
    log = RequestLog(loop, link)
    counters = Counter()
    port = SimpleNamespace(counters=counters, steered=SimpleNamespace(number=8080), outward=None, recent=ring)
    mirror = SimpleNamespace(notes=[*notes])
    log.add(
        SimpleNamespace(
            relay=SimpleNamespace(mirror=mirror),
            port=port,
            endpoints=SimpleNamespace(client="::1", client_port=1),
            tls=False,
            tls_facts=None,
        )
    )
    log.lose({Loss(8080, KEEPER.uid, Why.BUDGET): 3})
    log.flush()
    assert not any(message.losses for message in link.sent)
    return [each for message in link.sent for each in message.requests], ring, counters


def note(rule, path, **more):
    return Note(rule, b"GET", path, b"a", copied=True, at=99.0, **more)


def test_lines_of_the_proxys_own_rule_are_kept_and_not_sent():
    lines, ring, counters = logged(note(KEEPER, b"/kept", answer=ANSWER), source=KEEPER.uid)
    assert not lines
    assert not counters
    [entry] = ring.latest_first()
    assert (entry.read().path, entry.read().answer.status, entry.at) == ("/kept", 500, 99.0)


def test_lines_of_flows_of_everything_are_kept_too():
    everything = Rule("all", "", KEEPER.matches, heads_only=True)
    some = Rule("some", "", KEEPER.matches, heads_only=True)
    lines, ring, counters = logged(note(everything, b"/x"), note(some, b"/x"), source="all")
    assert [each.uid for each in lines] == ["all", "some"]
    assert (len(ring), counters["flows"]) == (1, 2)


def test_nothing_is_kept_without_a_source():
    lines, ring, _ = logged(note(Rule("all", "", KEEPER.matches, heads_only=True), b"/x"), source=None)
    assert (len(lines), len(ring)) == (1, 0)


@pytest.mark.parametrize(
    ("statuses", "answers", "told"),
    [
        (("5xx",), (ANSWER, None), [500]),
        (("none",), (ANSWER, None), [None]),
        (("404",), (ANSWER, None), []),
    ],
)
def test_requests_that_were_answered_otherwise_are_counted_and_not_sent(statuses, answers, told):
    rule = Rule("some", "", KEEPER.matches, heads_only=True, shown=Shown(statuses))
    lines, _, counters = logged(*(note(rule, b"/x", answer=each) for each in answers), source=None)
    assert [each.answer and each.answer.status for each in lines] == told
    assert counters["flows"] == len(answers)
