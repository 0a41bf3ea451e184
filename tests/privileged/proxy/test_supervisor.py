"""Pod proxies that crash, hang, loop and drain, under the real zygote and sandbox."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Coroutine
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from sidestep.aio.channel import DeadlineError
from sidestep.aio.packets import ChannelClosed, sealed_memfd
from sidestep.aio.time_limit import time_limit
from sidestep.model.errors import ConfigurationError, SidestepError
from sidestep.node.proxies.backoff import Backoff
from sidestep.node.proxies.memory_cgroups import MemoryCgroups
from sidestep.node.proxies.supervisor import (
    CredentialSource,
    ProxyError,
    ProxyLimits,
    ProxyState,
    ProxySupervisor,
    SupervisorSettings,
    ZygoteSettings,
)
from sidestep.snapshots.ports import RuleSnapshot
from tests.harness.authority import Authority
from tests.privileged.proxy import stand_in
from tests.privileged.proxy.scene import (
    ROOT,
    SETTINGS,
    WORKER,
    Recorder,
    Scene,
    ask,
    children_of,
    descriptors_of,
    fresh_netns,
    netns_inode,
    open_descriptors,
    port,
    scene,
    supervised,
    text_of,
    unix_listener,
    until,
)

pytestmark = pytest.mark.privileged

RULE = RuleSnapshot("uid-1", "shop/orders", "intercept", (), divert_probes=False)


def memory_of(pid: int) -> bytes:
    """All that a process could read of its own."""
    parts = []
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in text_of(f"/proc/{pid}/maps").splitlines():
            words = line.split()
            if words[1].startswith("rw") and words[-1] not in ("[vvar]", "[vsyscall]"):
                begin, end = (int(word, 16) for word in words[0].split("-"))
                with contextlib.suppress(OSError):
                    parts.append(os.pread(memory.fileno(), end - begin, begin))
    return b"".join(parts)


def asynchronous(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test on an event loop of its own."""

    @wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        asyncio.run(test(*arguments, **named))

    return run


async def running_again(it: Scene, restarts: int = 1) -> None:
    await until(
        lambda: it.proxy.restarts >= restarts and it.proxy.state is ProxyState.RUNNING,
        within=10,
        what=f"restart {restarts}; states: {it.handler.states}; output: {it.output}",
    )


def replies(text: str) -> CredentialSource:
    async def source() -> int:
        return sealed_memfd("test", text.encode())

    return CredentialSource(source)


@asynchronous
async def test_a_proxy_runs_in_the_pods_namespace_and_sends_heartbeats():
    async with scene() as it:
        assert await it.run("result = os.getpid()") == it.proxy.pid
        assert netns_inode(it.proxy.pid) == os.fstat(it.netns_fd).st_ino
        await until(lambda: it.handler.beats >= 2, within=5, what="heartbeats")
        assert it.handler.named() == ["running"]


@pytest.mark.alone
@asynchronous
async def test_a_killed_proxy_is_replaced_within_milliseconds_and_no_connection_is_refused():
    async with scene() as it:
        await it.run("result = 1")
        old = it.proxy.pid
        gaps = []
        for _ in range(3):
            restarts = it.proxy.restarts
            os.kill(it.proxy.pid, signal.SIGKILL)
            began = time.monotonic()
            # Connections of the gap wait in the listener's queue for the successor.
            pids = await asyncio.gather(*(it.run("result = os.getpid()") for _ in range(20)))
            gaps.append(time.monotonic() - began)
            assert it.proxy.restarts == restarts + 1
            assert set(pids) == {it.proxy.pid}
        assert it.proxy.pid != old
        assert min(gaps) < 0.3, gaps
        assert it.handler.named()[:3] == ["running", "restarting", "running"]


@asynchronous
async def test_a_successor_is_told_everything_again():
    identity = Authority().issue("app.test")
    pem = identity.key + identity.chain
    reads = 0

    async def source() -> int:
        nonlocal reads
        reads += 1
        return sealed_memfd("test", pem)

    async with scene() as it:
        ports = (port(identity="id-1", rules=(RULE,)),)
        assert await it.proxy.apply({"id-1": CredentialSource(source)}, generation=7, ports=ports) == {}
        os.kill(it.proxy.pid, signal.SIGKILL)
        code = (
            "result = [proxy.configuration.generation, proxy.configuration.ports[0].identity, list(proxy.credentials)]"
        )
        assert await it.run(code) == [7, "id-1", ["id-1"]]
        assert reads == 2


@pytest.mark.alone
@asynchronous
async def test_a_stopped_proxy_is_killed_for_its_silence_and_replaced():
    async with scene() as it:
        os.kill(it.proxy.pid, signal.SIGSTOP)
        began = time.monotonic()
        await running_again(it)
        assert 2.5 < time.monotonic() - began < 5
        assert "no heartbeat" in it.handler.states[1][1]
        await it.run("result = 1")


@asynchronous
async def test_a_proxy_that_has_nothing_to_say_is_alive_as_long_as_it_counts():
    settings = replace(SETTINGS, limits=ProxyLimits(silence=0.8))
    async with scene(settings=settings) as it:
        pid = it.proxy.pid
        await it.run("proxy.talking = False")
        await asyncio.sleep(2)  # the silence is what is tested
        assert (it.proxy.pid, it.proxy.restarts) == (pid, 0)
        await it.run("proxy.beating = False")
        await running_again(it)
        assert it.proxy.restarts == 1


@asynchronous
async def test_a_proxy_that_lives_but_does_not_acknowledge_is_replaced():
    settings = replace(SETTINGS, limits=ProxyLimits(answer=0.5), apply_deadline=0.8)
    async with scene(settings=settings) as it:
        with pytest.raises(DeadlineError):
            await it.proxy.apply({}, generation=stand_in.MUTE, ports=())
        assert "no answer within 0.5 s" in it.handler.states[1][1]
        # The next desired state is told, and listeners are served again.
        with contextlib.suppress(DeadlineError):
            await it.proxy.apply({}, generation=1, ports=())
        await it.proxy.apply({}, generation=1, ports=())
        assert await it.run("result = proxy.configuration.generation") == 1


@asynchronous
async def test_a_crash_loop_is_reported_and_ends_when_its_cause_does():
    settings = replace(SETTINGS, backoff=Backoff(loop_pause=0.5))
    async with scene(settings=settings) as it:
        with pytest.raises(ChannelClosed, match="failed"):
            await it.proxy.apply({}, generation=stand_in.DEADLY, ports=())
        assert it.proxy.state is ProxyState.FAILED
        assert it.handler.named() == ["running", "restarting", "failed"]
        with pytest.raises(ChannelClosed, match="failed"):
            await it.proxy.apply({}, generation=2, ports=())
        await running_again(it)
        assert await it.run("result = proxy.configuration.generation") == 2
        # It crashes again before it has proven itself: at once a loop.
        os.kill(it.proxy.pid, signal.SIGKILL)
        await until(lambda: it.proxy.state is ProxyState.FAILED, within=5, what="the loop to be remembered")


@asynchronous
async def test_a_refused_configuration_is_an_error_and_not_a_crash():
    async with scene() as it:
        with pytest.raises(ProxyError, match="I would rather not"):
            await it.proxy.apply({}, generation=stand_in.REFUSED, ports=())
        assert it.proxy.state is ProxyState.RUNNING
        assert it.proxy.restarts == 0


@asynchronous
async def test_credentials_that_cannot_be_used_cost_their_port_the_interception_only():
    identity = Authority().issue("app.test")
    good = (identity.key + identity.chain).decode()

    async def unreadable() -> int:
        raise ConfigurationError("no such file", subject="annotation x")

    async def endless() -> int:
        await asyncio.Event().wait()
        raise AssertionError

    async with scene(settings=replace(SETTINGS, source_deadline=0.2)) as it:
        failures = await it.proxy.apply(
            {
                "good": replies(good),
                "garbage": replies("no pem"),
                "unreadable": CredentialSource(unreadable),
                "endless": CredentialSource(endless),
            },
            generation=1,
            ports=(
                port(1, identity="good"),
                port(2, identity="garbage"),
                port(3, identity="unreadable", upstream_trust="unknown"),
                port(4, identity="good", upstream_trust="endless"),
            ),
        )
        assert set(failures) == {"garbage", "unreadable", "unknown", "endless"}
        assert "does not load" in failures["garbage"]
        assert failures["unreadable"].endswith("no such file")
        told = await it.run("result = [[p.number, p.identity, p.upstream_trust] for p in proxy.configuration.ports]")
        assert told == [[1, "good", ""], [2, "", ""], [3, "", ""], [4, "", ""]]
        os.kill(it.proxy.pid, signal.SIGKILL)
        await running_again(it)
        assert set(it.handler.failures[0]) == set(failures)


@asynchronous
async def test_a_proxy_that_cannot_be_locked_up_does_not_start():
    with socket.socket() as not_a_netns:
        async with supervised() as (supervisor, output):
            before = open_descriptors()
            proxy = supervisor.proxy("shop/x", netns_fd=not_a_netns.fileno(), uid=0x7B000000, handler=Recorder())
            with pytest.raises(ProxyError, match=r"could not enter the pod: setns .* Invalid argument"):
                await proxy.start()
            await supervisor.remove(proxy)
            zygote = supervisor.zygote.pid
            await until(lambda: not children_of(zygote), within=5, what="the child to be reaped")
            assert open_descriptors() == before
            assert not [line for line in output if "proxy" in line]


@asynchronous
async def test_root_is_refused_as_a_user():
    with fresh_netns() as netns_fd:
        async with supervised() as (supervisor, _):
            proxy = supervisor.proxy("shop/x", netns_fd=netns_fd, uid=0, handler=Recorder())
            with pytest.raises(ProxyError, match="cannot run as user 0"):
                await proxy.start()


@asynchronous
async def test_a_broken_worker_is_a_crash_loop_whose_traceback_can_be_read():
    zygote = ZygoteSettings(worker="tests.privileged.proxy.stand_in:run_broken", path=ROOT)
    async with scene(zygote=zygote, listen=False) as it:
        await until(lambda: it.proxy.state is ProxyState.FAILED, within=10, what="the crash loop")
        assert any("ValueError: this worker is broken" in line for line in it.output)
        assert any("ended with status 1" in line for line in it.output)


@asynchronous
async def test_a_worker_that_cannot_be_imported_fails_the_start():
    output: list[str] = []
    with pytest.raises(SidestepError, match="the zygote ended before it was ready"):
        await ProxySupervisor.start(on_output=output.append, zygote=ZygoteSettings(worker="sidestep.nowhere:run"))
    await until(lambda: output, within=5, what="the reason")
    assert "cannot load sidestep.nowhere:run" in output[0]


@asynchronous
async def test_a_dead_zygote_is_replaced_and_its_proxies_live_on():
    async with scene() as it:
        old_zygote, old_proxy = it.supervisor.zygote.pid, it.proxy.pid
        os.kill(old_zygote, signal.SIGKILL)
        await until(
            lambda: it.supervisor.zygote.pid not in (None, old_zygote), within=10, what="the successor of the zygote"
        )
        assert await it.run("result = os.getpid()") == old_proxy
        assert it.proxy.restarts == 0
        # The orphan is watched and replaced as any other.
        os.kill(old_proxy, signal.SIGKILL)
        assert await it.run("result = os.getpid()") != old_proxy
        assert (os.getpid(), "Z") not in [(pid, state) for pid, state in children_of(os.getpid())]


@asynchronous
async def test_zygote_and_proxy_dying_together_are_both_replaced():
    async with scene() as it:
        os.kill(it.supervisor.zygote.pid, signal.SIGKILL)
        os.kill(it.proxy.pid, signal.SIGKILL)
        await running_again(it)
        assert await it.run("result = os.getpid()") == it.proxy.pid


@asynchronous
async def test_a_stream_is_opened_refused_and_given_up():
    async with scene(settings=replace(SETTINGS, open_deadline=0.3)) as it:
        await it.proxy.apply({}, generation=1, ports=(port(rules=(RULE,)),))
        ask_open = "proxy.send(messages.Open(0, {}, '{}', 8443, 'http/1.1', True, 'a.test', '10.0.0.1', 999))"
        await it.run(ask_open.format(1, "uid-1"))
        await until(lambda: it.handler.opened, within=5, what="the stream")
        it.handler.opened[0].sendall(b"from the handler")
        got = None
        while got is None:
            got = await it.run("result = proxy.streams[1].recv(100).decode() if 1 in proxy.streams else None")
        assert got == "from the handler"

        async def answer(stream: int, uid: str) -> str:
            await it.run(ask_open.format(stream, uid))
            async with time_limit(5):
                while True:
                    if reason := await it.run(f"result = proxy.streams.get({stream})"):
                        return reason

        it.handler.refuse = "the session is gone"
        assert await answer(2, "uid-1") == "refused"
        it.handler.refuse = ""
        await it.run(ask_open.format(3, "of another pod"))
        acks = {}
        while "the intercept is not on this pod any more" not in acks.values():
            acks = await it.run("result = proxy.acks")
        assert await it.run("result = 3 in proxy.streams") is False
        it.handler.stall = True
        assert await answer(4, "uid-1") == "refused"


@asynchronous
async def test_what_a_proxy_says_reaches_the_handler_but_not_about_other_pods():
    async with scene() as it:
        await it.proxy.apply({}, generation=1, ports=(port(rules=(RULE,)),))
        await it.run("""
line = lambda uid: messages.LoggedRequest(uid, 8443, '10.0.0.1', 1, 'GET', '/' + 'x' * 20_000, 'a', copied=False)
proxy.send(messages.Requests(0, (line('uid-1'), line('of another pod')), 3))
proxy.send(messages.Report(0, 8443, 'NoApp', 'text'))
proxy.send(messages.Probed(0, 8443, 'yes', 'no', '', False, b''))
proxy.send(messages.NoApp(0, 8443, 2))
""")
        await until(lambda: it.handler.no_apps, within=5, what="the messages")
        assert [line.uid for line in it.handler.requests[0].requests] == ["uid-1"]
        assert it.handler.requests[0].dropped == 3
        assert it.handler.reports[0].text == "text"
        assert it.handler.probed[0].tls == "yes"
        acks = {}
        while len(acks) < 4:
            acks = await it.run("result = proxy.acks")
        assert set(acks.values()) == {""}


@pytest.mark.parametrize(
    "code",
    [
        "proxy.channel._sock.send(b'\\xff garbage')",
        "proxy.channel._sock.send(b'x' * 100_000)",
        "proxy.channel._sock.send(b'')",
        "proxy.send(messages.Drain(0, 1.0))",
        "socket.send_fds(proxy.channel._sock, [b'\\x93\\xa3Ack\\x01\\xa0'], [2])",
        "socket.send_fds(proxy.channel._sock, [b'\\x93\\xa5Large\\x01\\x05'], [2])",
        "proxy.channel.close()",
    ],
)
@asynchronous
async def test_nonsense_on_the_control_channel_ends_the_proxy_and_nothing_else(code):
    async with scene() as it:
        with pytest.raises(OSError, match="closed"):
            await it.run(code + "\ntime.sleep(10)")
        await running_again(it)
        assert await it.run("result = os.getpid()") == it.proxy.pid


async def in_its_group(it: Scene, cgroups: MemoryCgroups) -> Path:
    """The group of the proxy, once it is in there."""
    group = cgroups.group(it.proxy.pid)

    def inside() -> bool:
        procs = group / "cgroup.procs"
        return procs.exists() and str(it.proxy.pid) in procs.read_text().split()

    await until(inside, within=5, what="the proxy to be in its group")
    return group


@pytest.mark.alone
@asynchronous
async def test_each_process_has_a_memory_cgroup_that_goes_with_it():
    cgroups = MemoryCgroups.find()
    left = cgroups.folder / "4194305-1"  # of a daemon that was killed: no process has such a number
    left.mkdir(parents=True)
    async with scene(settings=replace(SETTINGS, cgroups=cgroups)) as it:
        group = await in_its_group(it, cgroups)
        assert not left.exists()
        limit = group / ("memory.limit_in_bytes" if cgroups.version == 1 else "memory.max")
        assert int(limit.read_text()) == (1 << 30) + (1 << 29)
        os.kill(it.proxy.pid, signal.SIGKILL)
        await running_again(it)
        assert await in_its_group(it, cgroups) != group
        await until(lambda: not group.exists(), within=5, what="the group to be removed")
    assert not cgroups.folder.exists()


@asynchronous
async def test_a_group_that_cannot_be_made_costs_the_proxy_nothing(tmp_path):
    (tmp_path / "file").touch()
    cgroups = MemoryCgroups(tmp_path / "file", tmp_path, 1)
    async with scene(settings=replace(SETTINGS, cgroups=cgroups)) as it:
        assert await it.run("result = os.getpid()") == it.proxy.pid


@asynchronous
async def test_no_other_pods_name_is_in_the_memory_of_a_proxy():
    names = [f"secret-namespace-{number}/secret-pod-{number}" for number in range(3)]
    async with scene() as it, contextlib.AsyncExitStack() as stack:
        for number, name in enumerate(names):
            netns_fd = stack.enter_context(fresh_netns())
            other = it.supervisor.proxy(name, netns_fd=netns_fd, uid=0x7D000100 + number, handler=Recorder())
            await other.start()
        os.kill(it.proxy.pid, signal.SIGKILL)
        await running_again(it)  # forked by a zygote that has forked all of them
        for pid in (it.proxy.pid, it.supervisor.zygote.pid):
            memory = memory_of(pid)
            assert b"sidestep" in memory
            assert b"secret-pod" not in memory


@pytest.mark.alone
@asynchronous
async def test_what_a_proxy_writes_carries_its_pods_name_and_takes_nothing_from_the_others():
    async with scene() as it:
        with fresh_netns() as netns_fd, contextlib.closing(unix_listener()) as listener:
            other = it.supervisor.proxy("shop/other", netns_fd=netns_fd, uid=0x7D000002, handler=Recorder())
            await other.start()
            await other.listen(8443, "tcp", listener)
            used = time.thread_time()
            wrote = await it.run("""
end, result = time.monotonic() + 2, 0
while time.monotonic() < end:
    proxy.pulse.beat()
    try:
        result += os.write(2, b'\\n' * 65536)
    except BlockingIOError:
        time.sleep(0.001)
""")
            used = time.thread_time() - used
            assert used < 0.5
            assert wrote > 65536
            assert len(it.output) < 150
            assert all(line.startswith("shop/orders: ") for line in it.output)
            await ask(listener, "os.write(2, b'evil \\x1b[31m\\r\\x00\\n')")
            told = r"shop/other: evil \x1b[31m\r\x00"
            await until(lambda: told in it.output, within=5, what="the other's line")
            os.kill(it.proxy.pid, signal.SIGKILL)
            await running_again(it)
            assert any("lines were dropped" in line for line in it.output)


@asynchronous
async def test_a_drained_proxy_ends_and_is_not_replaced():
    async with scene() as it:
        pid = it.proxy.pid
        await it.proxy.drain(5)
        assert not _runs(pid)
        assert it.proxy.state is ProxyState.STOPPED
        assert it.handler.named() == ["running", "stopped"]
        with pytest.raises(ChannelClosed):
            await it.proxy.apply({}, generation=1, ports=())


@asynchronous
async def test_a_listener_that_could_not_be_given_is_forgotten_and_another_one_is_taken():
    settings = replace(SETTINGS, limits=ProxyLimits(silence=60), apply_deadline=0.5)
    async with scene(settings=settings) as it:
        os.kill(it.proxy.pid, signal.SIGSTOP)
        with contextlib.closing(unix_listener()) as lost, pytest.raises(DeadlineError):
            await it.proxy.listen(80, "tcp", lost)
        os.kill(it.proxy.pid, signal.SIGKILL)  # the next process is told all that is desired
        await running_again(it)
        with contextlib.closing(unix_listener()) as other:
            await it.proxy.listen(80, "tcp", other)
            assert await ask(other, "result = len(proxy.listeners)") == 2


@asynchronous
async def test_listeners_come_and_go():
    async with scene() as it:
        other = unix_listener()
        await it.proxy.listen(80, "tcp", other)
        assert await ask(other, "result = len(proxy.listeners)") == 2
        await it.proxy.unlisten(80, "tcp")
        await it.proxy.unlisten(80, "tcp")
        assert await it.run("result = [list(key) for key in proxy.listeners]") == [[8443, "tcp"]]
        other.close()
        os.kill(it.proxy.pid, signal.SIGKILL)
        assert await it.run("result = [list(key) for key in proxy.listeners]") == [[8443, "tcp"]]


@asynchronous
async def test_nothing_is_left_over():
    before = [pid for pid, _ in children_of(os.getpid())]
    async with scene() as it:
        await it.run("result = 1")
        await until(lambda: it.handler.beats > 1, within=5, what="heartbeats")
        descriptors = open_descriptors()
        for count in range(1, 6):
            os.kill(it.proxy.pid, signal.SIGKILL)
            it.proxy._workers[0]._history._recent.clear()
            await running_again(it, count)
            await it.proxy.apply({}, generation=100 + count, ports=(port(),))
        assert open_descriptors() == descriptors
        zygote = it.supervisor.zygote.pid
        await until(
            lambda: children_of(zygote) == [(it.proxy.pid, "S")] or children_of(zygote) == [(it.proxy.pid, "R")],
            within=5,
            what="the dead children to be reaped",
        )
        inherited = descriptors_of(zygote).values()
        assert len([name for name in inherited if name.startswith("socket:")]) == 1, descriptors_of(zygote)
    assert [pid for pid, _ in children_of(os.getpid()) if pid not in before] == []


def test_proxies_and_zygote_end_with_the_daemon():
    ours, theirs = os.pipe()
    daemon = os.fork()
    if daemon == 0:
        os.close(ours)
        asyncio.run(_a_daemon_that_reports_and_waits(theirs))
        os._exit(0)
    os.close(theirs)
    with open(ours, "rb") as pipe:
        pids = [int(word) for word in pipe.readline().split()]
        assert len(pids) == 2
        assert all(Path(f"/proc/{pid}").exists() for pid in pids)
        os.kill(daemon, signal.SIGKILL)
        os.waitpid(daemon, 0)
        deadline = time.monotonic() + 5
        while any(_runs(pid) for pid in pids):
            assert time.monotonic() < deadline, "the zygote or a proxy outlived the daemon"


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


async def _a_daemon_that_reports_and_waits(report: int) -> None:
    async with scene(zygote=ZygoteSettings(worker=WORKER, path=ROOT)) as it:
        os.write(report, f"{it.supervisor.zygote.pid} {it.proxy.pid}\n".encode())
        await asyncio.Event().wait()


@pytest.mark.alone
@asynchronous
async def test_many_proxies_start_quickly_and_are_small():
    with fresh_netns() as netns_fd:
        async with supervised() as (supervisor, _):
            began = time.monotonic()
            proxies = [
                supervisor.proxy(f"shop/p{n}", netns_fd=netns_fd, uid=0x7C000000 + n, handler=Recorder())
                for n in range(20)
            ]
            await asyncio.gather(*(proxy.start() for proxy in proxies))
            assert time.monotonic() - began < 3
            for proxy in proxies:
                await proxy.apply({}, generation=1, ports=(port(),))
            rollup = text_of(f"/proc/{proxies[0].pid}/smaps_rollup")
            pss = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
            assert pss <= 6 * 1024, f"{pss} KiB"


def test_settings_are_those_of_the_design():
    settings = SupervisorSettings()
    assert settings.limits.silence == 3.0
    assert settings.backoff == Backoff(first=0.01, longest=5.0, window=30.0, crashes=5)
