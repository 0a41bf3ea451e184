"""A pod proxy of several workers, whose processes stand-ins are: who is told what, and what the state is."""

from __future__ import annotations

import asyncio
import functools
import os
import socket
from types import SimpleNamespace

import pytest
from msgspec.structs import replace

from sidestep.aio.packets import ChannelClosed
from sidestep.config.proxy_workers import Workers
from sidestep.model.errors import KernelError
from sidestep.node.proxies.backoff import Backoff
from sidestep.node.proxies.desired import Acknowledged, CredentialSource
from sidestep.node.proxies.load import GROW, SHRINK
from sidestep.node.proxies.pod_proxy import LOOK, PodProxy, SupervisorSettings
from sidestep.node.proxies.proxy_handler import ProxyState
from sidestep.proxy.control import messages
from sidestep.snapshots.hindrance import Hindrance
from sidestep.snapshots.ports import PortSnapshot

SETTINGS = SupervisorSettings(workers=4, backoff=Backoff(first=0.001, crashes=3, loop_pause=60.0))
TRYING = replace(SETTINGS, backoff=replace(SETTINGS.backoff, loop_pause=0.01))
"""One whose crash loop ends soon."""


class Process:
    """A process that notes what it is told, and leaves when it is let go."""

    def __init__(self, worker: int, pid: int) -> None:
        self.worker = worker
        self.process = SimpleNamespace(pid=pid)
        self.began = 0.0
        self.quiet = 0.0
        self.part = 1
        self.told = Acknowledged()
        self.heard: list[messages.Message] = []
        self.answers = asyncio.Event()
        """Set: it answers what it is told."""
        self.answers.set()
        self._end: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def tell(self, message, fd=None, *, doing):
        if self._end.done():
            raise ChannelClosed("gone")
        self.heard.append(message)
        await self.answers.wait()

    def divide(self, processes):
        self.part = processes

    def watch(self, elapsed):
        pass

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
        self.failures: dict[str, str] = {}
        self.hindrances: tuple[Hindrance, ...] = ()

    def on_hindered(self, hindrances):
        self.hindrances = hindrances

    def on_state(self, state, reason):
        self.states.append(state)

    def on_process_ended(self, worker, reason):
        self.ended.append(worker)

    def on_credentials(self, failures):
        self.failures = failures


class Scene:
    """A proxy that has started, and its processes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, settings: SupervisorSettings) -> None:
        self.owner = Owner()
        self.begun: list[Process] = []
        self.fails: set[int] = set()
        """Workers for which no process can be started."""
        self.dead_on_arrival = False
        """The next process ends before it is told anything."""
        self.slow: dict[int, asyncio.Event] = {}
        """Workers whose process starts once this is set."""

        async def begin(_proxy, number):
            if number in self.slow:
                await self.slow[number].wait()
            if number in self.fails:
                raise KernelError("fork", 11)
            process = Process(number, 1000 + len(self.begun))
            if self.dead_on_arrival:
                self.dead_on_arrival = False
                self.proxy._dispatcher.received(process, messages.Hindered(0, (Hindrance("no-memory"),)))
                process.kill("out of memory")
            self.begun.append(process)
            return process

        monkeypatch.setattr(PodProxy, "_begin", begin)
        self.proxy = PodProxy(None, SimpleNamespace(name="orders"), self.owner, settings)
        self._generation = 0

    async def apply(self, workers: int | Workers, credentials=None, ports=()):
        self._generation += 1
        workers = Workers(workers) if isinstance(workers, int) else workers
        return await self.proxy.apply(credentials or {}, generation=self._generation, ports=ports, workers=workers)

    async def have(self, workers: int) -> None:
        """Have this number of processes that all run."""
        await self.apply(workers)
        await self.until(lambda: self.running == workers)

    @property
    def running(self) -> int:
        return sum(each.state is ProxyState.RUNNING for each in self.proxy._workers if not each.leaving)

    def of(self, worker: int) -> Process:
        return [process for process in self.begun if process.worker == worker][-1]

    async def until(self, condition):
        for _ in range(20_000):
            if condition():
                return
            await asyncio.sleep(0.001)
        raise AssertionError(self.owner.states)


def asynchronous(test, *, settings=SETTINGS):
    """Run a test with a scene, in a loop of its own."""

    @functools.wraps(test)
    def run(monkeypatch):
        async def go():
            scene = Scene(monkeypatch, settings)
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
        await scene.have(3)
        heard = {n: {(m.port, m.transport) for m in scene.of(n).all(messages.Listen)} for n in range(3)}
    assert heard == {0: {(80, "tcp"), (53, "udp")}, 1: {(80, "tcp")}, 2: {(80, "tcp")}}
    assert [scene.of(n).all(messages.Configure)[-1].workers for n in range(3)] == [3, 3, 3]
    assert len(scene.proxy.pids) == 3


AUTO = Workers(16, automatic=True)


@asynchronous
async def test_the_load_decides_if_it_is_to(scene):
    used = {0: 0.0}
    scene.proxy._use = SimpleNamespace(since_last=lambda pids: [used.get(pid - 1000, 0.0) for pid in pids])

    async def look(seconds):
        for _ in range(int(seconds / LOOK)):
            scene.proxy.watch(LOOK)
            await asyncio.sleep(0)

    await scene.apply(AUTO)
    await look(2 * SHRINK)
    assert len(scene.begun) == 1
    used[0] = 0.9
    await look(GROW)
    await scene.until(lambda: scene.running == 2)
    await scene.until(lambda: scene.of(0).all(messages.Configure)[-1].workers == 2)
    await scene.apply(AUTO)  # another configuration is no other number
    assert scene.running == 2
    used[0] = 0.1
    await look(SHRINK)
    await scene.until(lambda: scene.of(1).all(messages.Drain))
    assert scene.running == 1
    assert not scene.of(0).all(messages.Drain)


@asynchronous
async def test_a_number_takes_the_place_of_the_load_and_a_limit_holds(scene):
    scene.proxy._use = SimpleNamespace(since_last=lambda pids: [1.0 for _ in pids])

    async def look(seconds):
        for _ in range(seconds):
            scene.proxy.watch(LOOK)
            await asyncio.sleep(0.005)

    await scene.apply(Workers(2, automatic=True))
    await look(20)
    await scene.until(lambda: scene.running == 2)
    await look(20)
    assert len(scene.begun) == 2
    await scene.apply(1)
    await scene.until(lambda: scene.running == 1)
    await look(20)
    assert len(scene.begun) == 2


@asynchronous
async def test_more_than_the_node_has_are_not_started(scene):
    await scene.apply(16)
    await scene.until(lambda: scene.running == SETTINGS.workers)
    assert len(scene.proxy.pids) == SETTINGS.workers


@asynchronous
async def test_those_that_leave_count_and_those_that_are_missing_come_when_they_have_left(scene):
    for workers in (4, 1, 4, 1, 4):
        await scene.apply(workers)
        await scene.until(lambda: all(each.state is ProxyState.RUNNING for each in scene.proxy._workers))
    assert (scene.running, len(scene.proxy.pids)) == (2, 8)
    assert {process.part for process in scene.begun} == {8}
    scene.of(1).kill("its connections have ended")
    await scene.until(lambda: scene.running == 3)
    for process in scene.begun[2:]:
        if process.all(messages.Drain):
            process.kill("its connections have ended")
    await scene.until(lambda: scene.running == len(scene.proxy.pids) == 4)
    assert scene.of(0).part == 4
    assert scene.proxy.restarts == 0


@asynchronous
async def test_one_that_ends_is_replaced_and_the_proxy_runs_on(scene):
    await scene.have(2)
    scene.of(1).kill("killed")
    await scene.until(lambda: len(scene.begun) == 3 and len(scene.proxy.pids) == 2)
    assert scene.of(1).all(messages.Configure)[-1].generation == 1
    assert scene.owner.states == [ProxyState.RUNNING]
    assert scene.owner.ended == [1]
    assert scene.proxy.restarts == 1


@asynchronous
async def test_the_proxy_is_away_only_when_all_are(scene):
    await scene.have(2)
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
        await scene.have(2)
        leaving = scene.of(1)
        await scene.apply(1)
        assert [message.leave for message in leaving.all(messages.Drain)] == [True]
        assert leaving.all(messages.Configure)[-1].generation == 2  # its old connections follow
        await scene.apply(1)
        assert len(leaving.all(messages.Drain)) == 1
        assert len(leaving.all(messages.Listen)) == 1
        assert scene.of(0).all(messages.Configure)[-1].workers == 2
        await scene.have(2)
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
    await scene.until(lambda: scene.proxy._workers[1].state is ProxyState.FAILED)
    scene.fails = set()
    await scene.apply(1)
    await scene.until(lambda: len(scene.proxy._workers) == 1)
    await scene.until(lambda: scene.of(0).all(messages.Configure)[-1].workers == 1)
    assert [process.worker for process in scene.begun] == [0]


async def fail_first(scene):
    """Two workers, of which the first is in a crash loop."""
    await scene.have(2)
    scene.fails = {0}
    scene.of(0).kill("killed")
    await scene.until(lambda: scene.proxy._workers[0].state is ProxyState.FAILED)


@functools.partial(asynchronous, settings=TRYING)
async def test_the_last_that_serves_leaves_only_when_the_first_does(scene):
    with socket.socket() as stream, socket.socket() as another:
        await scene.proxy.listen(80, "tcp", stream)
        await fail_first(scene)
        other = scene.of(1)
        await scene.apply(1)
        await scene.proxy.listen(81, "tcp", another)
        assert other.all(messages.Drain) == []
        assert (other.all(messages.Configure)[-1].generation, len(other.all(messages.Listen))) == (2, 2)
        assert scene.proxy.state is ProxyState.RUNNING
        scene.fails = set()
        await scene.until(lambda: other.all(messages.Drain))
        first = scene.of(0)
        assert (first.all(messages.Configure)[0].generation, len(first.all(messages.Listen))) == (2, 2)
        assert scene.owner.states == [ProxyState.RUNNING]
        scene.fails = {0}
        first.kill("killed")  # the other one lives, and takes no connections any more
        await scene.until(lambda: scene.proxy.state is ProxyState.FAILED)
        with pytest.raises(ChannelClosed):
            await scene.apply(1)


@asynchronous
async def test_what_only_the_first_can_do_is_not_done_while_it_is_away(scene):
    await fail_first(scene)
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        with pytest.raises(ChannelClosed):
            await scene.proxy.listen(53, "udp", datagrams)
        await scene.apply(2)
        assert scene.of(1).all(messages.Listen) == []


@asynchronous
async def test_one_that_starts_slowly_holds_nobody_up_and_learns_what_changed_meanwhile(scene):
    scene.slow[1] = asyncio.Event()
    with socket.socket() as stream, socket.socket() as another:
        await scene.apply(2)
        await scene.proxy.listen(80, "tcp", stream)
        await scene.proxy.listen(81, "tcp", another)
        await scene.proxy.unlisten(80, "tcp")
        assert scene.proxy._workers[1].state is ProxyState.RESTARTING
        scene.slow[1].set()
        await scene.until(lambda: scene.running == 2)
        assert [message.port for message in scene.of(1).all(messages.Listen)] == [81]


@asynchronous
async def test_one_that_accepts_before_it_runs_has_each_change_before_it_counts(scene):
    with socket.socket() as stream:
        await scene.proxy.listen(80, "tcp", stream)
        scene.slow[1] = asyncio.Event()
        await scene.apply(2)
        scene.slow[1].set()
        await scene.until(lambda: len(scene.begun) == 2)
        other = scene.of(1)
        await scene.until(lambda: other.all(messages.Configure))
        other.answers.clear()
        await scene.until(lambda: other.all(messages.Listen))
        applying = asyncio.create_task(scene.apply(2))
        await scene.until(lambda: scene.of(0).all(messages.Configure)[-1].generation == 2)
        assert not applying.done()
        other.answers.set()
        await applying
        assert [message.generation for message in other.all(messages.Configure)] == [1, 2]
        await scene.until(lambda: scene.running == 2)


@functools.partial(asynchronous, settings=TRYING)
async def test_what_is_hindered_follows_who_serves(scene):
    """A full process, whether another one lives, and one that dies before it serves."""
    full = (Hindrance("no-room"),)

    def say(process, hindrances=full):
        scene.proxy._dispatcher.received(process, messages.Hindered(0, hindrances))

    await scene.have(2)
    say(scene.of(0))
    assert scene.owner.hindrances == ()
    scene.slow[1] = asyncio.Event()
    scene.of(1).kill("killed")
    await scene.until(lambda: scene.owner.hindrances == full)
    scene.slow[1].set()
    await scene.until(lambda: scene.running == 2)
    assert scene.owner.hindrances == ()
    scene.slow[1].clear()
    scene.of(1).kill("killed")
    await scene.until(lambda: scene.owner.hindrances == full)
    scene.dead_on_arrival = True
    scene.slow[1].set()
    await scene.until(lambda: not scene.dead_on_arrival)
    await scene.until(lambda: scene.running == 2)
    assert scene.owner.ended == [1, 1, 1]
    say(scene.of(0), (Hindrance("no-memory"),))
    assert scene.owner.hindrances == ()
    say(scene.of(0), ())
    say(scene.of(1))
    await scene.apply(1)
    say(scene.of(1))
    assert scene.owner.hindrances == ()


@asynchronous
async def test_credentials_that_any_cannot_use_are_named(scene):
    await scene.have(2)
    read = []

    async def source():
        read.append(None)
        if len(read) == 2:
            raise KernelError("read", 5)
        return os.memfd_create("credential")

    port = PortSnapshot(80, "tcp", "auto", "never", (), identity="identity:a")
    failures = await scene.apply(2, {"identity:a": CredentialSource(source)}, (port,))
    assert list(failures) == ["identity:a"]
    assert len(read) == 2
    scene.of(0).kill("killed")  # whichever failed, the next of it does not
    await scene.until(lambda: scene.running == 2 and len(read) == 3)
    scene.of(1).kill("killed")
    await scene.until(lambda: scene.running == 2 and len(read) == 4)
    assert scene.owner.failures == {}


@asynchronous
async def test_draining_ends_all_and_starts_none(scene):
    await scene.have(3)
    draining = asyncio.create_task(scene.proxy.drain(30.0))
    await scene.until(lambda: all(process.all(messages.Drain) for process in scene.begun))
    for process in scene.begun:
        process.kill("drained")
    await draining
    assert len(scene.begun) == 3
    assert scene.owner.states == [ProxyState.RUNNING, ProxyState.STOPPED]
