"""A pod proxy of several workers, whose processes stand-ins are: who is told what, and what the state is."""

from __future__ import annotations

import asyncio
import functools
import socket
from types import SimpleNamespace

import pytest

from sidestep.aio.packets import ChannelClosed
from sidestep.model.errors import KernelError
from sidestep.node.proxies.backoff import Backoff
from sidestep.node.proxies.desired import Acknowledged
from sidestep.node.proxies.pod_proxy import PodProxy, SupervisorSettings
from sidestep.node.proxies.proxy_handler import ProxyState
from sidestep.proxy.control import messages

SETTINGS = SupervisorSettings(workers=4, backoff=Backoff(first=0.001, crashes=3, loop_pause=60.0))


class Process:
    """A process that notes what it is told, and leaves when it is let go."""

    def __init__(self, worker: int, pid: int) -> None:
        self.worker = worker
        self.process = SimpleNamespace(pid=pid)
        self.began = 0.0
        self.quiet = 0.0
        self.told = Acknowledged()
        self.heard: list[messages.Message] = []
        self._end: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def tell(self, message, fd=None, *, doing):
        if self._end.done():
            raise ChannelClosed("gone")
        self.heard.append(message)

    async def ended(self):
        return await asyncio.shield(self._end)

    def kill(self, cause):
        if not self._end.done():
            self._end.set_result(cause)

    def all(self, kind):
        return [message for message in self.heard if isinstance(message, kind)]


class Owner:
    """The pod's owner."""

    def __init__(self) -> None:
        self.states: list[ProxyState] = []
        self.ended: list[int] = []

    def on_state(self, state, reason):
        self.states.append(state)

    def on_process_ended(self, worker, reason):
        self.ended.append(worker)

    def on_credentials(self, failures):
        raise AssertionError(failures)


class Scene:
    """A proxy that has started, and its processes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.owner = Owner()
        self.begun: list[Process] = []
        self.fails: set[int] = set()
        """Workers for which no process can be started."""

        async def begin(_proxy, number):
            if number in self.fails:
                raise KernelError("fork", 11)
            process = Process(number, 1000 + len(self.begun))
            self.begun.append(process)
            return process

        monkeypatch.setattr(PodProxy, "_begin", begin)
        self.proxy = PodProxy(None, SimpleNamespace(name="orders"), self.owner, SETTINGS)
        self._generation = 0

    async def apply(self, workers: int) -> None:
        self._generation += 1
        await self.proxy.apply({}, generation=self._generation, ports=(), workers=workers)

    def of(self, worker: int) -> Process:
        return [process for process in self.begun if process.worker == worker][-1]

    async def until(self, condition):
        for _ in range(20_000):
            if condition():
                return
            await asyncio.sleep(0.001)
        raise AssertionError(self.owner.states)


def asynchronous(test):
    """Run a test with a scene, in a loop of its own."""

    @functools.wraps(test)
    def run(monkeypatch):
        async def go():
            scene = Scene(monkeypatch)
            await scene.proxy.start()
            try:
                await test(scene)
            finally:
                await scene.proxy.aclose()

        asyncio.run(go())

    del run.__wrapped__
    return run


@asynchronous
async def test_all_have_the_listeners_of_tcp_and_the_first_one_every_other(scene):
    with socket.socket() as stream, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        await scene.proxy.listen(80, "tcp", stream)
        await scene.proxy.listen(53, "udp", datagrams)
        await scene.apply(3)
        heard = {n: {(m.port, m.transport) for m in scene.of(n).all(messages.Listen)} for n in range(3)}
    assert heard == {0: {(80, "tcp"), (53, "udp")}, 1: {(80, "tcp")}, 2: {(80, "tcp")}}
    assert [scene.of(n).all(messages.Configure)[-1].workers for n in range(3)] == [3, 3, 3]
    assert len(scene.proxy.pids) == 3


@asynchronous
async def test_more_than_the_node_has_are_not_started(scene):
    await scene.apply(16)
    assert len(scene.proxy.pids) == SETTINGS.workers


@asynchronous
async def test_one_that_ends_is_replaced_and_the_proxy_runs_on(scene):
    await scene.apply(2)
    scene.of(1).kill("killed")
    await scene.until(lambda: len(scene.begun) == 3 and len(scene.proxy.pids) == 2)
    assert scene.of(1).all(messages.Configure)[-1].generation == 1
    assert scene.owner.states == [ProxyState.RUNNING]
    assert scene.owner.ended == [1]
    assert scene.proxy.restarts == 1


@asynchronous
async def test_the_proxy_is_away_only_when_all_are(scene):
    await scene.apply(2)
    scene.fails = {0, 1}
    scene.of(0).kill("killed")
    await scene.until(lambda: scene.proxy.pids == (scene.of(1).process.pid,))
    await scene.apply(2)  # the other takes it
    assert scene.owner.states == [ProxyState.RUNNING]
    scene.of(1).kill("killed")
    await scene.until(lambda: scene.owner.states[-1] is ProxyState.FAILED)
    with pytest.raises(ChannelClosed):
        await scene.apply(2)


@asynchronous
async def test_another_that_cannot_be_started_does_not_harm_the_first(scene):
    scene.fails = {1}
    await scene.apply(2)
    assert scene.proxy.pids == (scene.of(0).process.pid,)
    assert scene.owner.states == [ProxyState.RUNNING]


@asynchronous
async def test_one_that_is_not_needed_leaves_and_its_part_goes_to_the_others(scene):
    with socket.socket() as stream:
        await scene.proxy.listen(80, "tcp", stream)
        await scene.apply(2)
        leaving = scene.of(1)
        await scene.apply(1)
        assert len(leaving.all(messages.Drain)) == 1
        assert leaving.all(messages.Configure)[-1].generation == 2  # its old connections follow
        await scene.apply(1)
        assert len(leaving.all(messages.Drain)) == 1
        assert len(leaving.all(messages.Listen)) == 1
        assert scene.of(0).all(messages.Configure)[-1].workers == 2
        await scene.apply(2)
        assert scene.begun[-1].worker == 2  # the number of the one that leaves is not used again
        leaving.kill("its connections have ended")
        await scene.until(lambda: scene.of(0).all(messages.Configure)[-1].workers == 2 and len(scene.proxy.pids) == 2)
        assert [process.worker for process in scene.begun] == [0, 1, 2]
    assert scene.owner.states == [ProxyState.RUNNING]
    assert scene.proxy.state is ProxyState.RUNNING


@asynchronous
async def test_one_that_cannot_be_started_leaves_at_once(scene):
    scene.fails = {1}
    await scene.apply(2)
    await scene.apply(1)
    scene.fails = set()
    assert scene.proxy.pids == (scene.of(0).process.pid,)


@asynchronous
async def test_draining_ends_all_and_starts_none(scene):
    await scene.apply(3)
    draining = asyncio.create_task(scene.proxy.drain(30.0))
    await scene.until(lambda: all(process.all(messages.Drain) for process in scene.begun))
    for process in scene.begun:
        process.kill("drained")
    await draining
    assert len(scene.begun) == 3
    assert scene.owner.states == [ProxyState.RUNNING, ProxyState.STOPPED]
