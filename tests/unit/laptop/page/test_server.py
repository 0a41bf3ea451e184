"""The server answers its page and nobody else, tells changes as they come, and is bounded."""

from __future__ import annotations

import asyncio
import contextlib
import json
import urllib.parse

import aiohttp
import pytest

from sidestep.aio.time_limit import time_limit
from sidestep.laptop.page import server as page_server
from sidestep.laptop.page.flow_ring import FlowRing
from sidestep.laptop.page.observer import PageBoard
from sidestep.laptop.page.server import STREAMS, PageServer, bind
from sidestep.model.errors import ConfigurationError, RefusedError
from tests.unit.laptop.page.test_flow_ring import put

DEADLINE = 30.0


class Served:
    """A server and a client of it."""

    def __init__(self, address, client, ring, board, server):
        self.address, self.client, self.ring, self.board, self.server = address, client, ring, board, server
        self.origin = address[: address.index("/", 8)]

    def post(self, path, value, **headers):
        return self.client.post(self.address + path, json=value, headers={"Origin": self.origin, **headers})


@contextlib.asynccontextmanager
async def served(*, replay=None):
    ring = FlowRing()
    board = PageBoard("orders", lambda: server.changed())  # noqa: PLW0108 - the server is made with it
    server = PageServer(
        ring=ring,
        board=board,
        har=lambda flows: json.dumps([each.id for each in flows]).encode(),
        replay=replay or never,
    )
    address = await server.start(bind(0))
    try:
        async with time_limit(DEADLINE), aiohttp.ClientSession() as client:
            yield Served(address, client, ring, board, server)
    finally:
        await server.aclose()


async def never(flows, to):
    raise AssertionError("nobody asked for it")


async def events(response):
    """The events of a stream: (name, value)."""
    name = ""
    async for line in response.content:
        if line.startswith(b"event: "):
            name = line[7:].strip().decode()
        elif line.startswith(b"data: "):
            yield name, json.loads(line[6:])


async def flow_events(response):
    async for name, value in events(response):
        if name == "flows" and value["rows"]:
            yield value


def test_the_page_and_what_belongs_to_it_are_served_under_a_policy_that_loads_nothing_else():
    async def run():
        async with served() as it:
            for name, kind in (("", "text/html"), ("page.js", "text/javascript"), ("page.css", "text/css")):
                async with it.client.get(it.address + name) as response:
                    assert response.status == 200
                    assert response.content_type == kind
                    assert response.headers["Content-Security-Policy"].startswith("default-src 'none'; ")
                    assert response.headers["X-Content-Type-Options"] == "nosniff"
                    assert response.headers["Cache-Control"] == "no-store"
            for missing in ("server.py", "index.html", "flows/1", "flows/x"):
                async with it.client.get(it.address + urllib.parse.quote(missing, safe="")) as response:
                    assert response.status == 404, missing

    asyncio.run(run())


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/", {}),
        ("/wrong/", {}),
        ("/wrong/events", {}),
        ("/TOKEN/", {"Host": "rebound.example"}),
        ("/TOKEN/events", {"Origin": "http://other.example"}),
        ("/TOKEN/flows/1", {"Sec-Fetch-Site": "cross-site"}),
    ],
)
def test_others_get_403_and_no_reason(path, headers):
    async def run():
        async with served() as it:
            put(it.ring)
            url = it.origin + path.replace("TOKEN", it.address.split("/")[3])
            async with it.client.get(url, headers=headers) as response:
                assert (response.status, await response.text()) == (403, "forbidden\n")

    asyncio.run(run())


@pytest.mark.parametrize("target", ["OPTIONS *", "CONNECT 127.0.0.1:1"])
def test_targets_that_are_no_paths_get_403_too(target):
    async def run():
        async with served() as it:
            host = it.origin.removeprefix("http://")
            reader, writer = await asyncio.open_connection("127.0.0.1", int(host.partition(":")[2]))
            try:
                writer.write(f"{target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
                assert (await reader.readline()).split()[1] == b"403"
            finally:
                writer.close()

    asyncio.run(run())


def test_a_post_without_origin_changes_nothing():
    async def run():
        async with served() as it:
            put(it.ring)
            async with it.client.post(it.address + "clear") as response:
                assert response.status == 403
            assert len(it.ring) == 1
            async with it.post("clear", {}) as response:
                assert response.status == 204
            assert len(it.ring) == 0

    asyncio.run(run())


def test_a_stream_tells_what_is_there_and_what_comes():
    async def run():
        async with served() as it:
            put(it.ring, path="/a")
            async with it.client.get(it.address + "events") as response:
                stream = flow_events(response)
                assert [row["path"] for row in (await anext(stream))["rows"]] == ["/a"]
                put(it.ring, path="/b")
                it.server.changed()
                assert [row["path"] for row in (await anext(stream))["rows"]] == ["/b"]

    asyncio.run(run())


def test_a_stream_goes_on_where_the_browser_says():
    async def run():
        async with served() as it:
            put(it.ring, path="/a")
            put(it.ring, path="/b")
            async with it.client.get(it.address + "events", headers={"Last-Event-ID": "1"}) as response:
                assert [row["path"] for row in (await anext(flow_events(response)))["rows"]] == ["/b"]
            for odd in ("99", "-1", "x", "9" * 50):
                async with it.client.get(it.address + "events", headers={"Last-Event-ID": odd}) as response:
                    assert len((await anext(flow_events(response)))["rows"]) == 2, odd

    asyncio.run(run())


def test_the_board_is_told_when_it_changes():
    async def run():
        async with served() as it:
            it.board.add("flows orders")
            async with it.client.get(it.address + "events") as response:
                boards = (value async for name, value in events(response) if name == "board")
                assert [each["name"] for each in (await anext(boards))["sessions"]] == ["flows orders"]
                it.board.note("something")
                assert (await anext(boards))["notes"] == ["something"]

    asyncio.run(run())


def test_more_browsers_than_there_is_room_for_are_refused():
    async def run():
        async with served() as it, contextlib.AsyncExitStack() as stack:
            put(it.ring)
            for _ in range(STREAMS):
                response = await stack.enter_async_context(it.client.get(it.address + "events"))
                await anext(flow_events(response))
            async with it.client.get(it.address + "events") as response:
                assert response.status == 503

    asyncio.run(run())


def test_browsers_that_have_gone_make_room(monkeypatch):
    monkeypatch.setattr(page_server, "ALIVE", 10 * DEADLINE)

    async def run():
        async with served() as it:
            put(it.ring)
            for _ in range(STREAMS + 2):
                response = await it.client.get(it.address + "events")
                while response.status == 503:  # the one before is still being noticed
                    await asyncio.sleep(0.01)
                    response = await it.client.get(it.address + "events")
                await anext(flow_events(response))
                response.close()

    asyncio.run(run())


def test_requests_that_cannot_be_read_leave_no_word_in_the_terminal(caplog, capfd):
    async def run():
        async with served() as it:
            port = int(it.origin.rpartition(":")[2])
            for data in (
                b"\x16\x03\x01\x00\n",
                b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
                b"GET http://[ HTTP/1.1\r\n\r\n",
            ):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(data)
                await reader.read(65536)
                writer.close()

    asyncio.run(run())
    assert caplog.records == []
    assert capfd.readouterr().err == ""


def test_a_flow_is_served_whole():
    async def run():
        async with served() as it:
            put(it.ring, fields=(("x-dev", "<b>ada</b>"),))
            async with it.client.get(it.address + "flows/1") as response:
                assert (await response.json())["fields"] == [["x-dev", "<b>ada</b>"]]
                assert response.content_type == "application/json"
            async with it.client.get(it.address + "flows/2") as response:
                assert response.status == 404

    asyncio.run(run())


def test_flows_are_saved_in_their_order_without_those_that_are_gone():
    async def run():
        async with served() as it:
            put(it.ring)
            put(it.ring)
            async with it.post("har", {"ids": [7, 2, 1]}) as response:
                assert await response.json(content_type=None) == [1, 2]
                assert "flows.har" in response.headers["Content-Disposition"]
            for body in ({"ids": "1"}, {"ids": [1], "more": 1}, [], None):
                async with it.post("har", body) as response:
                    assert response.status == 400, body
            async with it.post("har", {"ids": [1] * page_server.BODY}) as response:
                assert response.status == 413

    asyncio.run(run())


def test_replays_say_what_came_or_why_not():
    async def replay(flows, to):
        if not to.startswith("http://"):
            raise RefusedError("not an address\x1b[31m")
        return {"text": f"{len(flows)} sent to {to}", "lines": []}

    async def run():
        async with served(replay=replay) as it:
            put(it.ring)
            async with it.post("replay", {"ids": [1], "to": "http://127.0.0.1:1"}) as response:
                assert (await response.json())["text"] == "1 sent to http://127.0.0.1:1"
            async with it.post("replay", {"ids": [1], "to": "file:///"}) as response:
                assert (response.status, await response.text()) == (422, "not an address\\x1b[31m\n")

    asyncio.run(run())


def test_a_port_that_is_taken_is_told():
    with bind(0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"cannot be served on port {port}: "):
            bind(port)
