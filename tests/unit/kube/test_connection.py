"""One connection to an API server: requests one after another, bounds, and every way of breaking off."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from sidestep.kube.access import ClusterAccess
from sidestep.kube.connection import HttpConnection
from sidestep.kube.errors import UnreachableClusterError


@asynccontextmanager
async def answering(*answers, **changes):
    """A connection to a server that gives these answers to requests, one after another, then closes."""
    requests = []

    async def serve(reader, writer):
        for answer in answers:
            head = await reader.readuntil(b"\r\n\r\n")
            size = next((line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")), b":0")
            requests.append(head + await reader.readexactly(int(size.partition(b":")[2])))
            writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        access = ClusterAccess(host="127.0.0.1", port=server.sockets[0].getsockname()[1], tls=None, **changes)
        connection = await HttpConnection.open(access)
        try:
            yield connection, requests
        finally:
            connection.close()
            await asyncio.sleep(0)


def run(test):
    async def bounded():
        async with asyncio.timeout(20):
            await test()

    asyncio.run(bounded())


OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"


def test_requests_one_after_another():
    async def test():
        async with answering(OK, OK, base="/k8s", authorization=lambda: "Bearer x") as (connection, requests):
            for method, body in (("GET", b""), ("POST", b"{}")):
                assert connection.reusable
                head = await connection.send(method, "/api", body=body)
                assert (head.status, head.headers["content-length"]) == (200, "2")
                assert await connection.body(2) == b"hi"
            assert requests[0].startswith(b"GET /k8s/api HTTP/1.1\r\n")
            assert b"authorization: Bearer x\r\n" in requests[0].replace(b"Authorization", b"authorization")
            assert requests[1].endswith(b"{}")

    run(test)


def test_informational_heads_are_passed_over_and_101_is_the_answer():
    async def test():
        early = b"HTTP/1.1 100 Continue\r\n\r\n"
        async with answering(early + OK) as (connection, _):
            assert (await connection.send("GET", "/")).status == 200
        switched = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\nrest"
        async with answering(switched) as (connection, _):
            headers = [("connection", "Upgrade"), ("upgrade", "websocket")]
            assert (await connection.send("GET", "/", headers=headers)).status == 101
            assert connection.take_over()[2] == b"rest"

    run(test)


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 20", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000],
    ids=["nothing", "part", "nonsense", "long head"],
)
def test_what_is_no_answer_is_a_cluster_that_cannot_be_reached(answer):
    async def test():
        async with answering(answer) as (connection, _):
            with pytest.raises(UnreachableClusterError, match="broke off"):
                await connection.send("GET", "/")

    run(test)


def test_a_body_is_bounded_and_must_be_whole():
    async def test():
        async with answering(OK) as (connection, _):
            await connection.send("GET", "/")
            with pytest.raises(UnreachableClusterError, match="more than 1 bytes"):
                await connection.body(1)
        async with answering(OK[:-1]) as (connection, _):
            await connection.send("GET", "/")
            with pytest.raises(UnreachableClusterError, match="broke off"):
                await connection.body(10)

    run(test)


def test_a_connection_is_not_reusable_inside_an_answer_or_after_the_servers_end():
    async def test():
        async with answering(OK) as (connection, _):
            await connection.send("GET", "/")
            assert not connection.reusable
            await connection.body(2)
            with pytest.raises(UnreachableClusterError):
                await connection.send("GET", "/")
            assert not connection.reusable

    run(test)


def test_nobody_there():
    async def test():
        with pytest.raises(UnreachableClusterError, match="cannot be reached: connection refused"):
            await HttpConnection.open(ClusterAccess(host="127.0.0.1", port=1, tls=None))

    run(test)
