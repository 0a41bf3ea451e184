"""First bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidestep.protocols.detection import HTTP2_PREFACE, Detected, detect, is_greeting, is_http2_server

CASES = [
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", Detected.TLS),
    (b"\x16\x03\x03\x00\x01\x01", Detected.TLS),
    (b"\x16\x03\x01\x02\x00\x02\x00", Detected.OTHER),
    (b"\x16\x02\x00\x02\x00\x01", Detected.OTHER),
    (b"\x16\x03\x05\x02\x00\x01", Detected.OTHER),
    (b"\x15\x03\x01\x00\x02\x01\x00", Detected.OTHER),
    (b"\x80\x2e\x01\x00\x02", Detected.OTHER),
    (HTTP2_PREFACE, Detected.HTTP2),
    (HTTP2_PREFACE + b"\0\0\0\4\0\0\0\0\0", Detected.HTTP2),
    (b"PRI * HTTP/1.1\r\n", Detected.OTHER),
    (b"PRI /x HTTP/1.1\r\n", Detected.HTTP1),
    (b"PRINT /x HTTP/1.1\r\n", Detected.HTTP1),
    (b"GET / HTTP/1.1\r\n", Detected.HTTP1),
    (b"GET /", Detected.HTTP1),
    (b"get /", Detected.HTTP1),
    (b"M-SEARCH /", Detected.HTTP1),
    (b"OPTIONS * HTTP/1.1\r\n", Detected.HTTP1),
    (b"GET * HTTP/1.1\r\n", Detected.OTHER),
    (b"CONNECT db.test:1 HTTP/1.1\r\n", Detected.HTTP1),
    (b"GET http://app.test/ HTTP/1.1", Detected.HTTP1),
    (b"GET HTTPS://app.test/ HTTP/1.1", Detected.HTTP1),
    (b"GET httpx://app.test/ HTTP/1.1", Detected.OTHER),
    (b"GET ftp://app.test/ HTTP/1.1", Detected.OTHER),
    (b"GET  / HTTP/1.1", Detected.OTHER),
    (b" GET / HTTP/1.1", Detected.OTHER),
    (b"\r\nGET / HTTP/1.1", Detected.OTHER),
    (b"A" * 32 + b" /", Detected.HTTP1),
    (b"A" * 33 + b" /", Detected.OTHER),
    (b"EHLO client.test\r\n", Detected.OTHER),
    (b"SSH-2.0-OpenSSH_9.2p1\r\n", Detected.OTHER),
    (b"*1\r\n$4\r\nPING\r\n", Detected.OTHER),
    (b"USER me\r\n", Detected.OTHER),
    (b"QUIT\r\n", Detected.OTHER),
    (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", Detected.OTHER),
    (b"\x10\x26\x00\x04MQTT", Detected.OTHER),
]


@pytest.mark.parametrize(("data", "expected"), CASES)
def test_whole(data, expected):
    assert detect(data) is expected


@pytest.mark.parametrize(("data", "expected"), CASES)
def test_byte_by_byte(data, expected):
    for end in range(len(data)):
        assert detect(data[:end]) in (Detected.MORE, expected)


@given(st.binary(max_size=60), st.binary(max_size=20))
def test_more_bytes_never_change_an_answer(data, more):
    answer = detect(data)
    if answer is not Detected.MORE:
        assert detect(data + more) is answer
    elif len(data) >= 48:
        raise AssertionError("asks for too much")


def test_nothing_tells_nothing():
    assert detect(b"") is Detected.MORE


@pytest.mark.parametrize(
    ("words", "is_it"),
    [
        (b"\0\0\x12\4\0\0\0\0\0", True),
        (b"\0\0\0\4\0\0\0\0\0\0\0\4\1", True),
        (b"\0\0\x12\4\0\0\0\0", False),
        (b"\0\0\x12\4\0\0\0\0\1", False),
        (b"\0\0\x11\4\0\0\0\0\0", False),
        (b"\1\0\x02\4\0\0\0\0\0", False),
        (b"\0\0\x12\4\1\0\0\0\0", False),
        (b"\0\0\x12\1\0\0\0\0\0", False),
        (b"220 mail.test", False),
        (b"", False),
    ],
)
def test_servers_of_http2_say_their_settings(words, is_it):
    assert is_http2_server(words) is is_it


@pytest.mark.parametrize(
    ("words", "greets"),
    [
        (b"220 mail.test ESMTP\r\n", True),
        (b"SSH-2.0-OpenSSH_9.2\r\n", True),
        (b"J\0\0\0\x0a8.0.36\0", True),
        (b"\x15nothing of TLS", True),
        (b"", False),
        (b"HTTP/1.1 408 Request Timeout\r\n", False),
        (b"HT", False),
        (b"\x15\x03\x03\0\2\1\0", False),
        (b"\x16", False),
        (b"\0\0\x12\4\0\0\0\0\0", False),
        (b"\0\0", False),
        (b"\0\0\x12\5", True),
    ],
)
def test_only_protocols_in_which_servers_begin_greet(words, greets):
    assert is_greeting(words) is greets
