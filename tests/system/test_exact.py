"""Byte for byte: what app, handler and client see through Sidestep is what they see without it.

The peers count bytes and understand nothing: a conversation is a list of (bytes of the client, bytes of the server).
It runs once with nothing steered, which is what a capture of a plain run shows, then through the pod proxy to the app,
then to the handler.
"""

from __future__ import annotations

import gzip

import pytest

from tests.harness import scene
from tests.harness.peers import Server, http_app

GZIPPED = gzip.compress(b"squeezed " * 50, mtime=0)


def head(*lines):
    return b"\r\n".join([*lines, b"", b""])


HELLO = head(b"HTTP/1.1 200 OK", b"Content-Length: 2") + b"ok"

CONVERSATIONS = {
    "odd cases, order, repeats and spaces of header fields": [
        (
            head(
                b"GET /a?b=%20c HTTP/1.1",
                b"hOsT: orders.shop.test",
                b"X-Empty:",
                b"x-REPEATED:one",
                b"Accept:   */*  ",
                b"X-Repeated:\ttwo\t",
                b"X-Bytes: \xe4\xf6\xfc \xff",
                b"Cookie: a=b; c=d",
                b"Accept-Encoding: gzip, br, zstd",
            ),
            head(
                b"HTTP/1.1 200 Odd  but true",
                b"sErVeR:x",
                b"Set-Cookie: a=b",
                b"SET-cookie: c=d",
                b"content-LENGTH:  5",
                b"X-Empty:",
            )
            + b"hello",
        ),
        (head(b"GET /second HTTP/1.1", b"Host: a"), HELLO),
    ],
    "chunks of all sizes with trailers both ways": [
        (
            head(b"POST /c HTTP/1.1", b"Host: a", b"tRansfer-encodinG: chunked", b"Trailer: X-Sum")
            + b"1\r\na\r\n0A\r\n0123456789\r\n00000003\r\nabc\r\n0\r\nX-Sum: 1\r\nx-OTHER:2\r\n\r\n",
            head(b"HTTP/1.1 200 OK", b"Transfer-Encoding: chunked")
            + b"A\r\n9876543210\r\n1\r\n\x00\r\n000\r\nX-Trailer: \xfe\r\n\r\n",
        ),
        (head(b"GET / HTTP/1.1", b"Host: a"), HELLO),
    ],
    "compressed and binary bodies": [
        (
            head(b"PUT /z HTTP/1.1", b"Host: a", b"Content-Length: %d" % len(GZIPPED), b"Content-Encoding: gzip")
            + GZIPPED,
            head(b"HTTP/1.1 200 OK", b"Content-Encoding: gzip", b"Content-Length: %d" % len(GZIPPED)) + GZIPPED,
        ),
        (
            head(b"POST /b HTTP/1.1", b"Host: a", b"Content-Length: 1024") + bytes(range(256)) * 4,
            head(b"HTTP/1.1 200 OK", b"Content-Length: 70000") + b"\r\n\x00\xff" * 17500,
        ),
    ],
    "answers without a body": [
        (head(b"HEAD /h HTTP/1.1", b"Host: a"), head(b"HTTP/1.1 200 OK", b"Content-Length: 12345")),
        (head(b"GET /204 HTTP/1.1", b"Host: a"), head(b"HTTP/1.1 204 No Content", b"X: y")),
        (
            head(b"GET /304 HTTP/1.1", b"Host: a", b'If-None-Match: "x"'),
            head(b"HTTP/1.1 304 Not Modified", b"Content-Length: 99", b'ETag: "x"'),
        ),
        (head(b"OPTIONS * HTTP/1.1", b"Host: a"), head(b"HTTP/1.1 200 OK", b"Allow: GET", b"Content-Length: 0")),
        (head(b"GET / HTTP/1.1", b"Host: a"), HELLO),
    ],
    "interim answers": [
        (
            head(b"POST /e HTTP/1.1", b"Host: a", b"Expect: 100-continue", b"Content-Length: 4"),
            head(b"HTTP/1.1 100 Continue"),
        ),
        (b"body", head(b"HTTP/1.1 103 Early Hints", b"Link: </x>; rel=preload") + HELLO),
        (head(b"GET / HTTP/1.1", b"Host: a"), HELLO),
    ],
    "unknown methods, absolute targets, odd but legal values": [
        (head(b"PROPFIND /dav HTTP/1.1", b"Host: a", b"Depth: 1", b"Content-Length: 0"), HELLO),
        (head(b"GET http://a/absolute HTTP/1.1", b"Host: a"), HELLO),
        (head(b"M-SEARCH /%7e/../x//y;p=1?q=/?z HTTP/1.1", b"Host: a"), HELLO),
    ],
    "HTTP/1.0 until close": [
        (head(b"GET /old HTTP/1.0", b"User-Agent: x"), head(b"HTTP/1.0 200 OK", b"Server: old") + b"until close"),
    ],
    "connection close": [
        (
            head(b"GET /bye HTTP/1.1", b"Host: a", b"Connection: close"),
            head(b"HTTP/1.1 200 OK", b"Connection: close") + b"no length at all",
        ),
    ],
}
"""Conversations of well-formed HTTP; the first request of each may be given a header that matches."""

WIRED = {
    "not HTTP at all": [(b"\x00\x01\x02hello\xff\n", b"\x03world"), (b"more", b"less")],
    "chunk extensions": [
        (
            head(b"POST /x HTTP/1.1", b"Host: a", b"Transfer-Encoding: chunked") + b"3;a=b\r\nabc\r\n0\r\n\r\n",
            head(b"HTTP/1.1 200 OK", b"Transfer-Encoding: chunked") + b"2;x\r\nok\r\n0\r\n\r\n",
        ),
    ],
    "bare line feeds": [(b"GET / HTTP/1.1\nHost: a\n\n", HELLO), (b"GET /2 HTTP/1.1\nHost: a\n\n", HELLO)],
    "two lengths": [
        (head(b"POST / HTTP/1.1", b"Host: a", b"Content-Length: 3", b"Content-Length: 4") + b"abcd", HELLO),
    ],
    "an empty line first": [(b"\r\n" + head(b"GET / HTTP/1.1", b"Host: a"), HELLO)],
    "an answer that is none": [
        (head(b"GET / HTTP/1.1", b"Host: a"), b"SSH-2.0-surprise\r\n"),
        (b"and on", b"and on"),
    ],
}
"""Conversations that may not be parsed; they pass as a wire."""

PORTS = [pytest.param(scene.TLS_PORT, id="tls"), pytest.param(scene.PLAIN_PORT, id="plain")]


def counting(server, connection):
    """The script of a server that reads exactly what the client will say, answers each part, and closes."""
    for said, answered in server.conversation:
        connection.reader.exactly(len(said))
        connection.send(answered)


def converse(client, conversation):
    """The client's part: everything that came back."""
    for said, answered in conversation:
        client.send(said)
        client.reader.exactly(len(answered))
    return bytes(client.reader.received)


def observe(shop, app, conversation, port):
    """What the app received and the client got back in one run, with whatever is steered now."""
    app.conversation = conversation
    before = len(app.connections)
    with shop.client(port=port, alpn=["http/1.1"]) as client:
        answered = converse(client, conversation)
        client.reader.rest()
        assert bytes(client.reader.received) == answered
    seen = [connection for connection in app.connections[before:] if connection.reader.received]
    assert len(seen) == 1
    assert seen[0].finished.wait(10)
    return seen[0].received, answered, seen[0].alpn, seen[0].server_name, seen[0].failure


def is_steered(shop, port):
    """Whether a matching request reaches the handler."""
    return shop.get("/", scene.DEV, port=port).served_by == "handler"


@pytest.mark.parametrize("port", PORTS)
def test_unmatched_conversations_are_as_without_us(shop, port):
    conversations = {**CONVERSATIONS, **WIRED}
    tls, plaintext = (shop.app_tls(), False) if port == scene.TLS_PORT else (None, True)
    with Server(counting, netns=shop.space.pod, address=shop.space.ip, port=port, tls=tls) as app:
        direct = {name: observe(shop, app, conversation, port) for name, conversation in conversations.items()}
        with shop.intercept(port=port, plaintext=plaintext):
            assert is_steered(shop, port)
            for name, conversation in conversations.items():
                assert direct[name][0] == b"".join(said for said, _ in conversation), name
                assert observe(shop, app, conversation, port) == direct[name], name
            assert is_steered(shop, port)


@pytest.mark.parametrize("port", PORTS)
def test_an_answer_arrives_whole_though_its_app_is_gone_at_once(shop, port):
    """The app's end, its break and the client's last bytes come in every order; over TLS a break always follows."""
    conversation = CONVERSATIONS["compressed and binary bodies"]
    tls, plaintext = (shop.app_tls(), False) if port == scene.TLS_PORT else (None, True)
    with (
        Server(counting, netns=shop.space.pod, address=shop.space.ip, port=port, tls=tls) as app,
        shop.intercept(port=port, plaintext=plaintext),
    ):
        for _ in range(100):
            observe(shop, app, conversation, port)


@pytest.mark.parametrize("port", PORTS)
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_matched_conversations_reach_the_handler_whole(shop, port, name):
    conversation = [(_marked(said), answered) for said, answered in CONVERSATIONS[name]]
    tls, plaintext = (shop.app_tls(), False) if port == scene.TLS_PORT else (None, True)
    with (
        Server(http_app, netns=shop.space.pod, address=shop.space.ip, port=port, tls=tls) as app,
        Server(counting, name="handler", tls=None if plaintext else shop.app_tls()) as handler,
        shop.intercept(port=port, plaintext=plaintext, handler_port=handler.port),
        shop.client(port=port) as client,
    ):
        handler.conversation = conversation
        assert converse(client, conversation) == b"".join(answer for _, answer in conversation)
        received = b"".join(connection.received for connection in handler.connections)
        assert received == b"".join(said for said, _ in conversation)
        assert not any(connection.received for connection in app.connections)


def _marked(said):
    """The same request with the header that matches, when it is a request."""
    line, separator, rest = said.partition(b"\r\n")
    if b" HTTP/1." not in line:
        return said
    return line + separator + scene.DEV.encode() + b"\r\n" + rest
