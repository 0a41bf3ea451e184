"""Records of inspection through a real tunnel: in order, as fast as they are read, bounded, all losses told."""

import asyncio
import json
import time

import pytest

from sidestep.aio.time_limit import time_limit
from sidestep.laptop.local_client import LocalClient
from sidestep.laptop.records import RecordHandler
from sidestep.laptop.session import Session
from sidestep.node.sessions import record_feed
from sidestep.protocols import eve
from sidestep.tunnel.messages import Lost, SessionSpec, State
from tests.harness.waiting import SLACK, until
from tests.integration.session.node import POD, intercepting
from tests.unit.node.records.made import alert

LINE = eve.encode(alert())


class Reader:
    """A session in this thread's event loop; `open` says whether it reads."""

    def __init__(self, node, *, is_open=True):
        self.lines = []
        self.lost = []
        self.active = asyncio.Event()
        self.open = asyncio.Event()
        if is_open:
            self.open.set()
        spec = SessionSpec(namespace="shop", workload="orders", port="8443", kind="wiretap", records="all")
        self.session = Session(
            client=LocalClient(node.path), spec=spec, handler=RecordHandler(self.take), observer=self
        )

    async def take(self, _record, line):
        await self.open.wait()
        self.lines.append(line)

    def registered(self, hello):
        pass

    def event(self, event):
        if isinstance(event, State):
            self.active.set()
        if isinstance(event, Lost):
            self.lost.append(event)

    def interrupted(self, reason):
        pass

    def handler_refused(self, opening, reason):
        pass


async def _until(condition, what, within=20.0):
    deadline = time.monotonic() + within * SLACK
    while not condition():
        assert time.monotonic() < deadline, what()
        await asyncio.sleep(0.02)


def feed(node):
    """The node's way to its only session."""
    return node.call(lambda: node.sessions.record_feed(node.sessions.intercepts()[0].uid))


def put(node, count, line=LINE):
    made = feed(node)
    node.call(lambda: [made.put(line, str(POD)) for _ in range(count)])


def run(main):
    async def running():
        reader, scene = await main()
        task = asyncio.create_task(reader.session.run())
        try:
            async with time_limit(20):
                await reader.active.wait()
            await scene()
        finally:
            reader.open.set()
            reader.session.stop()
            await task

    asyncio.run(running())


def test_records_arrive_in_order(node):
    async def main():
        reader = Reader(node)

        async def scene():
            made = feed(node)
            for number in range(200):
                line = eve.encode(alert(b"/%d" % number))
                node.call(lambda line=line: made.put(line, str(POD)))
            await _until(lambda: len(reader.lines) == 200, lambda: len(reader.lines))
            urls = [json.loads(line)["http"]["url"] for line in reader.lines]
            assert urls == [f"/{number}" for number in range(200)]
            assert reader.lost == []
            [view] = node.call(node.sessions.views)
            assert (view.kind, view.counters["records"], view.counters["records_lost"]) == ("inspection", 200, 0)

        return reader, scene

    run(main)


def test_a_reader_that_does_not_read_loses_its_own_and_is_told_how_many(node):
    async def main():
        reader = Reader(node, is_open=False)

        async def scene():
            made = feed(node)
            put_so_far = 0

            def losing():
                nonlocal put_so_far
                put(node, 100)
                put_so_far += 100
                return made.lost > 1000

            await _until(losing, lambda: made.lost)
            assert node.call(lambda: made._size) <= record_feed.WAITING
            reader.open.set()
            await _until(
                lambda: len(reader.lines) + sum(each.count for each in reader.lost) == put_so_far,
                lambda: (len(reader.lines), reader.lost, put_so_far),
            )
            assert {(each.pod, each.reason) for each in reader.lost} == {(str(POD), "reader")}

        return reader, scene

    run(main)


def test_all_readers_together_have_a_bound(node):
    async def main():
        reader = Reader(node, is_open=False)

        async def scene():
            made, waiting = feed(node), node.sessions.waiting_records
            waiting.most = 10 * len(LINE)

            def losing():
                put(node, 50)
                assert waiting.held <= waiting.most
                return made.lost > 0

            await _until(losing, lambda: made.lost)

        return reader, scene

    run(main)
    until(lambda: node.sessions.waiting_records.held == 0, within=10, what="the room to be given back")


def test_a_session_that_does_not_read_ends_in_time(node):
    async def main():
        reader = Reader(node, is_open=False)

        async def scene():
            made = feed(node)

            def losing():
                put(node, 100)
                return made.lost > 0

            await _until(losing, lambda: made.lost)
            [view] = node.call(node.sessions.views)
            began = time.monotonic()
            assert node.run(node.sessions.leave(view.namespace, view.name, by="root"))
            assert time.monotonic() - began < 15
            assert node.intercepts() == ()

        return reader, scene

    run(main)


@pytest.mark.parametrize("line", [b"{}\n", b"no json\n", b"x" * (eve.MAX_RECORD + 10)])
def test_what_is_no_record_ends_the_stream_and_not_the_session(node, line):
    async def main():
        reader = Reader(node)

        async def scene():
            made = feed(node)
            node.call(lambda: made.put(line, str(POD)))
            await _until(lambda: made._is_over, lambda: "the feed to end")
            assert reader.lines == []
            assert len(node.intercepts()) == 1

        return reader, scene

    run(main)


def test_a_session_that_wants_no_records_has_no_way_for_them(node):
    with intercepting(node, "orders", "--port", "9:8443"):
        assert feed(node) is None
