"""What a request offers to go on in, and what a handler is offered of it."""

import pytest

from sidestep.protocols.http1 import parse_request
from sidestep.protocols.http1_upgrade import (
    begins_like_request,
    is_shared,
    may_switch,
    offers,
    without_shared,
)

START = b"GET /a HTTP/1.1\r\nHost: a\r\n"


def head(*lines: bytes) -> bytes:
    return START + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


@pytest.mark.parametrize(
    "name", b"h2c H2C h2 h2c-14 h2-16 HTTP/2.0 HTTP/1.1 http/3 TLS/1.0 tls/1.2 SPDY/3.1 h3".split()
)
def test_shared(name):
    assert is_shared(name.lower())
    assert without_shared(head(b"Upgrade: " + name, b"Connection: Upgrade")) == head()


@pytest.mark.parametrize("name", b"websocket WebSocket tcp count h2o http2x connect-udp foo/h2c x-h2c".split())
def test_not_shared(name):
    asked = head(b"Upgrade: " + name, b"Connection: Upgrade")
    assert not is_shared(name.lower())
    assert without_shared(asked) is asked
    assert offers(asked) == [name.lower()]


@pytest.mark.parametrize(
    ("lines", "kept"),
    [
        (
            [b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk", b"X-Dev: me"],
            [b"X-Dev: me"],
        ),
        (
            [b"X-Dev: me", b"connection: keep-alive, upgrade ,http2-settings", b"UPGRADE: H2C, HTTP/2.0"],
            [b"X-Dev: me", b"connection: keep-alive"],
        ),
        (
            [b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c, WebSocket", b"HTTP2-Settings: AA", b"A: upgrade"],
            [b"Connection: Upgrade", b"Upgrade: WebSocket", b"A: upgrade"],
        ),
        (
            [b"Connection: HTTP2-Settings", b"Upgrade:websocket,h2c,foo/1", b"Connection: close, Upgrade"],
            [b"Upgrade: websocket, foo/1", b"Connection: close, Upgrade"],
        ),
        ([b"Upgrade: h2c", b"HTTP2-Settings: AA", b"HTTP2-Settings: BB", b"HTTP2-Settings:"], []),
        ([b"Upgrade: h2c;q=1 foo", b"Connection: Upgrade"], [b"Upgrade: foo", b"Connection: Upgrade"]),
        ([b"Connection: Upgrade", b"Upgrade:", b"A: h2c"], None),
        ([b"Connection: HTTP2-Settings", b"HTTP2-Settings: AA"], None),
    ],
)
def test_what_a_handler_is_offered(lines, kept):
    asked = head(*lines)
    got = without_shared(asked)
    assert got == (asked if kept is None else head(*kept))
    assert not isinstance(parse_request(got), str)


@pytest.mark.parametrize(
    ("offered", "upgrade", "withheld", "expected"),
    [
        ([b"websocket"], b"websocket", False, True),
        ([b"websocket"], b"", False, True),
        ([b"websocket"], b"other", False, True),
        ([b"websocket"], b"h2c", False, False),
        ([b"websocket"], b"websocket,h2c", False, False),
        ([b"websocket"], b"websocket", True, True),
        ([b"websocket"], b"", True, False),
        ([b"websocket"], b"other", True, False),
        ([], b"websocket", True, False),
        ([], b"h2c", True, False),
    ],
)
def test_what_a_handler_may_switch_to(offered, upgrade, withheld, expected):
    assert may_switch(offered, upgrade, withheld=withheld) is expected


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\r\n", b"G", b"GET", b"GET ", b"GET /x", b"\r\n\r\nGET / HTTP/1.1\r\n", b"PO", b"F",
        b"PRI * HTTP/2.0\r\n\r\nSM", b"PONG", b"VERSION-C",
        b"GET /old\r\n", b"FOO /x", b"foo / HTTP/1.1\r\n", b"FOO x http/1.1\r\n", b"FOO\thttp://a/", b"VERSION-",
        b"GET " + b"x" * 70_000,
    ],
)  # fmt: skip
def test_may_be_a_request(data):
    assert begins_like_request(data)


@pytest.mark.parametrize(
    "data",
    [
        b"\x81\x05hello", b"\0", b"\x16\x03\x01", b"early", b"hello world\r\n", b"SSH-2.0-x\r\n", b"PONG\r\n",
        b"GETX\r\n",
        b"GET\r\n", b"GET:", b"{}", b"x" * 70_000, b"\r\n\x00", b"*1\r\n$4\r\nPING\r\n",
    ],
)  # fmt: skip
def test_is_no_request(data):
    assert not begins_like_request(data)
