"""The sink of sessions that get a record of every request: when an exchange is told, and with what."""

from __future__ import annotations

import pytest

from sidestep.engine.mirror import live_exchanges
from sidestep.engine.mirror.events import (
    H2,
    HEAD,
    HTTP1,
    RESPONSE_HEAD,
    Anomaly,
    Answerer,
    ConnectionEnd,
    ExchangeCut,
    Gap,
    RequestHead,
    ResponseHead,
)
from sidestep.engine.mirror.gate import TapGate, Why
from sidestep.engine.mirror.ledger import Ledger
from sidestep.engine.mirror.live_exchanges import WAITING, LiveExchanges
from sidestep.engine.mirror.producer import Mirror
from sidestep.engine.mirror.wiretaps import wiretap_mirror
from sidestep.model.intercept import Live
from sidestep.policy.route import Decision, Rule
from sidestep.protocols.eve_redaction import MAX_URL
from sidestep.protocols.hpack import INITIAL, decode, encode

FIELDS = [(b"host", b"a"), (b"user-agent", b"curl"), (b"cookie", b"S3CRET")]
ANSWER = b"HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\n\r\n"


def rule(live=Live.ALL, uid="s"):
    return Rule(uid, "", lambda *_: True, records=live)


class Offer:
    tally = None

    def __init__(self, *rules):
        self.decision = Decision(None, rules)


class Scene:
    """A sink with one session, and what it has told."""

    def __init__(self, *, hears=True):
        self.told = []
        self.ended = 0
        self.made = 0
        self.gate = TapGate(0.0)
        self.hears = hears
        self.mirror = Mirror(hears_responses=hears)
        self.sink = LiveExchanges(self.mirror, self.gate, self.teller, port=80)

    def teller(self):
        self.made += 1
        scene = self

        class Teller:
            def told(self, record, rules):
                scene.told.append((record, [each.uid for each in rules]))

            def over(self):
                scene.ended += 1

        return Teller()

    def begin(self, exchange=1, *, target=b"/a?b=c", fields=FIELDS, block=None, rules=None):
        wanted = self.sink.wants(exchange, Offer(*(rules or (rule(),))))
        protocol = HTTP1 if block is None else H2
        head = RequestHead(exchange, protocol, b"GET", target, b"a", fields, b"", block, 0, True, 1.0, self.hears)
        self.sink.consume(head)
        return wanted

    def answer(self, exchange=1, status=404):
        self.sink.consume(ResponseHead(exchange, Answerer.APP, status, ANSWER, None, 2.0))


def test_an_exchange_is_told_once_with_its_status():
    scene = Scene()
    assert scene.begin() == HEAD | RESPONSE_HEAD
    assert scene.told == []
    scene.answer(status=100)
    assert scene.told == []
    scene.answer()
    scene.answer()
    [(record, uids)] = scene.told
    assert uids == ["s"]
    assert (record.method, record.target, record.host, record.status) == (b"GET", b"/a?b=c", b"a", 404)
    assert (record.protocol, record.stream, record.number) == ("http/1", 0, None)
    assert list(record.answer) == [(b"content-type", b"text/html")]
    assert scene.sink.holds(1) == 0


def test_http2_has_its_stream_and_number():
    scene = Scene()
    block = decode(INITIAL, encode([(b":status", b"200")]), list_limit=1 << 16, table_limit=4096)
    scene.begin(5, block=block)
    scene.sink.consume(ResponseHead(5, Answerer.APP, 200, b"", block, 2.0))
    [(record, _)] = scene.told
    assert (record.protocol, record.stream, record.number, record.status) == ("h2", 5, 2, 200)


@pytest.mark.parametrize(
    "event", [ExchangeCut(1), Gap(1, 5, {1}), Anomaly("x"), ConnectionEnd()], ids=["cut", "gap", "anomaly", "end"]
)
def test_one_that_is_not_answered_is_told_without_a_status(event):
    scene = Scene()
    scene.begin()
    scene.sink.consume(event)
    [(record, _)] = scene.told
    assert record.status is None
    scene.sink.consume(ConnectionEnd())
    assert len(scene.told) == 1
    assert scene.ended == (2 if isinstance(event, ConnectionEnd) else 1)


def test_a_mirror_that_hears_no_responses_tells_at_once():
    scene = Scene(hears=False)
    scene.begin()
    assert len(scene.told) == 1


def test_only_so_many_wait():
    scene = Scene()
    for exchange in range(1, WAITING + 3):
        scene.begin(exchange)
    assert len(scene.told) == 2


def test_no_more_of_a_text_is_kept_than_can_be_shown():
    scene = Scene()
    scene.begin(target=b"/" * 99999, fields=[(b"referer", b"x" * 99999), (b"x-other", b"y" * 99999)])
    scene.answer()
    [(record, _)] = scene.told
    assert len(record.target) == MAX_URL + 1
    assert [(name, len(value)) for name, value in record.fields] == [(b"referer", MAX_URL + 1)]


def test_who_wants_alerts_only_is_not_told():
    scene = Scene()
    assert scene.begin(rules=(rule(Live.ALERTS),)) == 0
    scene.answer()
    assert scene.told == []
    assert scene.made == 0


def test_what_the_budget_holds_back_is_counted():
    scene = Scene()
    scene.gate.spend(60.0, 0.0)
    assert scene.begin() == 0
    assert scene.told == []
    [(loss, count)] = scene.gate.take_losses().items()
    assert (loss.uid, loss.why, count) == ("s", Why.BUDGET, 1)


def test_what_finds_no_room_is_counted():
    scene = Scene()
    scene.sink.wants(1, Offer(rule()))
    scene.sink.missed(1)
    assert sum(scene.gate.take_losses().values()) == 1


@pytest.mark.parametrize("tells", [True, False])
def test_responses_are_heard_if_there_is_a_session_when_the_connection_begins(tells):
    scene = Scene()
    mirror = wiretap_mirror(Ledger(), port=80, teller=scene.teller, tells=tells)
    assert mirror.hears_responses is tells
    assert bool(mirror.offer(1, Offer(rule())) & RESPONSE_HEAD) is tells
    assert scene.made == 0


def test_a_wiretap_that_gets_no_copies_is_no_wiretap_of_copies():
    assert Decision(None, (rule(),)).copied == ()
    assert Decision(None, (rule(Live.ALERTS),)).copied == ()
    assert live_exchanges.WAITING > 100
