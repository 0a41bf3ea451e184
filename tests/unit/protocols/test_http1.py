"""Heads: what they say, and why they are refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidestep.protocols.http1 import (
    CHUNKED,
    CLOSE,
    CONNECT,
    HEAD,
    HTTP_1_0,
    REQUEST_LINE,
    STATUS_LINE,
    UPGRADE,
    RequestHead,
    check_prefix,
    parse_request,
)
from sidestep.protocols.http1_response_head import UNTIL_CLOSE, ResponseHead, parse_response

HOST = b"Host: app.test\r\n"


def request(*fields: bytes, line: bytes = b"GET / HTTP/1.1", host: bytes = HOST) -> bytes:
    return line + b"\r\n" + host + b"".join(field + b"\r\n" for field in fields) + b"\r\n"


def response(*fields: bytes, line: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return line + b"\r\n" + b"".join(field + b"\r\n" for field in fields) + b"\r\n"


def test_a_request_head():
    head = parse_request(request(b"X-One:  1 \t", b"x-one:2", b"Empty:", b"Odd!#$%&'*+-.^_`|~: \x80\xff,:\t;"))
    assert isinstance(head, RequestHead)
    assert head.method == b"GET"
    assert head.target == b"/"
    assert head.authority == b"app.test"
    assert head.body == 0
    assert head.flags == 0
    assert head.fields == [
        (b"host", b"app.test"),
        (b"x-one", b"1"),
        (b"x-one", b"2"),
        (b"empty", b""),
        (b"odd!#$%&'*+-.^_`|~", b"\x80\xff,:\t;"),
    ]


@pytest.mark.parametrize(
    ("line", "host", "target", "flags"),
    [
        (b"GET /a?b=c%20d&e='{|}~ HTTP/1.1", HOST, b"/a?b=c%20d&e='{|}~", 0),
        (b"GET //a/../b;c=d\\\xc3\xbc HTTP/1.1", HOST, b"//a/../b;c=d\\\xc3\xbc", 0),
        (b"GET http://app.test/a?b HTTP/1.1", HOST, b"/a?b", 0),
        (b"GET HTTPS://APP.test HTTP/1.1", HOST, b"/", 0),
        (b"GET http://app.test?b HTTP/1.1", HOST, b"/?b", 0),
        (b"GET http://[::1]:80/ HTTP/1.1", b"Host: [::1]:80\r\n", b"/", 0),
        (b"OPTIONS * HTTP/1.1", HOST, b"*", 0),
        (b"CONNECT db.test:5432 HTTP/1.1", HOST, b"db.test:5432", CONNECT),
        (b"HEAD / HTTP/1.1", HOST, b"/", HEAD),
        (b"GET / HTTP/1.0", HOST, b"/", CLOSE | HTTP_1_0),
        (b"GET / HTTP/1.0", b"", b"/", CLOSE | HTTP_1_0),
        (b"purge!#$%&'*+-.^_`|~09 / HTTP/1.1", HOST, b"/", 0),
    ],
)
def test_request_lines(line, host, target, flags):
    head = parse_request(request(line=line, host=host))
    assert isinstance(head, RequestHead)
    assert (head.target, head.flags) == (target, flags)


@pytest.mark.parametrize(
    ("fields", "line", "body", "flags"),
    [
        ([b"Content-Length: 0"], b"GET / HTTP/1.1", 0, 0),
        ([b"content-length:5"], b"GET / HTTP/1.1", 5, 0),
        ([b"Content-Length: 007"], b"GET / HTTP/1.1", 7, 0),
        ([b"Content-Length: " + b"9" * 18], b"GET / HTTP/1.1", 10**18 - 1, 0),
        ([b"Transfer-Encoding: chunked"], b"POST / HTTP/1.1", CHUNKED, 0),
        ([b"TRANSFER-ENCODING:chunked"], b"POST / HTTP/1.1", CHUNKED, 0),
        ([b"Connection: close"], b"GET / HTTP/1.1", 0, CLOSE),
        ([b"Connection: a, Close ,b"], b"GET / HTTP/1.1", 0, CLOSE),
        ([b"Connection: a", b"connection: close"], b"GET / HTTP/1.1", 0, CLOSE),
        ([b"Connection: keep-alive"], b"GET / HTTP/1.1", 0, 0),
        ([b"Connection: Keep-Alive"], b"GET / HTTP/1.0", 0, HTTP_1_0),
        ([b"Connection: keep-alive, close"], b"GET / HTTP/1.0", 0, HTTP_1_0 | CLOSE),
        ([b"Upgrade: websocket", b"Connection: Upgrade"], b"GET / HTTP/1.1", 0, UPGRADE),
        ([b"Expect: 100-Continue", b"TE: trailers, deflate;q=0.5", b"Trailer: x"], b"PUT / HTTP/1.1", 0, 0),
        ([b"X-Te:\ta\t", b"X-Host:  a "], b"GET / HTTP/1.1", 0, 0),
        ([b"X-Content-Length: 5", b"Transfer-Encoding-X: cow"], b"GET / HTTP/1.1", 0, 0),
        ([b"Cookie: a", b"Cookie: b"], b"GET / HTTP/1.1", 0, 0),
    ],
)
def test_request_framing_and_persistence(fields, line, body, flags):
    head = parse_request(request(*fields, line=line))
    assert isinstance(head, RequestHead)
    assert (head.body, head.flags) == (body, flags)


@pytest.mark.parametrize(
    ("data", "anomaly"),
    [
        (request(b"A: \0"), "h1-nul"),
        (request(b"A: 1\n2"), "h1-bare-lf"),
        (request(b"A: 1\r2"), "h1-bare-cr"),
        (request(b"A: 1", b" 2"), "h1-folded-field"),
        (request(b"A : 1"), "h1-field"),
        (request(b"A: \x01"), "h1-field"),
        (request(b"A"), "h1-field"),
        (b"\r\n" + request(), "h1-leading-empty-line"),
        (request(line=b"GET / HTTP/2.0"), "h1-start-line"),
        (request(line=b"GET  / HTTP/1.1"), "h1-start-line"),
        (request(line=b"GET / HTTP/1.1 "), "h1-start-line"),
        (request(line=b"GET x HTTP/1.1"), "h1-target"),
        (request(line=b"GET * HTTP/1.1"), "h1-target"),
        (request(line=b"CONNECT / HTTP/1.1"), "h1-target"),
        (request(host=b""), "h1-host"),
        (request(HOST[:-2]), "h1-host"),
        (request(host=b"Host: a b\r\n"), "h1-host"),
        (request(b"Content-Length: 1", b"Content-Length: 1"), "h1-ambiguous-length"),
        (request(b"Content-Length: 1", b"Transfer-Encoding: chunked"), "h1-ambiguous-length"),
        (request(b"Content_Length: 1"), "h1-ambiguous-length"),
        (request(b"Transfer-Encoding: chunked", b"transfer-encoding: chunked"), "h1-ambiguous-length"),
        (request(b"Content-Length: 1_0"), "h1-bad-length"),
        (request(b"Content-Length: +5"), "h1-bad-length"),
        (request(b"Content-Length:"), "h1-bad-length"),
        (request(b"Content-Length: " + b"9" * 19), "h1-bad-length"),
        (request(b"Content-Length: \xef\xbc\x95"), "h1-bad-length"),
        (request(b"Transfer-Encoding: gzip"), "h1-transfer-coding"),
        (request(b"Transfer-Encoding: Chunked"), "h1-transfer-coding"),
        (request(b"Transfer-Encoding: chunked", line=b"GET / HTTP/1.0"), "h1-transfer-coding"),
        (request(b"Content-Length: 1", line=b"CONNECT a:1 HTTP/1.1"), "h1-connect-body"),
        (request(b"Upgrade: a", b"Upgrade: b"), "h1-upgrade"),
        (request(b"Transfer-Encoding:\tchunked"), "h1-stray-space"),
        (request(b"Content-Length: 5 "), "h1-stray-space"),
        (request(host=b"Host:  a\r\n"), "h1-stray-space"),
        (request(b"Expect: x"), "h1-expect"),
        (request(b"Connection: close, host"), "h1-connection"),
        (request(*[b"A: 1"] * 256), "h1-too-many-fields"),
        (request(b"A: " + b"a" * 65536), "h1-head-too-large"),
    ],
)
def test_anomalies_of_requests(data, anomaly):
    assert parse_request(data) == anomaly


@pytest.mark.parametrize(
    ("data", "status", "body", "close", "plain"),
    [
        (response(b"Content-Length: 5"), 200, 5, False, 5),
        (response(b"content-length:  5 "), 200, 5, False, 5),
        (response(b"Content-Length: 5", b"Connection: close"), 200, 5, True, -1),
        (response(b"Content-Length: 5", b"Connection: x", b"connection: CLOSE"), 200, 5, True, -1),
        (response(b"Transfer-Encoding: chunked"), 200, CHUNKED, False, -1),
        (response(), 200, UNTIL_CLOSE, False, -1),
        (response(line=b"HTTP/1.1 204"), 204, 0, False, 0),
        (response(b"Content-Length: 5", line=b"HTTP/1.1 304 Not Modified"), 304, 0, False, 0),
        (response(b"Transfer-Encoding: cow", line=b"HTTP/1.1 204 "), 204, 0, False, 0),
        (response(line=b"HTTP/1.1 100 Continue"), 100, 0, False, -1),
        (response(b"Content-Length: 5", line=b"HTTP/1.0 200 OK"), 200, 5, True, -1),
        (response(b"Content-Length: 5", b"Connection: keep-alive", line=b"HTTP/1.0 200 OK"), 200, 5, False, 5),
        (response(b"Content-Length: 5", line="HTTP/1.1 404 Nö\t!".encode()), 404, 5, False, 5),
    ],
)
def test_responses(data, status, body, close, plain):
    head = parse_response(data)
    assert isinstance(head, ResponseHead)
    assert (head.status, head.body, head.close, head.plain) == (status, body, close, plain)


def test_the_protocol_switched_to_is_kept():
    head = parse_response(response(b"Upgrade: H2C", line=b"HTTP/1.1 101 Switching Protocols"))
    assert isinstance(head, ResponseHead)
    assert head.upgrade == b"h2c"


@pytest.mark.parametrize(
    ("data", "anomaly"),
    [
        (response(b"Content-Length: 1", b"Content-Length: 1"), "h1-response-ambiguous-length"),
        (response(b"Content-Length: 1", b"Transfer-Encoding: chunked"), "h1-response-ambiguous-length"),
        (response(b"Content-Length: x"), "h1-response-bad-length"),
        (response(b"Transfer-Encoding: gzip, chunked"), "h1-response-transfer-coding"),
        (response(b"Transfer-Encoding: chunked", line=b"HTTP/1.0 200 OK"), "h1-response-transfer-coding"),
        (response(line=b"HTTP/1.1 600 X"), "h1-response-start-line"),
        (response(line=b"HTTP/2.0 200 OK"), "h1-response-start-line"),
        (response(b"A : 1"), "h1-response-field"),
        (response(b"A: 1\n"), "h1-response-bare-lf"),
    ],
)
def test_anomalies_of_responses(data, anomaly):
    assert parse_response(data) == anomaly


@pytest.mark.parametrize("tail", [b"X-A\r\n", b"X-A:\x01\r\n", b"X-A \r\n", b":\r\n", b"X\r\n\r\nX: 1\r\n"])
def test_a_failed_line_is_not_skipped(tail):
    """Python 3.11.2 went on after the characters that a failed iteration of a possessive group had matched."""
    assert isinstance(parse_request(request(tail[:-2])), str)
    assert isinstance(parse_response(response(tail[:-2])), str)
    held = bytearray(request()[:-2] + tail)
    assert isinstance(check_prefix(held, 0, 0, REQUEST_LINE), str)


@given(st.binary(max_size=300))
def test_never_raises(data):
    for whole in (data, request(data), response(data), request(line=data), response(line=data), request(host=data)):
        parse_request(whole)
        parse_response(whole)


@given(st.lists(st.tuples(st.from_regex(rb"[A-Za-z_-]{1,10}", fullmatch=True), st.binary(max_size=20)), max_size=8))
def test_an_accepted_head_reads_as_its_lines(pairs):
    head = request(*(name + b":" + value for name, value in pairs))
    parsed = parse_request(head)
    if isinstance(parsed, RequestHead):
        lines = [line.split(b":", 1) for line in head.split(b"\r\n")[1:-2]]
        assert parsed.fields == [(name.lower(), value.strip(b" \t")) for name, value in lines]


@pytest.mark.parametrize("first_line", [REQUEST_LINE, STATUS_LINE])
def test_every_prefix_of_a_good_head_may_become_one(first_line):
    whole = request(b"X-A: 1", b"Empty:") if first_line is REQUEST_LINE else response(b"X-A: 1", b"Empty:")
    for step in (1, 2, 5):
        held = bytearray()
        checked: int | str = 0
        for at in range(0, len(whole) - 2, step):
            new = len(held)
            held += whole[at : min(at + step, len(whole) - 2)]
            checked = check_prefix(held, int(checked), new, first_line)
            assert isinstance(checked, int)
            assert checked == held.rfind(b"\n") + 1


@pytest.mark.parametrize(
    "prefix",
    [b"hello\n", b"GET /\r\n", b"GET / HTTP/1.1\n", b"\r\n", b"GET / HTTP/1.1\r\nA: 1\n",
     b"GET / HTTP/1.1\r\n b: 1\r\n",
     b"GET / HTTP/1.1\rX", b"GET /\x00", b"GET / HTTP/1.1\r\nA\r\n", b"GET / HTTP/1.1\r\nA : 1\r\n"],
)  # fmt: skip
def test_no_client_waits_behind_a_line_that_cannot_become_good(prefix):
    held = bytearray()
    checked: int | str = 0
    for byte in prefix:
        assert isinstance(checked, int)
        held.append(byte)
        checked = check_prefix(held, checked, len(held) - 1, REQUEST_LINE)
    assert isinstance(checked, str)
