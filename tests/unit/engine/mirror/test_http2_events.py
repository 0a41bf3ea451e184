"""What an HTTP/2 relay tells its mirror of both directions."""

from __future__ import annotations

import random

import pytest

from sidestep.engine.mirror.events import (
    ANSWER,
    BODY,
    HEAD,
    RESPONSE,
    Anomaly,
    Answerer,
    ExchangeCut,
    RequestData,
    RequestDiverted,
    RequestEnd,
    ResponseData,
    ResponseEnd,
)
from sidestep.engine.mirror.producer import Mirror
from sidestep.policy.route import Rule
from sidestep.protocols.http2 import DATA, DEFAULT_LIMITS, END_STREAM, PADDED, frame, header_frames
from tests.unit.engine.http2_peers import MATCH, Endpoint, Message, Peers, plain, reply, request
from tests.unit.engine.mirror.recording import EVERYTHING, recorded

ALL = (Rule("all", "shop/all", lambda method, path, fields: True),)
TRAILERS = ((b"grpc-status", b"0"),)


def scene(*, interest=EVERYTHING, app=None, handler=None, mirror=None, **options):
    recorder = None
    if mirror is None:
        mirror, recorder = recorded(interest)
    client = Endpoint()
    app = app or Endpoint(answer=reply(b"app", b"hello"))
    peers = Peers(client, app, handler=handler or (lambda _: None), taps=ALL, mirror=mirror, **options)
    return client, peers, recorder


def status(answer):
    return dict(answer.block.fields)[b":status"]


@pytest.mark.parametrize("seed", range(8))
def test_streams_that_are_interleaved_are_told_apart(seed):
    rng = random.Random(seed)
    client, peers, recorder = scene(rng=rng, chunk=rng.choice((7, 100, 1 << 20)))
    streams = [client.send(request(b"/%d" % n, method=b"POST", body=b"%d" % n * 3000)) for n in range(5)]
    peers.run()
    for number, stream in enumerate(streams):
        head = recorder.head(stream)
        assert (head.target, head.method, head.authority, head.ends) == (b"/%d" % number, b"POST", b"shop", False)
        assert recorder.data(RequestData, stream) == b"%d" % number * 3000
        assert RequestEnd(stream) in recorder.events
        (answer,) = recorder.answers(stream)
        assert (answer.status, answer.by, status(answer)) == (200, Answerer.APP, b"200")
        assert recorder.data(ResponseData, stream) == client.seen[stream].body == b"hello"
        assert recorder.of(stream)[-1] in (ResponseEnd(stream), RequestEnd(stream))
    assert not peers.mirror.is_listening


def test_trailers_end_both_directions():
    app = Endpoint(answer=reply(b"app", b"x", trailers=TRAILERS))
    client, peers, recorder = scene(app=app)
    sent = Message(head=request(b"/t", method=b"POST").head, pieces=[b"abc"], trailers=[(b"x-sum", b"1")], ended=True)
    stream = client.send(sent)
    peers.run()
    (end,) = (event for event in recorder.events if isinstance(event, RequestEnd))
    assert plain(end.trailers.fields) == plain([(b"x-sum", b"1")])
    (end,) = (event for event in recorder.events if isinstance(event, ResponseEnd))
    assert plain(end.trailers.fields) == plain(TRAILERS)
    assert recorder.data(ResponseData, stream) == b"x"


def test_a_diverted_stream_is_answered_by_its_handler_and_the_others_by_the_app():
    client, peers, recorder = scene(handler=lambda _: Endpoint(answer=reply(b"handler", b"dev", trailers=TRAILERS)))
    before = client.send(request(b"/a"))
    peers.run()
    diverted = client.send(request(b"/d", MATCH, method=b"POST", body=b"abc"))
    after = client.send(request(b"/b"))
    peers.run()
    assert [recorder.answers(stream)[0].by for stream in (before, diverted, after)] == [
        Answerer.APP,
        Answerer.HANDLER,
        Answerer.APP,
    ]
    assert recorder.data(ResponseData, diverted) == b"dev"
    assert recorder.data(RequestData, diverted) == b"abc"
    assert [recorder.data(ResponseData, stream) for stream in (before, after)] == [b"hello"] * 2
    assert [event.target for event in recorder.events if isinstance(event, RequestDiverted)] == [b"/d"]
    (end,) = (event for event in recorder.of(diverted) if isinstance(event, ResponseEnd))
    assert plain(end.trailers.fields) == plain(TRAILERS)
    assert not peers.mirror.is_listening


def test_a_stream_that_falls_back_is_answered_by_the_app():
    client, peers, recorder = scene(second=lambda: Endpoint(answer=reply(b"app", b"second")))
    stream = client.send(request(b"/d", MATCH))
    peers.run()
    (answer,) = recorder.answers(stream)
    assert answer.by is Answerer.APP
    assert recorder.data(ResponseData, stream) == b"second"
    assert recorder.of(stream)[-1] == ResponseEnd(stream)


def test_a_stream_that_is_reset_is_cut():
    client, peers, recorder = scene()
    begun = Message(head=request(b"/x", method=b"POST").head, pieces=[b"begun"], reset=8)
    reset = client.send(begun)
    other = client.send(request(b"/other"))
    peers.run()
    assert recorder.kinds(reset) == ["RequestHead", "RequestData", "ExchangeCut"]
    assert recorder.of(other)[-1] == ResponseEnd(other)


def test_a_connection_that_ends_cuts_what_is_open():
    client, peers, recorder = scene(app=Endpoint(answer=lambda head: Message(head=[(b":status", b"200")])))
    stream = client.send(request(b"/x"))
    peers.run()
    peers.lose(client)
    peers.shell.farewell()
    assert recorder.kinds() == ["RequestHead", "ResponseHead", "ExchangeCut", "ConnectionEnd"]
    assert recorder.events[-2] == ExchangeCut(stream)


def test_responses_that_cannot_be_decoded_are_not_told_and_nobody_else_minds():
    client, peers, recorder = scene()
    peers.relay._connection.app_responses.receive(b"\0\0\1\1\4\0\0\0\1\xff")  # an index that is not there
    stream = client.send(request(b"/x", method=b"POST", body=b"abc"))
    peers.run()
    assert client.seen[stream].body == b"hello"
    assert not recorder.answers(stream)
    assert recorder.data(RequestData, stream) == b"abc"
    assert recorder.kinds() == ["RequestHead", "RequestData", "RequestEnd"]
    assert not peers.mirror.is_listening


HEADERS = b"\0\0\1\1\0\0\0\0\1\x88"
"""The beginning of a header block that goes on."""
CONTINUED = b"\0\0\0\x09\0\0\0\0\1"


def observer():
    _, peers, recorder = scene()
    peers.mirror._make_sinks()
    return peers.relay._connection.app_responses, peers, recorder


def test_a_header_block_is_not_continued_for_ever():
    responses, peers, _ = observer()
    responses.receive(HEADERS)
    for _ in range(DEFAULT_LIMITS.continuations):
        responses.receive(CONTINUED)
    assert responses._block is not None
    responses.receive(CONTINUED)
    assert responses._block is None
    peers.mirror.hears_responses = True
    responses.receive(CONTINUED)  # and costs nothing any more
    assert peers.mirror.hears_responses


@pytest.mark.parametrize(
    "frame",
    [
        b"\0\0\0\x09\4\0\0\0\3",  # a CONTINUATION of another stream
        b"\0\0\1\1\4\0\0\0\1\x88",  # HEADERS
        b"\0\0\0\0\0\0\0\0\1",  # DATA
    ],
)
def test_a_header_block_that_is_interrupted_is_told_to_nobody(frame):
    responses, peers, recorder = observer()
    peers.mirror.responses.update({1: RESPONSE, 3: RESPONSE})
    responses.receive(HEADERS + frame)
    peers.mirror.run()
    assert not recorder.answers(1) + recorder.answers(3)
    assert not peers.mirror.hears_responses


def test_a_large_header_block_that_comes_a_byte_at_a_time_is_read_once():
    responses, peers, recorder = observer()
    peers.mirror.responses[1] = RESPONSE
    block = b"\x88" + b"\x00\x01x\x7f\x81\xff\x01" + b"v" * 32768  # a literal of 32 KiB
    read = []
    reader = responses._read
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(responses), "_read", lambda self, data: (read.append(len(data)), reader(data))[1])
        for byte in len(block).to_bytes(3, "big") + b"\1\5\0\0\0\1" + block:
            responses.receive(bytes((byte,)))
    peers.mirror.run()
    assert [answer.status for answer in recorder.answers(1)] == [200]
    assert len(read) <= 4


INTERIM = header_frames(1, b"\x08\x03103", end_stream=False)
FINAL = header_frames(1, b"\x88", end_stream=False)
END = frame(DATA, END_STREAM, 1, b"hello")
PARTS = ["ResponseHead", "ResponseEnd"]


@pytest.mark.parametrize("step", [1 << 20, 1])
@pytest.mark.parametrize(
    ("said", "kinds", "size"),
    [
        (FINAL + END, ["WholeResponse"], 5),
        (header_frames(1, b"\x88", end_stream=True), ["WholeResponse"], 0),
        (INTERIM + FINAL + END, ["ResponseHead", "WholeResponse"], 5),
        (FINAL + frame(DATA, 0, 1, b"x") + END, PARTS, 6),
        (FINAL + frame(DATA, END_STREAM | PADDED, 1, b"\2hello\0\0"), PARTS, 5),
        (FINAL + frame(DATA, END_STREAM, 3, b"other") + END, PARTS, 5),
        (FINAL + frame(DATA, 0, 1, b"hello") + header_frames(1, b"\x00\x01t\x01u", end_stream=True), PARTS, 5),
    ],
)
def test_an_answer_that_comes_whole_is_one_event(said, kinds, size, step):
    responses, peers, recorder = observer()
    peers.mirror.responses[1] = ANSWER
    peers.mirror._sizes[1] = [3, 0]
    for at in range(0, len(said), step):
        responses.receive(said[at : at + step])
    peers.mirror.run()
    is_whole = step > 1 or said[4] & END_STREAM
    assert recorder.kinds(1) == (kinds if is_whole else PARTS)
    assert recorder.answers(1)[-1].status == 200
    assert recorder.of(1)[-1].sizes == [3, size]
    assert not peers.mirror.is_listening


@pytest.mark.parametrize(
    ("said", "kinds"),
    [
        (frame(DATA, END_STREAM, 1, b"x"), ["ExchangeCut"]),
        (FINAL * 2, ["ResponseHead", "ExchangeCut"]),
        (header_frames(1, b"\x08\x03103", end_stream=True), ["ExchangeCut"]),
        (INTERIM + frame(DATA, 0, 1, b"x"), ["ResponseHead", "ExchangeCut"]),
        (header_frames(1, b"\x00\x01t\x01u", end_stream=True), ["ExchangeCut"]),
        (INTERIM + FINAL + frame(DATA, END_STREAM, 1, b"x"), ["ResponseHead", "ResponseData", "ResponseEnd"]),
    ],
)
def test_an_answer_out_of_order_is_cut(said, kinds):
    responses, peers, recorder = observer()
    peers.mirror.responses[1] = RESPONSE
    responses.receive(said + frame(DATA, END_STREAM, 1, b"y"))
    peers.mirror.run()
    assert recorder.kinds(1) == kinds
    assert not peers.mirror.responses


def test_what_can_not_be_read_is_an_anomaly():
    client, peers, recorder = scene()
    client.send(request(b"/x"))
    peers.run()
    peers.relay.receive(peers.relay.client, b"\0\0\1\x09\4\0\0\0\1x", 0.0)  # a CONTINUATION of nothing
    peers.mirror.run()
    assert recorder.events[-1] == Anomaly("h2-continuation")


def test_who_does_not_listen_to_answers_is_not_told_of_them():
    client, peers, recorder = scene(interest=HEAD | BODY)
    client.send(request(b"/x"))
    peers.run()
    assert recorder.kinds() == ["RequestHead"]


def test_without_a_listener_there_is_no_queue_and_answers_are_not_read():
    client, peers, _ = scene(mirror=Mirror())
    stream = client.send(request(b"/x", method=b"POST", body=b"abc"))
    peers.run()
    assert client.seen[stream].ended
    assert peers.mirror.queue is None
    assert peers.relay._connection.app_responses is None
