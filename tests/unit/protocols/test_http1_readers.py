"""Chunked bodies, and the readers of both directions: whole, byte by byte, with trailing bytes, cut anywhere."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidestep.protocols import http1_messages, http1_responses
from sidestep.protocols.chunked import BROKEN, MORE, ChunkedBody
from sidestep.protocols.http1 import CONNECT, HEAD, Http1Limits, RequestHead, parse_request
from sidestep.protocols.http1_requests import RequestReader
from sidestep.protocols.http1_responses import ResponseReader

GOOD_BODIES = [
    b"0\r\n\r\n",
    b"000\r\n\r\n",
    b"5\r\nhello\r\n0\r\n\r\n",
    b"A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n",
    b"00006\r\n\r\n\r\n\r\0\r\n0\r\n\r\n",
    b"5;a\r\nhello\r\n0\r\n\r\n",
    b'5;a=b;c="d;\\"e\\\\";f\r\nhello\r\n0;last\r\n\r\n',
    b"5\r\nhello\r\n0\r\nX-Sum: 1\r\nEmpty:\r\n\r\n",
    b"1000\r\n" + b"x" * 4096 + b"\r\n0\r\n\r\n",
    b"1\r\na\r\n" * 50 + b"0\r\nT: " + b"t" * 500 + b"\r\n\r\n",
]

pieces = st.lists(st.integers(1, 20), max_size=60)


def cut(data: bytes, sizes):
    at = 0
    for size in sizes:
        if at >= len(data):
            return
        yield data[at : at + size]
        at += size
    if at < len(data):
        yield data[at:]


def follow(data: bytes, sizes) -> int:
    """Offset after the body, or MORE, or BROKEN."""
    body = ChunkedBody()
    before = 0
    for piece in cut(data, sizes):
        end = body.read(piece)
        if end != MORE:
            return end if end == BROKEN else before + end
        before += len(piece)
    return MORE


@pytest.mark.parametrize("body", GOOD_BODIES)
@pytest.mark.parametrize("rest", [b"", b"\r\n", b"GET / HTTP/1.1\r\n", b"\0"])
def test_a_chunked_body_ends_where_it_ends(body, rest):
    for sizes in ([len(body + rest)], [1] * len(body + rest), [3] * len(body + rest)):
        assert follow(body + rest, sizes) == len(body)
    for end in range(0, len(body), 1 + len(body) // 100):
        assert follow(body[:end], [7] * end) == MORE


def test_a_chunked_body_inside_other_bytes():
    assert ChunkedBody().read(b"xxx0\r\n\r\nyyy", 3) == 8


@given(st.sampled_from(GOOD_BODIES), st.binary(max_size=5), st.integers(0, 60), pieces)
def test_the_verdict_does_not_depend_on_the_cut(body, noise, at, sizes):
    data = body[:at] + noise + body[at:]
    whole, cut_up = follow(data, [len(data)]), follow(data, sizes)
    # A line that has not ended may be refused earlier in pieces than it is whole, never judged otherwise.
    assert cut_up == whole or MORE in (whole, cut_up)
    ended = data + b"\r\n"
    assert follow(ended, [len(ended)]) == follow(ended, sizes)


def test_bounds_of_chunk_lines_and_trailers():
    limits = Http1Limits(chunk_line=20, trailer=30)
    assert ChunkedBody(limits).read(b"5;" + b"a" * 20 + b"\r\n") == BROKEN
    assert ChunkedBody(limits).read(b"5;" + b"a" * 30) == BROKEN
    assert ChunkedBody(limits).read(b"0\r\nA: " + b"a" * 40) == BROKEN
    body = ChunkedBody(limits)
    assert body.read(b"0\r\n") == MORE
    for _ in range(30):
        verdict = body.read(b"a")
    assert verdict == MORE
    assert body.read(b"a") == BROKEN


def requests_of(data: bytes, sizes, limits=None):
    """(heads and bodies, how it ended) of a stream of requests."""
    reader = RequestReader(limits) if limits else RequestReader()
    seen = []
    body = b""
    for piece in cut(data, sizes):
        at = 0
        while at < len(piece):
            start = at
            at = reader.read(piece, at)
            if reader.event == http1_messages.BROKEN:
                return seen, reader.anomaly
            if reader.event == http1_messages.HEADED:
                parsed = parse_request(reader.head)
                assert not isinstance(parsed, str)
                reader.begin(parsed.body)
                seen.append(reader.head)
                body = b""
            elif reader.state != http1_messages.HEAD:
                body += piece[start:at]
                if reader.event == http1_messages.COMPLETE:
                    seen.append(body)
    return seen, reader.state


HEADS = [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n",
         b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"]  # fmt: skip
STREAM = HEADS[0] + HEADS[1] + b"hello" + HEADS[2] + GOOD_BODIES[2] + HEADS[0]


@given(pieces)
def test_requests_are_found_however_they_arrive(sizes):
    seen, state = requests_of(STREAM, sizes)
    assert seen == [HEADS[0], HEADS[1], b"hello", HEADS[2], GOOD_BODIES[2], HEADS[0]]
    assert state == http1_messages.FRESH


@given(pieces, st.integers(0, len(STREAM) - 1), st.sampled_from([b"\0", b"\n", b"\r", b" ", b"G"]))
def test_a_spoilt_stream_is_spoilt_however_it_arrives(sizes, at, noise):
    def verdict(sizes):
        try:
            return requests_of(STREAM[:at] + noise + STREAM[at:], sizes)
        except AssertionError:
            return "refused"

    whole, cut_up = verdict([10_000]), verdict(sizes)
    broken = [each == "refused" or isinstance(each[1], str) for each in (whole, cut_up)]
    assert whole == cut_up or all(broken)


def test_what_was_kept_of_a_broken_head_is_handed_out():
    reader = RequestReader()
    assert reader.read(b"GET / HT", 0) == 8
    assert reader.read(b"TP/1.1\r\nA\0", 0) == 0
    assert reader.event == http1_messages.BROKEN
    assert reader.take_kept() == b"GET / HT"


def responses_of(data: bytes, sizes, flags=0):
    """Events (heads, body sizes) of a stream of responses."""
    reader = ResponseReader()
    seen = []
    body = 0
    for piece in cut(data, sizes):
        at = 0
        while at < len(piece) or reader.event == http1_messages.FINAL:
            start = at
            at = reader.read(piece, at, flags)
            event = reader.event
            if event == http1_messages.BROKEN:
                return [*seen, reader.anomaly]
            if event in (http1_messages.INTERIM, http1_messages.FINAL, http1_messages.SWITCH):
                seen.append(reader.head)
                body = 0
                if event == http1_messages.SWITCH:
                    return seen
            elif not reader.in_head:
                body += at - start
                if event == http1_messages.COMPLETE:
                    seen.append(body)
    return seen


CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
NOTHING = b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"
ANSWERS = CONTINUE + LENGTH + b"hello" + CHUNKS + GOOD_BODIES[2] + NOTHING + LENGTH + b"HTTP/" + SWITCH + b"\0\0"


@given(pieces)
def test_responses_are_found_however_they_arrive(sizes):
    assert responses_of(ANSWERS, sizes) == [
        CONTINUE, LENGTH, 5, CHUNKS, len(GOOD_BODIES[2]), NOTHING, 0, LENGTH, 5, SWITCH,
    ]  # fmt: skip


@given(pieces)
def test_answers_to_head_have_no_body(sizes):
    assert responses_of(LENGTH + CHUNKS + LENGTH, sizes, HEAD) == [LENGTH, 0, CHUNKS, 0, LENGTH, 0]


def test_an_answer_to_connect_switches():
    assert responses_of(LENGTH + b"xyz", [100], CONNECT) == [LENGTH]
    assert responses_of(LENGTH.replace(b"200", b"403") + b"hello", [100], CONNECT)[1] == 5


def test_a_body_until_the_end_has_no_end():
    reader = ResponseReader()
    head = b"HTTP/1.1 200 OK\r\n\r\n"
    assert reader.read(head + b"x", 0, 0) == len(head)
    assert reader.event == http1_messages.FINAL
    assert reader.read(head + b"x", len(head), 0) == len(head) + 1
    assert reader.event == http1_messages.MORE
    assert reader.ends_with_connection


def test_remembered_heads_are_bounded():
    limits = Http1Limits(memo_entries=8, memo_head=100)
    http1_responses._remembered.clear()
    for number in range(50):
        http1_responses.recall(b"HTTP/1.1 200 OK\r\nETag: %d\r\n\r\n" % number, limits)
        assert len(http1_responses._remembered) <= 8
    http1_responses.recall(b"HTTP/1.1 200 OK\r\nETag: " + b"x" * 100 + b"\r\n\r\n", limits)
    assert all(len(head) <= 100 for head in http1_responses._remembered)


@pytest.mark.parametrize("at", range(1, 9))
def test_a_spoilt_line_end_after_a_chunk_is_refused(at):
    good = b"1\r\na\r\n0\r\n\r\n"
    if good[at : at + 1] in b"\r\n":
        spoilt = good[:at] + b"x" + good[at + 1 :]
        assert follow(spoilt, [len(spoilt)]) == follow(spoilt, [1] * len(spoilt)) == BROKEN


@pytest.mark.parametrize("step", [1, 3, 100])
def test_requests_are_followed_to_the_end(step):
    data = (
        b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
        b"GET /b HTTP/1.1\r\nHost: a\r\n\r\n"
        b"POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"
        b"GET /d"
    )
    reader = RequestReader()
    targets, ended = [], 0
    for piece in cut(data, [step] * len(data)):
        at = 0
        while at < len(piece):
            at = reader.read(piece, at)
            if reader.event == http1_messages.HEADED:
                head = parse_request(reader.head)
                assert isinstance(head, RequestHead)
                targets.append(head.target)
                reader.begin(head.body)
                ended += not head.body
            ended += reader.event == http1_messages.COMPLETE
    assert targets == [b"/a", b"/b", b"/c"]
    assert ended == 3
    assert reader.in_head
    assert reader.take_kept() == b"GET /d"
    assert not reader.in_head


@pytest.mark.parametrize(
    ("data", "anomaly"),
    [
        (b"HTTP/1.1 200 OK\r\nA: " + b"a" * 100, "h1-response-head-too-large"),
        (b"HTTP/1.1 200 OK\r\nA: " + b"a" * 100 + b"\r\n\r\n", "h1-response-head-too-large"),
        (b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n", "h1-response-field"),
        (b"HTTP/2 200\r\n", "h1-response-start-line"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", "h1-response-chunk"),
    ],
)
@pytest.mark.parametrize("step", [1, 7, 1000])
def test_the_anomalies_of_responses_are_named_as_such(data, anomaly, step):
    reader = ResponseReader(Http1Limits(head=100))
    for piece in cut(data, [step] * len(data)):
        at = 0
        while at < len(piece) and reader.event != http1_messages.BROKEN:
            at = reader.read(piece, at, 0)
    assert reader.anomaly == anomaly


def test_a_body_until_the_end_of_the_connection_goes_on():
    reader = ResponseReader()
    data = b"HTTP/1.0 200 OK\r\n\r\n"
    assert reader.read(data, 0, 0) == len(data)
    assert reader.event == http1_messages.FINAL
    assert reader.ends_with_connection
    for _ in range(3):
        assert reader.read(b"more", 0, 0) == 4
        assert reader.event == http1_messages.MORE
