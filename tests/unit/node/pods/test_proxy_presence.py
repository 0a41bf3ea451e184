"""When the proxy of a pod counts as gone."""

from __future__ import annotations

import asyncio

import pytest

from sidestep.aio.time_limit import time_limit
from sidestep.node.pods import proxy_presence
from sidestep.node.pods.proxy_presence import QUIET, RESTART_PATIENCE, ProxyPresence
from sidestep.node.proxies.supervisor import ProxyState

RUNNING, RESTARTING, FAILED, STOPPED = (
    ProxyState.RUNNING,
    ProxyState.RESTARTING,
    ProxyState.FAILED,
    ProxyState.STOPPED,
)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def presence_after(*states: ProxyState, later: float = 0.0, quiet: float = 0.0) -> tuple[bool, bool]:
    """(gone, absent) of a proxy that went through these states."""

    async def go() -> tuple[bool, bool]:
        clock = Clock()
        presence = ProxyPresence(now=clock, on_gone=lambda: None)
        for state in states:
            presence.changed(state)
        clock.now += later
        presence.stop()
        return presence.is_gone, bool(presence.absence(quiet=quiet))

    return asyncio.run(go())


@pytest.mark.parametrize(
    ("states", "later", "quiet", "gone", "absent"),
    [
        ((), 0.0, 0.0, False, True),
        ((RUNNING,), 0.0, 0.0, False, False),
        ((RUNNING,), 0.0, QUIET, False, True),
        ((RUNNING, RESTARTING), 0.0, 0.0, False, False),
        ((RUNNING, RESTARTING), RESTART_PATIENCE, 0.0, True, True),
        ((RUNNING, RESTARTING, RUNNING), RESTART_PATIENCE, 0.0, False, False),
        ((RUNNING, FAILED), 0.0, 0.0, True, True),
        ((RUNNING, FAILED, RUNNING), 0.0, 0.0, False, False),
        ((RUNNING, STOPPED), 0.0, 0.0, False, True),
    ],
)
def test_absence_by_state(states, later, quiet, gone, absent):
    assert presence_after(*states, later=later, quiet=quiet) == (gone, absent)


def test_the_patience_runs_from_the_first_end_of_a_series():
    async def go() -> None:
        clock = Clock()
        presence = ProxyPresence(now=clock, on_gone=lambda: None)
        assert not presence.changed(RUNNING)
        assert presence.changed(RESTARTING)
        clock.now += RESTART_PATIENCE
        assert not presence.changed(RESTARTING)
        assert presence.is_gone
        presence.stop()

    asyncio.run(go())


def test_the_target_is_told_once_that_the_proxy_is_gone(monkeypatch):
    monkeypatch.setattr(proxy_presence, "RESTART_PATIENCE", 0.01)

    async def go() -> int:
        told = asyncio.Event()
        calls = []

        def gone() -> None:
            calls.append(presence.absence(quiet=0.0))
            told.set()

        presence = ProxyPresence(now=asyncio.get_running_loop().time, on_gone=gone)
        presence.changed(RUNNING)
        presence.changed(RESTARTING)
        async with time_limit(5):
            await told.wait()
        presence.changed(RUNNING)
        presence.changed(RESTARTING)
        presence.changed(RUNNING)
        assert presence._timer is None
        return len(calls)

    assert asyncio.run(go()) == 1
