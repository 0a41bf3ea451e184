"""Records of samples are those that `eve` makes of the same facts, and the facts those that a parser finds."""

import gc

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidestep.engine.http1.samples import Http1Sample
from sidestep.engine.http2.head import Head
from sidestep.engine.http2.samples import Http2Sample, told_of, told_of_plain
from sidestep.protocols import eve, hpack
from sidestep.protocols.eve_records import Kubernetes, Origin, Record, Sidestep
from sidestep.protocols.eve_redaction import MAX_VALUE, Redaction
from sidestep.protocols.http1 import parse_request
from sidestep.protocols.http1_response_head import ResponseHead, parse_response, response_fields
from sidestep.protocols.http2_skim import Http2Skimmer
from sidestep.proxy.connection.sampled_records import REMEMBERED, SampledRecords
from tests.effort import examples

AT = 1_796_000_000_123_456_789
ORIGIN = Origin(
    flow_id=1 << 51, client=("10.0.0.1", 40000), server=("fd00::2", 8443), protocol="http", kubernetes=Kubernetes()
)
REDACTIONS = [Redaction(), Redaction(query_values=False), Redaction(headers=frozenset((b"user-agent", b"location")))]
SHOWN = (b"user-agent", b"x-forwarded-for", b"referer")


def wanted(sample, redaction, *, method, target, authority, fields, answer):
    """The record by `eve`."""
    http = eve.http(
        method=method, target=target, authority=authority, fields=fields, stream=sample.stream or None,
        protocol={"http/1.0": "HTTP/1.0"}.get(sample.request()[0], "HTTP/1.1"), status=sample.status, answer=answer,
        length=sample.length, redaction=redaction,
    )  # fmt: skip
    return eve.record(AT, ORIGIN, http, transaction=sample.number, sidestep=Sidestep(inspected=True))


def decoded(records, sample):
    return msgspec.msgpack.decode(records.encode(AT, sample), type=Record)


texts = st.sampled_from(
    [b"x", b"a b", b"\xe4\xff", b"https://u:p@h.test/a?b=c#d", b"text/html; charset=utf-8", b"v" * 2000]
)
targets = st.sampled_from(
    [
        b"/",
        b"/a?b=c&d&&=e",
        b"/%41#x",
        b"/u@h",
        b"/\xff\x7f",
        b"/" + b"p" * 3000,
        b"http://o.test:81/x",
        b"http://o.test",
    ]
)
names = st.sampled_from([b"User-Agent", b"user-agent", b"X-Forwarded-For", b"Referer", b"X-Referer", b"Cookie"])
lines = st.lists(st.builds(lambda name, value: name + b": " + value, names, texts), max_size=5)
hosts = st.sampled_from([b"a.test", b"b.test:8443", b"[::1]:80"])
answers = st.lists(st.builds(
    lambda name, value: name + b": " + value,
    st.sampled_from([b"Content-Type", b"content-type", b"Location", b"X-Location"]), texts,
), max_size=3)  # fmt: skip


@given(targets, hosts, lines, answers, st.sampled_from([b"1.1", b"1.0"]), st.sampled_from(REDACTIONS))
@settings(max_examples=examples(400), deadline=None)
def test_http1_samples_become_the_records_that_a_parser_finds(target, host, fields, answer, version, redaction):
    head = b"\r\n".join((b"PUT " + target + b" HTTP/" + version, b"Host: " + host, *fields, b"", b""))
    parsed = parse_request(head)
    if isinstance(parsed, str):
        return
    sample = Http1Sample(7, head, None)
    answer_head = b"\r\n".join((b"HTTP/1.1 302 Found", *answer, b"", b""))
    response = parse_response(answer_head)
    assert isinstance(response, ResponseHead)
    sample.answers(answer_head, response, 12)
    records = SampledRecords(ORIGIN, redaction)
    made = wanted(
        sample, redaction, method=b"PUT", target=parsed.target, authority=parsed.authority, fields=parsed.fields,
        answer=response_fields(answer_head),
    )  # fmt: skip
    assert decoded(records, sample) == made
    assert decoded(records, sample) == made  # nothing that is kept changes the next one


@given(
    st.sampled_from([b"/a", b"/a?token=1", b""]), hosts, st.lists(st.tuples(st.sampled_from(SHOWN), texts), max_size=4)
)
@settings(max_examples=examples(200), deadline=None)
def test_http2_samples_become_the_records_that_eve_makes(target, host, fields):
    head = Head(((b":method", b"GET"), (b":scheme", b"https"), (b":authority", host), (b":path", target), *fields))
    if Http2Skimmer(()).skim(head.listed):
        assert told_of_plain(hpack.Block(head.listed, hpack.NONE, None, hpack.INITIAL)) == told_of(head)
    sample = Http2Sample(3, 7, told_of(head), None)
    answer = ((b"content-type", b"text/css"), (b"location", b"/x?y=z"))
    block = hpack.decode(
        hpack.INITIAL, hpack.encode([(b":status", b"404"), *answer]), list_limit=1 << 16, table_limit=4096
    )
    sample.answers(block)
    sample.length = 5
    for redaction in REDACTIONS:
        made = wanted(
            sample, redaction, method=b"GET", target=target, authority=host, fields=head.fields, answer=answer
        )
        assert decoded(SampledRecords(ORIGIN, redaction), sample) == made


@pytest.mark.parametrize("first", [b"100", b"103"])
def test_an_interim_answer_is_not_the_answer_and_the_final_one_is_noted_once(first):
    head = Head(((b":method", b"GET"), (b":authority", b"a"), (b":path", b"/")))
    sample = Http2Sample(0, 1, told_of(head), None)
    for fields in ([(b":status", first)], [(b":status", b"204")], [(b":status", b"500")], [(b"grpc-status", b"0")]):
        sample.answers(hpack.decode(hpack.INITIAL, hpack.encode(fields), list_limit=1 << 16, table_limit=4096))
    assert sample.status == 204


def test_what_changes_between_requests_of_a_connection_is_told_anew():
    records = SampledRecords(ORIGIN, Redaction())
    head = b"GET / HTTP/1.1\r\nHost: %b\r\nUser-Agent: %b\r\n\r\n"
    shown = []
    for number, (host, agent) in enumerate([(b"a.test", b"x"), (b"b.test:1", b"y"), (b"a.test", b"x")]):
        http = decoded(records, Http1Sample(number, head % (host, agent), None)).http
        shown.append((http.hostname, http.http_port, http.http_user_agent))
    assert shown == [("a.test", None, "x"), ("b.test", 1, "y"), ("a.test", None, "x")]
    records.hide(Redaction(headers=frozenset((b"user-agent",))))
    http = decoded(records, Http1Sample(3, head % (b"a.test", b"x"), None)).http
    assert http.http_user_agent == "[redacted]"


def test_long_texts_are_cut():
    head = b"GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: " + b"x" * 5000 + b"\r\n\r\n"
    http = decoded(SampledRecords(ORIGIN, Redaction()), Http1Sample(0, head, None)).http
    assert len(http.http_user_agent) == MAX_VALUE + 1


requests = st.builds(
    lambda method, target, host, fields: b"\r\n".join(
        (method + b" " + target + b" HTTP/1.1", b"Host: " + host, *fields, b"", b"")
    ),
    st.sampled_from([b"GET", b"PUT"]), targets, hosts, lines,
)  # fmt: skip
told = st.tuples(
    requests, st.sampled_from([200, 302]), answers, st.sampled_from([None, 0, 12, 1 << 33]), st.integers(0, 3 * 10**9)
)


@given(st.lists(told, max_size=4), st.data())
@settings(max_examples=examples(300), deadline=None)
def test_records_of_one_connection_do_not_depend_on_those_before(told, data):
    records, redaction = SampledRecords(ORIGIN, REDACTIONS[0]), REDACTIONS[0]
    order = data.draw(st.lists(st.sampled_from(told), max_size=10)) if told else []
    for number, (head, status, fields, length, later) in enumerate(order):
        if data.draw(st.booleans()):
            redaction = data.draw(st.sampled_from(REDACTIONS))
            records.hide(redaction)
        sample = Http1Sample(number, bytes(bytearray(head)), None)
        answer_head = b"\r\n".join((b"HTTP/1.1 %d Found" % status, *fields, b"", b""))
        response = parse_response(answer_head)
        if isinstance(response, ResponseHead) and not isinstance(parse_request(head), str):
            sample.answers(answer_head, response, length)
            fresh = SampledRecords(ORIGIN, redaction)
            assert records.encode(AT + later, sample) == fresh.encode(AT + later, sample)
            made = msgspec.msgpack.decode(records.encode(AT + later, sample), type=Record)
            assert made.timestamp == eve.timestamp(AT + later)
            assert (made.tx_id, made.http.status, made.http.length) == (number, status, length)


def test_a_long_request_does_not_stay_in_memory():
    records = SampledRecords(ORIGIN, Redaction())
    for size, stays in ((100, True), (REMEMBERED, False), (100, True)):
        sample = Http1Sample(0, b"GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: " + b"x" * size + b"\r\n\r\n", None)
        records.encode(AT, sample)
        assert any(sample.asked is each for each in gc.get_referents(records)) is stays


def test_a_long_answer_does_not_stay_in_memory():
    records = SampledRecords(ORIGIN, Redaction())
    for size, stays in ((100, True), (REMEMBERED, False), (100, True)):
        sample = Http1Sample(0, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", None)
        head = b"HTTP/1.1 302 Found\r\nLocation: /" + b"x" * size + b"\r\nContent-Length: 0\r\n\r\n"
        response = parse_response(head)
        assert isinstance(response, ResponseHead)
        sample.answers(head, response, 0)
        first, second = decoded(records, sample), decoded(records, sample)
        assert first == second
        assert any(sample.answer is each for each in gc.get_referents(records)) is stays
