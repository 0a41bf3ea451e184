"""How long a capture lasts and how much it sends."""

import asyncio
import time

import pytest

from sidestep.model.intercept import Intercept, Kind, Snap, WorkloadRef
from sidestep.node.sessions import capture_bounds
from sidestep.node.sessions.capture_bounds import BoundsOfCaptures, CaptureBounds


def a_capture(uid="u", *, age=0.0, duration=60.0, max_bytes=10, capture=Snap.ALL):
    return Intercept(
        uid,
        "shop",
        uid,
        Kind.WIRETAP,
        WorkloadRef("orders"),
        "8443",
        created=time.time() - age,
        capture=capture,
        duration=duration,
        max_bytes=max_bytes,
    )


def run(body):
    asyncio.run(asyncio.wait_for(body(), 20))


def test_bytes_are_cut_where_they_end():
    async def body():
        bounds = CaptureBounds(a_capture())
        assert bounds.take(b"12345") == b"12345"
        assert bounds.reason == ""
        assert bounds.take(b"67890abc") == b"67890"
        assert await bounds.over() == "the capture has sent 10 bytes"
        assert bounds.take(b"more") == b""
        assert bounds.sent == 10

    run(body)


def test_the_end_of_a_stream_is_no_end_of_the_capture():
    async def body():
        bounds = CaptureBounds(a_capture())
        assert bounds.take(b"") == b""
        assert bounds.reason == ""

    run(body)


def test_time_counts_from_the_beginning():
    async def body():
        bounds = CaptureBounds(a_capture(duration=0.2))
        waiting = asyncio.create_task(bounds.over())
        done, _ = await asyncio.wait({waiting}, timeout=0.4)
        assert not done, "it has not begun"
        assert bounds.seconds == 0.0
        bounds.begin()
        bounds.begin()
        assert await waiting == "the capture has lasted 200ms"
        assert bounds.seconds >= 0.2
        assert bounds.take(b"late") == b""

    run(body)


@pytest.mark.parametrize(("age", "over"), [(0.0, False), (40.0, False), (61.0, True), (1e9, True), (-1e9, False)])
def test_it_does_not_begin_anew_for_ever(monkeypatch, age, over):
    """A daemon that starts anew finds an old resource; one from the future, by another clock, is as old as now."""
    monkeypatch.setattr(capture_bounds, "STARTUP", 30.0)

    async def body():
        bounds = CaptureBounds(a_capture(age=age, duration=30.0))
        waiting = asyncio.create_task(bounds.over())
        done, _ = await asyncio.wait({waiting}, timeout=0.2)
        assert bool(done) is over
        bounds.begin()
        assert bounds._until - asyncio.get_running_loop().time() <= 30.0
        waiting.cancel()

    run(body)


def test_a_session_that_comes_back_finds_its_bounds():
    async def body():
        bounds = BoundsOfCaptures(2)
        first = bounds.of(a_capture("a"))
        assert bounds.of(a_capture("a")) is first
        assert bounds.of(a_capture("x", capture=Snap.NOTHING)) is None
        bounds.of(a_capture("b"))
        bounds.of(a_capture("a"))
        bounds.of(a_capture("c"))
        assert bounds.take("b") is None, "the one that was served longest ago"
        assert bounds.take("a") is first
        assert bounds.take("a") is None

    run(body)
