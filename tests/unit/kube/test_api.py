"""The client against API servers that say exactly these bytes: requests, bounds, and every way of breaking off."""

import asyncio
import socket
import zlib
from contextlib import asynccontextmanager

import pytest

from sidestep.aio.time_limit import time_limit
from sidestep.kube import api as api_module
from sidestep.kube.access import ClusterAccess
from sidestep.kube.api import Api
from sidestep.kube.errors import ApiError, UnreachableClusterError
from sidestep.kube.proxies import proxy_for
from sidestep.kube.transport import MAX_IDLE
from sidestep.model.errors import ConfigurationError


@asynccontextmanager
async def answering(*answers, **changes):
    """A client of a server that gives these answers, one after another on any connection; b"" closes it."""
    requests, left = [], list(answers)

    async def serve(reader, writer):
        try:
            while left:
                head = await reader.readuntil(b"\r\n\r\n")
                size = next((each for each in head.lower().split(b"\r\n") if each.startswith(b"content-length")), b":0")
                requests.append(head + await reader.readexactly(int(size.partition(b":")[2])))
                answer = left.pop(0)
                if not answer:
                    break
                writer.write(answer)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        client = Api(ClusterAccess("127.0.0.1", server.sockets[0].getsockname()[1], None, **changes))
        try:
            yield client, requests
        finally:
            await client.aclose()
            await asyncio.sleep(0.01)


def run(test):
    async def bounded():
        async with time_limit(40):
            await test()

    asyncio.run(bounded())


OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"


def test_requests_one_after_another_and_no_surprises_in_their_heads(tmp_path, monkeypatch):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login eve password secret\n")
    monkeypatch.setenv("HOME", str(tmp_path))

    async def test():
        async with answering(OK, OK, OK, base="/k8s", authorization=lambda: "Bearer x") as (client, requests):
            assert await client.get("/api/a%2Fb", {"limit": 1}) == b"hi"
            assert await client.create("/api", b"{}") == b"hi"
            assert await client.patch("/api", b"{}") == b"hi"
            first, second, third = (each.lower() for each in requests)
            assert first.startswith(b"get /k8s/api/a%2fb?limit=1 http/1.1\r\n")
            assert b"authorization: bearer x\r\n" in first
            assert b"accept-encoding: identity\r\n" in first
            assert second.endswith(b"\r\n\r\n{}")
            assert b"content-type: application/json\r\n" in second
            assert b"content-type: application/merge-patch+json\r\n" in third
        async with answering(OK) as (client, requests):
            await client.get("/")
            assert b"authorization" not in requests[0].lower()

    run(test)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 20",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000,
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 100_000,
        OK[:-1],
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=["part", "nonsense", "long field", "many fields", "half a body", "no chunk"],
)
def test_what_is_no_answer_is_a_cluster_that_cannot_be_reached(answer):
    async def test():
        async with answering(answer) as (client, _):
            with pytest.raises(UnreachableClusterError, match="broke off") as caught:
                await client.get("/")
            assert str(caught.value).isprintable()

    run(test)


def test_informational_heads_are_passed_over():
    async def test():
        async with answering(b"HTTP/1.1 100 Continue\r\n\r\n" + OK) as (client, _):
            assert await client.get("/") == b"hi"

    run(test)


def test_redirects_are_not_followed_and_compression_is_not_undone():
    async def test():
        moved = b"HTTP/1.1 307 Go\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n"
        async with answering(moved, OK) as (client, requests):
            with pytest.raises(ApiError) as caught:
                await client.get("/")
            assert (caught.value.status, len(requests)) == (307, 1)
        packed = zlib.compress(b"x" * 10_000_000)
        head = b"HTTP/1.1 200 OK\r\ncontent-encoding: deflate\r\ncontent-length: %d\r\n\r\n" % len(packed)
        async with answering(head + packed) as (client, _):
            assert await client.get("/") == packed

    run(test)


def test_bodies_errors_and_lines_are_bounded(monkeypatch):
    monkeypatch.setattr(api_module, "MAX_BODY", 1)
    monkeypatch.setattr(api_module, "MAX_LINE", 10)

    async def test():
        async with answering(OK) as (client, _):
            with pytest.raises(UnreachableClusterError, match="more than 1 bytes"):
                await client.get("/")
        async with answering(b"HTTP/1.1 500 X\r\n\r\n" + b"x" * 100_000) as (client, _):
            with pytest.raises(UnreachableClusterError, match="more than 65536 bytes"):
                await client.get("/")
        async with answering(b"HTTP/1.1 200 OK\r\n\r\na\n\nb\n" + b"x" * 11) as (client, _):
            with pytest.raises(UnreachableClusterError, match="event of more than 10 bytes"):
                async with client.stream("/", {}) as lines:
                    assert {line async for line in lines} <= {b"a", b"b"}

    run(test)


@pytest.mark.parametrize(("method", "expected"), [("get", 2), ("patch", 2), ("delete", 2), ("create", 1)])
def test_only_what_may_be_repeated_is_sent_twice(method, expected):
    async def test():
        async with answering(b"", b"", b"") as (client, requests):
            with pytest.raises(UnreachableClusterError):
                await getattr(client, method)("/", *([b"{}"] if method in {"patch", "create"} else []))
            assert len(requests) <= expected

    run(test)


@pytest.mark.parametrize("method", ["get", "patch", "delete", "create"])
def test_a_request_on_a_new_connection_is_never_repeated(method):
    async def test():
        async with answering(b"", OK) as (client, requests):
            with pytest.raises(UnreachableClusterError, match="broke off"):
                await getattr(client, method)("/", *([b"{}"] if method in {"patch", "create"} else []))
            assert len(requests) == 1

    run(test)


@pytest.mark.parametrize("method", ["get", "patch", "delete"])
def test_a_request_on_an_idle_connection_that_was_closed_is_repeated_on_a_new_one(method):
    async def test():
        async with answering(OK, b"", OK, b"", OK) as (client, requests):
            for _ in range(3):
                assert await getattr(client, method)("/", *([b"{}"] if method == "patch" else [])) == b"hi"
            assert len(requests) == 5

    run(test)


def test_a_post_is_not_repeated_on_an_idle_connection_either():
    async def test():
        async with answering(OK, b"", OK) as (client, requests):
            await client.get("/")
            with pytest.raises(UnreachableClusterError, match="broke off"):
                await client.create("/", b"{}")
            assert len(requests) == 2

    run(test)


def test_few_idle_connections_are_kept_whatever_was_asked_at_once():
    async def test():
        open_, made, together = set(), [], asyncio.Event()

        async def serve(reader, writer):
            open_.add(writer)
            made.append(writer)
            try:
                while await reader.readuntil(b"\r\n\r\n"):
                    if len(made) == 20:
                        together.set()
                    await together.wait()
                    writer.write(OK)
            except (OSError, asyncio.IncompleteReadError):
                pass
            open_.discard(writer)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            client = Api(ClusterAccess("127.0.0.1", server.sockets[0].getsockname()[1], None))
            assert await asyncio.gather(*(client.get("/") for _ in range(20))) == [b"hi"] * 20
            async with time_limit(10):
                while len(open_) > MAX_IDLE:  # noqa: ASYNC110 - a condition of sockets, with a deadline
                    await asyncio.sleep(0.01)
            await asyncio.gather(*(client.get("/") for _ in range(MAX_IDLE)))
            assert (len(open_), len(made)) == (MAX_IDLE, 20)
            await client.aclose()
            await asyncio.sleep(0.01)

    run(test)


def test_a_silent_server_is_given_up(monkeypatch):
    monkeypatch.setattr(api_module, "TIMEOUT", 0.3)

    async def test():
        async with answering(b"HTTP/1.1 100 Continue\r\n\r\n", OK) as (client, _):
            with pytest.raises(UnreachableClusterError, match="does not answer"):
                await client.get("/")
            with pytest.raises(ApiError, match="status 200"):
                await client.upgrade("/", {}, {"upgrade": "websocket", "connection": "upgrade"})

    run(test)


def test_an_unreachable_machine_is_detected_on_a_silent_watch():
    async def test():
        async with answering(b"HTTP/1.1 200 OK\r\n\r\n{}\n") as (client, _):
            answer = await client._transport.send("GET", "/", {})
            sock = answer.connection.transport.get_extra_info("socket")
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            idle, interval, count = (
                sock.getsockopt(socket.IPPROTO_TCP, each)
                for each in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            )
            assert idle + interval * count <= 30
            answer.close()

    run(test)


@pytest.mark.parametrize(
    ("no_proxy", "host", "used"),
    [
        ("", "10.96.0.1", True),
        ("10.96.0.0/12", "10.96.0.1", False),
        ("10.96.0.0/12", "10.1.0.1", True),
        ("a.test, .cluster.test", "api.cluster.test", False),
        ("cluster.test:443", "api.cluster.test", False),
        ("cluster.test:444", "api.cluster.test", True),
        ("uster.test", "api.cluster.test", True),
        ("*.cluster.test", "api.cluster.test", False),
        (".cluster.test", "cluster.test", True),
        ("[fd00::1]:443,x", "fd00::1", False),
        ("fd00::/8", "fd00::1", False),
        ("*", "api", False),
        ("", "localhost", False),
        ("", "127.3.4.5", False),
    ],
)
def test_no_proxy_as_client_go_reads_it(no_proxy, host, used):
    import ssl

    access = ClusterAccess(host, 443, ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    for name in ("NO_PROXY", "no_proxy"):
        found = proxy_for(access, {"https_proxy": "proxy:3128", "HTTP_PROXY": "http://wrong", name: no_proxy})
        assert (found is not None) == used
    if found is not None:
        assert found.url == "http://proxy:3128"


@pytest.mark.parametrize(
    "url",
    ["http://ada:pa/ss@proxy:3128", "http://ada:12/34@proxy:3128", "http://ada:pa#ss@proxy", "http://ada:1?a@proxy"],
)
def test_a_password_that_is_not_escaped_is_refused_and_not_quoted(url):
    """Its first part would be taken for a port, and shown wherever the proxy is named."""
    import ssl

    access = ClusterAccess("api.test", 443, ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    with pytest.raises(ConfigurationError, match="HTTPS_PROXY: is no URL of a proxy") as caught:
        proxy_for(access, {"HTTPS_PROXY": url})
    assert caught.value.__cause__ is None
    assert "ada" not in str(caught.value)
    assert "12" not in str(caught.value)
