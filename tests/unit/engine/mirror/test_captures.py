"""Captures as sinks: what they write of heads and bodies, what they redact, and how they lose."""

from __future__ import annotations

import pytest

from sidestep.engine.leg import Ending
from sidestep.engine.mirror.capture_messages import http1_head
from sidestep.engine.mirror.capture_writer import CaptureFacts, CaptureWriter
from sidestep.engine.mirror.captures import ALL, HEADS, Captures
from sidestep.engine.mirror.events import (
    H2,
    HTTP1,
    Answerer,
    ConnectionEnd,
    ExchangeCut,
    Finding,
    Gap,
    RequestData,
    RequestEnd,
    RequestHead,
    ResponseData,
    ResponseEnd,
    ResponseHead,
    WholeResponse,
)
from sidestep.engine.mirror.gate import Why
from sidestep.engine.mirror.ledger import Ledger, TapLimits
from sidestep.engine.mirror.producer import Mirror
from sidestep.engine.mirror.whole_captures import capture_whole
from sidestep.model.intercept import Snap
from sidestep.policy.route import Decision, Rule
from sidestep.protocols.capture_frames import FrameKind, FrameReader
from sidestep.protocols.eve_redaction import Redaction
from sidestep.protocols.hpack import INITIAL, decode, encode

SECRET = b"S3CRET"
HEAD = (
    b"POST /a?token=S3CRET HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer S3CRET\r\nContent-Length: 6\r\n"
    b"Referer: https://u:S3CRET@x/?q=S3CRET#S3CRET\r\n\r\n"
)
ANSWER = b"HTTP/1.1 200 OK\r\nSet-Cookie: a=S3CRET\r\nContent-Length: 6\r\n\r\n"


def rule(snap, uid="c"):
    return Rule(uid, "", lambda *_: True, capture=snap)


class Offer:
    tally = None

    def __init__(self, *rules):
        self.decision = Decision(None, rules)


class Captured:
    """A sink with one capture, and the frames that its leg has got."""

    def __init__(self, snap, *, ledger=None):
        self.ledger = ledger or Ledger()
        self.mirror = Mirror(hears_responses=True)
        self.facts = CaptureFacts("10.0.0.1", 80, epoch=1000.0, now=lambda: 2.0)
        self.sink = Captures(self.mirror, self.ledger, self.facts, port=80)
        self.rule = rule(snap)

    def begin(self, exchange=1, *, raw=HEAD, ends=False, block=None):
        self.sink.wants(exchange, Offer(self.rule))
        protocol = HTTP1 if block is None else H2
        self.sink.consume(RequestHead(exchange, protocol, b"POST", b"/a", b"a", (), raw, block, 0, ends=ends, at=1.0))

    def tell(self, *events):
        for event in events:
            self.sink.consume(event)

    @property
    def leg(self):
        return self.mirror.opening[0]

    def frames(self):
        return FrameReader().feed(b"".join(self.leg.out))

    def said(self, *, from_client):
        return b"".join(
            each.data for each in self.frames() if each.kind is FrameKind.DATA and each.from_client is from_client
        )


def response(exchange=1, *, by=Answerer.APP, block=None):
    return ResponseHead(exchange, by, 200, ANSWER if block is None else b"", block, 1.5)


def block(*fields):
    return decode(INITIAL, encode(fields), list_limit=1 << 16, table_limit=4096)


def test_what_is_wanted_depends_on_the_capture():
    assert Captured(Snap.HEADS).sink.wants(1, Offer(rule(Snap.HEADS))) == HEADS
    assert Captured(Snap.HEADS).sink.wants(1, Offer(rule(Snap.HEADS), rule(Snap.ALL, "d"))) == ALL
    assert Captured(Snap.HEADS).sink.wants(1, Offer()) == 0


def test_an_answer_in_one_event_is_captured_as_one_in_two():
    written = []
    for events in ([WholeResponse(1, Answerer.APP, 200, ANSWER, None, 1.5)], [response(), ResponseEnd(1)]):
        captured = Captured(Snap.HEADS)
        captured.begin(ends=True)
        captured.tell(*events)
        assert not captured.sink.holds(1)
        captured.tell(ConnectionEnd())
        written.append(captured.frames())
    assert written[0] == written[1]


def test_everything_is_as_it_was():
    captured = Captured(Snap.ALL)
    captured.begin()
    captured.tell(
        RequestData(1, SECRET), RequestEnd(1), response(), ResponseData(1, b"answer"), ResponseEnd(1), ConnectionEnd()
    )
    assert captured.said(from_client=True) == HEAD + SECRET
    assert captured.said(from_client=False) == ANSWER + b"answer"
    kinds = [each.kind for each in captured.frames()]
    assert kinds[0] is FrameKind.START
    assert kinds[-2:] == [FrameKind.FINISHED] * 2
    assert captured.leg.ending is Ending.CLOSE
    times = [each.at for each in captured.frames()]
    assert times == sorted(times)


def test_heads_have_no_secret_and_no_body():
    captured = Captured(Snap.HEADS)
    captured.begin()
    captured.tell(response(), ResponseEnd(1), ConnectionEnd())
    assert all(SECRET not in each.data for each in captured.frames())
    request, answer = captured.said(from_client=True), captured.said(from_client=False)
    assert request.startswith(b"POST /a?token=[redacted] HTTP/1.1\r\nHost: a\r\nAuthorization: [redacted]\r\n")
    assert b"sidestep-original-Content-Length: 6\r\n" in request
    assert request.endswith(b"content-length: 0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK\r\nSet-Cookie: [redacted]\r\n")


@pytest.mark.parametrize("snap", [Snap.HEADS, Snap.ALL])
def test_heads_of_http2_are_in_frames_of_our_own(snap):
    captured = Captured(snap)
    request = block((b":method", b"GET"), (b":path", b"/?t=S3CRET"), (b"cookie", SECRET))
    answer = block((b":status", b"200"), (b"set-cookie", SECRET))
    trailers = block((b"grpc-status", b"0"))
    captured.begin(1, block=request, ends=True)
    captured.tell(response(block=answer), ResponseEnd(1, trailers))
    client, server = captured.said(from_client=True), captured.said(from_client=False)
    assert client.startswith(b"PRI * HTTP/2.0")
    assert (SECRET in client + server) is (snap is Snap.ALL)
    assert server.count(b"grpc-status") == 1


def test_a_stream_that_is_cut_is_reset_and_a_request_ends_the_capture_of_its_connection():
    two = Captured(Snap.ALL)
    two.begin(1, block=block((b":method", b"GET")))
    two.tell(ExchangeCut(1))
    assert two.said(from_client=False).endswith(b"\x00\x00\x04\x03\x00\x00\x00\x00\x01\x00\x00\x00\x08")
    one = Captured(Snap.ALL)
    one.begin(1)
    one.tell(ExchangeCut(1))
    assert one.frames()[-1].kind is FrameKind.RESET
    one.begin(2)
    assert one.frames()[-1].kind is FrameKind.RESET


def test_what_finds_no_room_is_counted_before_what_follows():
    captured = Captured(Snap.ALL, ledger=Ledger(TapLimits(copy=4096)))
    captured.begin()
    captured.tell(RequestData(1, b"x" * 8000), RequestData(1, b"y" * 9000))
    before = len(captured.frames())
    captured.tell(RequestData(1, b"after"))
    loss, after = captured.frames()[before:]
    assert (loss.kind, loss.count, after.data) == (FrameKind.LOST, 17000, b"after")


def test_a_gap_is_a_loss_on_both_sides():
    captured = Captured(Snap.ALL)
    captured.begin()
    captured.tell(Gap(1, 500, {1}))
    lost = [each for each in captured.frames() if each.kind is FrameKind.LOST]
    assert [(each.count, each.from_client) for each in lost] == [(500, True), (500, False)]
    assert captured.frames()[-1].kind is FrameKind.RESET


def test_a_leg_that_is_lost_leaves_the_ledger_and_nothing_is_wanted_any_more():
    captured = Captured(Snap.ALL)
    captured.begin()
    assert captured.sink.holds(1) == ALL
    assert captured.ledger.count == 1
    captured.sink.lost(captured.leg)
    assert captured.sink.holds(1) == 0
    assert captured.ledger.count == 0


def test_a_written_leg_leaves_the_ledger():
    captured = Captured(Snap.HEADS)
    captured.begin(ends=True)
    captured.tell(ConnectionEnd())
    assert captured.ledger.count == 1
    captured.leg.out.clear()
    captured.leg.queued = 0
    captured.sink.drained(captured.leg)
    assert captured.ledger.count == 0


def test_whole_connections_have_both_sides():
    ledger, mirror = Ledger(), Mirror()
    facts = CaptureFacts("10.0.0.1", 80, epoch=0.0, now=lambda: 2.0)
    capture_whole(mirror, [rule(Snap.ALL)], ledger, facts)
    mirror.client_data(b"hello")
    mirror.server_data(b"there")
    mirror.client_end()
    mirror.client_lost()
    mirror.run()
    frames = FrameReader().feed(b"".join(mirror.opening[0].out))
    told = [(each.kind.name, each.from_client) for each in frames[1:]]
    assert told == [("DATA", True), ("DATA", False), ("FINISHED", True), ("FINISHED", False)]
    assert not mirror.is_listening


def test_a_reset_of_the_client_is_one_in_the_capture():
    mirror = Mirror()
    facts = CaptureFacts("10.0.0.1", 80, epoch=0.0, now=lambda: 2.0)
    capture_whole(mirror, [rule(Snap.ALL)], Ledger(), facts)
    mirror.client_data(b"hello")
    mirror.client_lost()
    mirror.run()
    assert FrameReader().feed(b"".join(mirror.opening[0].out))[-1].kind is FrameKind.RESET


def test_a_comment_that_finds_no_room_is_left_out():
    ledger = Ledger(TapLimits(copy=300))
    facts = CaptureFacts("10.0.0.1", 80, epoch=0.0, now=lambda: 2.0, comment="c" * 200)
    writer = CaptureWriter(rule(Snap.ALL), Captured(Snap.ALL).sink, ledger, facts)
    assert [each.kind for each in FrameReader().feed(b"".join(writer.leg.out))] == [FrameKind.START]


@pytest.mark.parametrize("status", [100, 204, 304])
def test_an_answer_that_never_has_a_body_gets_no_length(status):
    head = b"HTTP/1.1 %d x\r\nA: b\r\n\r\n" % status
    assert http1_head(head, Redaction(), status=status) == head


def test_a_line_that_is_no_field_is_left_out():
    assert http1_head(b"GET / HTTP/1.1\r\nA: b\r\n folded S3CRET: x\r\nS3CRET\r\n\r\n", Redaction()) == (
        b"GET / HTTP/1.1\r\nA: b\r\n\r\n"
    )


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("sent", [False, True])
def test_a_connection_whose_rest_is_not_sent_counts_as_lost(whole, sent):
    """As after a farewell that was too short for a slow reader, or where the daemon opens no stream."""
    if whole:
        mirror, ledger = Mirror(), Ledger()
        facts = CaptureFacts("10.0.0.1", 80, epoch=0.0, now=lambda: 2.0)
        capture_whole(mirror, [rule(Snap.ALL)], ledger, facts, port=80)
        mirror.client_data(b"hello")
        mirror.client_lost()
        mirror.run()
        [leg] = mirror.opening
    else:
        captured = Captured(Snap.ALL)
        captured.begin()
        captured.tell(RequestEnd(1), response(), ResponseEnd(1), ConnectionEnd())
        ledger, leg = captured.ledger, captured.leg
    if sent:
        leg.out.clear()
        leg.queued = 0
    leg.owner.lost(leg)
    leg.owner.lost(leg)
    losses = {(loss.port, loss.uid, loss.why): count for loss, count in ledger.gate.take_losses().items()}
    assert losses == ({} if sent else {(80, "c", Why.ROOM): 1})
    assert ledger.count == 0


def comments(frames):
    return [each.text for each in frames if each.kind is FrameKind.COMMENT]


def test_findings_of_inspection_are_comments_before_what_follows():
    captured = Captured(Snap.HEADS)
    captured.tell(*(Finding(f"finding {number}") for number in range(6)))
    captured.begin()
    assert comments(captured.frames()) == [f"finding {number}" for number in range(2, 6)], "the last ones"
    captured.tell(Finding("of the request"), response(), ResponseEnd(1))
    kinds = [each.kind for each in captured.frames()[-2:]]
    assert kinds == [FrameKind.COMMENT, FrameKind.DATA]
    assert comments(captured.frames())[-1] == "of the request"


def test_findings_are_in_captures_of_whole_connections():
    ledger, mirror = Ledger(), Mirror()
    facts = CaptureFacts("10.0.0.1", 80, epoch=0.0, now=lambda: 2.0)
    capture_whole(mirror, [rule(Snap.ALL)], ledger, facts)
    mirror.client_data(b"hello")
    mirror.found("a finding")
    mirror.server_data(b"there")
    mirror.run()
    frames = FrameReader().feed(b"".join(mirror.opening[0].out))
    assert [each.kind.name for each in frames[1:]] == ["DATA", "COMMENT", "DATA"]
    assert comments(frames) == ["a finding"]


def test_where_nobody_listens_findings_are_no_events():
    mirror = Mirror()
    mirror.found("a finding")
    assert not mirror.events
