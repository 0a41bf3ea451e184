"""HTTP/2 in, HTTP/1.1 out: real sockets to a threaded handler, an independent HTTP/2 client on the other side."""

import asyncio
import contextlib
import hashlib
import re
import select

import pytest
from msgspec.structs import replace

from sidestep.aio.time_limit import time_limit
from sidestep.laptop.handler import Handler, HandlerSettings
from sidestep.laptop.translation.channel import TranslatingChannel
from tests.harness.authority import Authority
from tests.harness.peers import Server, digest_of, http_app, pattern, server_context
from tests.unit.laptop.http2_client import Answer, Http2Client
from tests.unit.tunnel.ends import OPENING, asynchronous, eventually

H2 = replace(OPENING, protocol="h2")
AUTHORITY = Authority("Developer")


@contextlib.asynccontextmanager
async def translating(script=http_app, *, tls=False, **options):
    context = server_context(AUTHORITY.issue("orders.shop")) if tls else None
    with Server(script, name="handler", tls=context) as server:
        handler = Handler(HandlerSettings(server.port, plaintext=not tls))
        handler.intercept = "shop/mine"
        if not tls:
            handler._http1_until = float("inf")
        channel = await handler.dial(H2)
        assert isinstance(channel, TranslatingChannel)
        async with Http2Client(channel, **options) as client:
            client.handler = server
            yield client


@pytest.mark.parametrize("tls", [False, True])
def test_a_request_and_its_answer(tls):
    @asynchronous
    async def run():
        async with translating(tls=tls) as client:
            answer = await client.request("/some?q=1", x_dev="ada")
            assert (answer.status, bytes(answer.body)) == (200, b"handler\n")
            assert answer.headers["x-served-by"] == "handler"
            head = client.handler.connections[0].received
            assert head.startswith(b"GET /some?q=1 HTTP/1.1\r\nhost: orders.shop\r\nx-dev: ada\r\n\r\n")

    run()


@pytest.mark.parametrize("measured", [True, False])
@pytest.mark.parametrize("size", [1, 16_384, 3_000_001])
def test_bodies_are_exact_and_framed(measured, size):
    @asynchronous
    async def run():
        async with translating() as client:
            more = {"content_length": str(size)} if measured else {}
            body = b"".join(pattern(size))
            answer = await client.request("/digest", body, **more)
            assert bytes(answer.body) == f"{digest_of(size)} {size}\n".encode()
            head = client.handler.connections[0].received.partition(b"\r\n\r\n")[0]
            assert (b"content-length: %d" % size in head) is measured
            assert (b"transfer-encoding: chunked" in head) is not measured
            answer = await client.request(f"/bytes/{size}")
            assert hashlib.sha256(answer.body).hexdigest() == digest_of(size)
            assert answer.headers["content-length"] == str(size)

    run()


def test_a_post_without_a_body_says_so():
    @asynchronous
    async def run():
        async with translating() as client:
            assert (await client.request("/echo", method="POST")).ended
            assert b"content-length: 0" in client.handler.connections[0].received

    run()


def test_trailers_both_ways():
    @asynchronous
    async def run():
        async with translating() as client:
            answer = await client.request("/chunked")
            assert (bytes(answer.body), answer.trailers) == (b"hellohandler", {"x-trailer": "handler"})
            assert "transfer-encoding" not in answer.headers
            stream = await client.begin("/echo", method="POST", end=False)
            await client.send(stream, b"body")
            client.h2.send_headers(stream, [("x-checksum", "7")], end_stream=True)
            await client.flush()
            assert bytes((await client.finished(stream)).body) == b"body"
            assert client.handler.connections[-1].received.endswith(b"0\r\nx-checksum: 7\r\n\r\n")

    run()


def test_head_and_interim_answers():
    @asynchronous
    async def run():
        async with translating() as client:
            answer = await client.request("/", method="HEAD")
            assert (answer.status, answer.ended, len(answer.body)) == (200, True, 0)
            assert answer.headers["content-length"] == "8"
            stream = await client.begin("/echo", method="POST", end=False, expect="100-continue")
            await eventually(lambda: client.answers[stream].informational, what="100")
            assert client.answers[stream].informational[0][":status"] == "100"
            await client.send(stream, b"body", end=True)
            assert bytes((await client.finished(stream)).body) == b"body"

    run()


def test_connections_are_kept_and_bodies_take_fresh_ones():
    @asynchronous
    async def run():
        async with translating() as client:
            for _ in range(5):
                assert (await client.request("/")).status == 200
            before = len(client.handler.connections)
            assert before <= 2  # an answer is there a moment before its connection is
            await client.request("/echo", b"body")
            assert len(client.handler.connections) == before + 1

    run()


def test_streams_side_by_side():
    @asynchronous
    async def run():
        async with translating() as client:
            held = [await client.begin("/hold") for _ in range(20)]
            for _ in held:
                await asyncio.to_thread(client.handler.holding.acquire, timeout=20)
            assert (await client.request("/")).status == 200
            client.handler.release.set()
            for stream in held:
                assert (await client.finished(stream)).status == 200

    run()


@pytest.mark.parametrize("content_type", ["application/grpc", "application/grpc+proto", "Application/gRPC;a=b"])
def test_grpc_is_told(content_type):
    @asynchronous
    async def run():
        async with translating() as client:
            answer = await client.request("/shop.Orders/Get", b"\0\0\0\0\0", content_type=content_type, te="trailers")
            assert (answer.status, answer.headers["grpc-status"]) == (200, "12")
            assert "shop/mine" in answer.headers["grpc-message"]
            assert "HTTP/2" in answer.headers["grpc-message"]
            assert client.handler.requests == 0

    run()


@pytest.mark.parametrize("content_type", ["application/grpc-web", "application/grpc-web+proto", "application/grpcx"])
def test_what_only_begins_like_grpc_is_served(content_type):
    @asynchronous
    async def run():
        async with translating() as client:
            answer = await client.request("/echo", b"\0\0\0\0\0", content_type=content_type)
            assert (answer.status, bytes(answer.body)) == (200, b"\0\0\0\0\0")

    run()


@pytest.mark.parametrize("name", ["content_length", "transfer_encoding"])
def test_a_name_that_servers_take_for_framing_is_told(name):
    @asynchronous
    async def run():
        async with translating() as client:
            stream = client.h2.get_next_available_stream_id()
            client.answers[stream] = Answer()
            fields = [(":method", "POST"), (":scheme", "https"), (":authority", "orders.shop"), (":path", "/")]
            client.h2.send_headers(stream, [*fields, (name, "5")], end_stream=True)
            await client.flush()
            answer = await client.finished(stream)
            assert answer.status == 502
            assert name.encode() in answer.body
            assert client.handler.requests == 0

    run()


@pytest.mark.parametrize("body", [b"", b"body"])
@pytest.mark.parametrize("fields", [b"X-A: %b\r\n" % (b"a" * 65536), b"X-A: aaaa\r\n" * 9000])
def test_a_head_that_is_too_large_is_told(body, fields):
    @asynchronous
    async def run():
        async with translating(answering(b"HTTP/1.1 200 OK\r\n" + fields + b"\r\n")) as client:
            answer = await client.request("/", body)
            assert answer.status == 502
            assert re.match(rb"sidestep: intercept shop/mine: .* head of more than 64 KiB", answer.body)

    run()


def test_extended_connect_is_told():
    @asynchronous
    async def run():
        async with translating() as client:
            await eventually(lambda: client.h2.remote_settings.enable_connect_protocol, what="SETTINGS")
            fields = [(":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "https"), (":path", "/ws")]
            stream = client.h2.get_next_available_stream_id()
            client.answers[stream] = Answer()
            client.h2.send_headers(stream, [*fields, (":authority", "orders.shop")])
            await client.flush()
            answer = await client.finished(stream)
            assert answer.status == 502
            assert answer.body.startswith(b"sidestep: intercept shop/mine: ")

    run()


def answering(*answers):
    """A handler that gives each connection's first request the next of these answers, then closes."""
    left = list(answers)

    def script(server, connection):
        connection.reader.until(b"\r\n\r\n")
        connection.send(left.pop(0))

    return script


def test_connection_fields_stay_behind():
    @asynchronous
    async def run():
        answer = (
            b"HTTP/1.1 200 OK\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nX-End: 2\r\n\r\nto the end"
        )
        async with translating(answering(answer)) as client:
            got = await client.request("/", te="trailers", cookie="a=1")
            assert got.headers == {":status": "200", "x-end": "2"}
            assert bytes(got.body) == b"to the end"
            assert b"te: trailers\r\nconnection: te\r\n" in client.handler.connections[0].received

    run()


@pytest.mark.parametrize("status", [204, 304])
def test_answers_without_a_body(status):
    @asynchronous
    async def run():
        async with translating(answering(b"HTTP/1.1 %d X\r\nETag: x\r\n\r\n" % status)) as client:
            got = await client.request("/")
            assert (got.status, got.ended, bytes(got.body)) == (status, True, b"")

    run()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe",
    ],
)
def test_a_half_answer_never_looks_whole(answer):
    @asynchronous
    async def run():
        async with translating(answering(answer)) as client:
            got = await client.request("/")
            assert (got.status, got.ended, got.reset) == (200, False, 2)

    run()


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200", b"SSH-2.0-x\r\n", b"HTTP/1.1 101 X\r\nUpgrade: x\r\n\r\n"])
def test_without_an_answer_the_request_can_go_to_the_app(answer):
    @asynchronous
    async def run():
        async with translating(answering(answer)) as client:
            got = await client.request("/")
            assert (got.headers, got.reset) == ({}, 13)  # HTTP_1_1_REQUIRED: the app, if it still can

    run()


def test_without_an_answer_and_with_a_body_it_is_a_502():
    @asynchronous
    async def run():
        def script(server, connection):
            connection.reader.until(b"body")

        async with translating(script) as client:
            got = await client.request("/", b"body")
            assert got.status == 502
            assert re.match(rb"sidestep: intercept shop/mine: .*did not answer", got.body)

    run()


def test_a_handler_that_closed_a_kept_connection():
    @asynchronous
    async def run():
        one = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
        async with translating(answering(one, one, one)) as client:  # closes after each, without saying so
            for _ in range(3):
                assert bytes((await client.request("/")).body) == b"ok"
            assert len(client.handler.connections) == 3

    run()


def test_an_early_answer_ends_an_upload(monkeypatch):
    monkeypatch.setattr("sidestep.laptop.translation.exchange.LINGER", 0.1)

    @asynchronous
    async def run():
        def script(server, connection):
            connection.reader.until(b"\r\n\r\n")
            connection.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
            server.release.wait(20)

        async with translating(script) as client:
            stream = await client.begin("/", method="POST", end=False)
            await client.send(stream, b"x")
            answer = await client.finished(stream)
            assert (answer.status, bytes(answer.body), answer.ended) == (413, b"big", True)
            await eventually(lambda: answer.reset is not None, what="a reset")
            assert answer.reset == 0

    run()


def test_a_client_that_resets_frees_the_handler():
    @asynchronous
    async def run():
        async with translating() as client:
            stream = await client.begin("/hold")
            await asyncio.to_thread(client.handler.holding.acquire, timeout=20)
            client.h2.reset_stream(stream, 8)
            await client.flush()
            sock = client.handler.connections[0].sock
            await eventually(lambda: broken(sock), what="the handler's connection to break")

    run()


def broken(sock):
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def test_a_client_that_does_not_read_stops_the_handler():
    @asynchronous
    async def run():
        async with translating(reads=False) as client:
            stream = await client.begin("/bytes/100000000")
            size = -1
            while size != len(client.answers[stream].body):
                size = len(client.answers[stream].body)
                await asyncio.sleep(0.3)
            assert size == 65_535
            assert not client.handler.connections[0].finished.is_set()
            assert (await client.begin("/")) == stream + 2

    run()


def test_a_handler_that_does_not_read_stops_the_client():
    @asynchronous
    async def run():
        def script(server, connection):
            connection.reader.until(b"\r\n\r\n")
            server.release.wait(20)

        async with translating(script) as client:
            stream = await client.begin("/", method="POST", end=False)
            with pytest.raises(TimeoutError):
                async with time_limit(2):
                    await client.send(stream, bytes(100_000_000))
            assert client.h2.local_flow_control_window(stream) == 0
            client.handler.release.set()

    run()


def test_the_end_of_the_client_ends_the_channel_after_the_last_answer():
    @asynchronous
    async def run():
        async with translating() as client:
            stream = await client.begin("/hold")
            await asyncio.to_thread(client.handler.holding.acquire, timeout=20)
            await client.channel.write_eof()
            client.handler.release.set()
            assert (await client.finished(stream)).status == 200
            await eventually(lambda: client.over, what="the end")
            assert client.channel.hung_up()

    run()


def test_bytes_that_are_no_http2_end_the_channel():
    @asynchronous
    async def run():
        with Server(http_app, name="handler") as server:
            handler = Handler(HandlerSettings(server.port, plaintext=True))
            channel = await handler.dial(H2)
            await channel.write(b"GET / HTTP/1.1\r\n\r\n")
            while await channel.read():
                pass
            channel.close()

    run()
