"""Watches against a real HTTP server: resume, bookmarks, 410, 403, an API server that goes away and comes back."""

import asyncio
import contextlib
from contextlib import asynccontextmanager

import pytest

from sidestep.aio.time_limit import time_limit
from sidestep.kube.api import Api
from sidestep.kube.errors import ApiError, UnreachableClusterError
from sidestep.kube.watch import Watch, WatchLimits
from tests.harness.fake_api import FakeApi, run
from tests.harness.waiting import SLACK

V1 = "/api/v1"
FAST = WatchLimits(page=2, duration=60.0, first_pause=0.01, last_pause=0.05, refused_pause=0.05)


class Seen:
    def __init__(self):
        self.there = {}
        self.lists = 0

    def replace(self, objects, /):
        self.lists += 1
        self.there = {each["metadata"]["name"]: each for each in objects}

    def apply(self, value, /):
        self.there[value["metadata"]["name"]] = value

    def remove(self, value, /):
        del self.there[value["metadata"]["name"]]


async def until(condition, *, within=10.0):
    async with time_limit(within * SLACK):
        while not condition():  # noqa: ASYNC110 - a condition of any kind, with a deadline
            await asyncio.sleep(0.01)


@asynccontextmanager
async def watching(api, *, limits=FAST, **options):
    options.setdefault("paths", ("/api/v1/pods",))
    seen = Seen()
    client = Api(api.access())
    watch = Watch(client, sink=seen, limits=limits, **options)
    task = asyncio.create_task(watch.run())
    try:
        yield watch, seen
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await client.aclose()
        await asyncio.sleep(0.01)


def pod(name, **spec):
    return {"metadata": {"name": name}, "spec": {"nodeName": "n1", **spec}}


def test_lists_in_pages_then_follows_changes():
    async def test(api):
        for number in range(5):
            await api.put(V1, "pods", pod(f"p{number}"))
        async with watching(api) as (watch, seen):
            await until(lambda: len(seen.there) == 5 and watch.connected)
            assert seen.lists == 1
            assert sum("limit=2" in each for each in api.requests) == 3
            await api.put(V1, "pods", pod("p5"))
            await api.put(V1, "pods", pod("p0", changed=True))
            await api.remove(V1, "pods", "default", "p1")
            await until(lambda: set(seen.there) == {"p0", "p2", "p3", "p4", "p5"})
            await until(lambda: seen.there["p0"]["spec"].get("changed"))
            assert seen.lists == 1

    run(test)


def test_a_broken_watch_resumes_where_it_was_without_listing():
    async def test(api):
        await api.put(V1, "pods", pod("a"))
        async with watching(api) as (watch, seen):
            await until(lambda: watch.connected and "a" in seen.there)
            api.cut()
            await api.put(V1, "pods", pod("b"))
            await until(lambda: "b" in seen.there)
            assert seen.lists == 1

    run(test)


def test_bookmarks_move_the_version_on():
    async def test(api):
        api.bookmarks = 0.05
        await api.put(V1, "pods", pod("a"))
        async with watching(api) as (watch, seen):
            await until(lambda: watch.connected)
            for number in range(3):
                await api.put(V1, "services", {"metadata": {"name": f"s{number}"}})
            version = api.version
            api.requests.clear()
            await asyncio.sleep(0.2)  # bookmarks come; nothing else does
            api.cut()
            await until(lambda: any(f"resourceVersion={version}" in each for each in api.requests))
            assert seen.lists == 1

    run(test)


def test_410_gone_lists_anew_and_forgets_what_is_gone():
    async def test(api):
        await api.put(V1, "pods", pod("a"))
        await api.put(V1, "pods", pod("b"))
        async with watching(api) as (watch, seen):
            await until(lambda: watch.connected)
            port = api.port
            await api.stop()
            await until(lambda: not watch.connected)
            await api.remove(V1, "pods", "default", "a")
            api.compact()
            assert set(seen.there) == {"a", "b"}, "what was known stays while nobody answers"
            api.port = port
            await api.start()
            await until(lambda: set(seen.there) == {"b"})
            assert seen.lists == 2
            assert watch.connected

    run(test)


def test_a_server_that_is_away_changes_nothing_until_it_is_back():
    async def test(api):
        await api.put(V1, "pods", pod("a"))
        async with watching(api) as (watch, seen):
            await until(lambda: watch.connected)
            await api.stop()
            await until(lambda: not watch.connected)
            assert watch.synced
            assert set(seen.there) == {"a"}
            await api.start()
            await api.put(V1, "pods", pod("b"))
            await until(lambda: "b" in seen.there)

    run(test)


def test_what_is_forbidden_is_a_problem_and_read_once_it_is_allowed():
    async def test(api):
        await api.put(V1, "pods", pod("a"))
        api.forbid("list", "pods")
        async with watching(api) as (watch, seen):
            await until(lambda: watch.synced)
            assert isinstance(watch.problem, ApiError)
            assert watch.problem.forbidden
            assert "cannot list" in str(watch.problem)
            assert seen.lists == 1
            assert seen.there == {}
            api.forbidden.clear()
            await until(lambda: "a" in seen.there)
            assert watch.problem is None

    run(test)


def test_an_older_version_is_taken_where_the_newer_is_unknown():
    async def test(api):
        old, new = "/apis/discovery.k8s.io/v1beta1/endpointslices", "/apis/discovery.k8s.io/v1/endpointslices"
        api.unknown.add(new)
        await api.put("/apis/discovery.k8s.io/v1beta1", "endpointslices", {"metadata": {"name": "s"}})
        async with watching(api, paths=(new, old)) as (watch, seen):
            await until(lambda: "s" in seen.there and watch.connected)
            assert watch.problem is None

    run(test)


def test_metadata_only():
    async def test(api):
        await api.put(V1, "pods", pod("a"))
        async with watching(api, metadata_only=True) as (_watch, seen):
            await until(lambda: "a" in seen.there)
            assert "spec" not in seen.there["a"]

    run(test)


def test_answers_that_are_none():
    async def test(api):
        del api

        async def answer(reader, writer):
            with contextlib.suppress(asyncio.IncompleteReadError):  # the client has given up
                await reader.readuntil(b"\r\n\r\n")
                writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n{"oops"')
                await writer.drain()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        fake = FakeApi()
        fake.port = server.sockets[0].getsockname()[1]
        async with watching(fake) as (watch, seen):
            await asyncio.sleep(0.1)
            assert not watch.synced
            assert seen.lists == 0
        server.close()

    run(test)


def test_nobody_there():
    async def test(api):
        await api.stop()
        client = Api(api.access())
        with pytest.raises(UnreachableClusterError, match="cannot be reached: connection refused"):
            await client.get("/api/v1/pods")
        await client.aclose()

    run(test)


def test_a_kept_connection_that_the_server_closed_is_replaced():
    async def test(api):
        client = Api(api.access())
        await api.put(V1, "pods", pod("a"))
        await client.get("/api/v1/namespaces/default/pods/a")
        api.cut()
        await asyncio.sleep(0.05)
        await client.get("/api/v1/namespaces/default/pods/a")
        with pytest.raises(ApiError) as caught:
            await client.get("/api/v1/namespaces/default/pods/b")
        assert (caught.value.status, caught.value.reason) == (404, "NotFound")
        await client.aclose()

    run(test)
