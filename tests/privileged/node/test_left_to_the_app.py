"""A proxy that cannot serve, under a policy that ignores failures: clients meet the app, and the time is counted.

`test_closing` has the same events under `failurePolicy: Fail`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

import pytest

from sidestep.model.condition import ConditionType
from sidestep.model.inspection import FailurePolicy
from sidestep.node.planning.inspection_times import Outcome
from sidestep.node.proxies.supervisor import ProxyLimits, ProxyState, SupervisorSettings
from tests.privileged.node.rig import PORT, QUICK
from tests.privileged.node.test_closing import comes_back, inspected, knocking, met, seconds, types
from tests.privileged.node.test_serving import WALL, idle_clients

pytestmark = pytest.mark.privileged


@contextlib.asynccontextmanager
async def crash_loop(space, some, target):
    while target.proxy_state is not ProxyState.FAILED:
        if (pid := target.proxy_pid) is not None:
            os.kill(pid, signal.SIGKILL)
            await some.until(lambda pid=pid: target.proxy_pid != pid)
        await asyncio.sleep(0)
    yield


@contextlib.asynccontextmanager
async def hanging(space, some, target):
    os.kill(target.proxy_pid, signal.SIGSTOP)
    yield


@contextlib.asynccontextmanager
async def without_room(space, some, target):
    with idle_clients(space, 80):
        yield


@contextlib.asynccontextmanager
async def firewall(space, some, target):
    space.pod.run("nft", WALL.format("iif lo drop"))
    with knocking(space, "/"):
        await some.until(lambda: not target.steered()[PORT])
    yield
    space.pod.run("nft", "delete table inet wall")


EVENTS = {
    "crash loop": (crash_loop, "no-proxy"),
    "a proxy that hangs": (hanging, "no-proxy"),
    "no room": (without_room, "hindered"),
    "an app that cannot be reached from inside": (firewall, "hindered"),
}


@pytest.mark.parametrize("event", EVENTS)
def test_a_port_whose_proxy_cannot_serve_is_left_to_the_app(program, event):
    happens, reason = EVENTS[event]
    settings = SupervisorSettings(limits=ProxyLimits(descriptors=160), backoff=QUICK.backoff)

    async def story():
        async with inspected(program, failure=FailurePolicy.IGNORE, settings=settings) as (space, some, target, app):
            async with happens(space, some, target):
                await some.until(lambda: not target.steered()[PORT], within=10.0)
                assert await met(space, path="/admin") == "app"
                assert await met(space, path="/admin", ip=space.ip6) == "app"
                assert ConditionType.PORT_CLOSED not in types(some)
                assert some.reconciler.closed(target.pod.key) == ()
            await some.until(lambda: target.steered()[PORT], within=30.0)
            app.connections.clear()
            await comes_back(some, space, target, app, within=30.0)
            assert seconds(some, target, Outcome.OPEN, reason) > 0

    asyncio.run(story())
