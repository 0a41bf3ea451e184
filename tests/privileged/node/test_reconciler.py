import asyncio
import contextlib
import errno
import os
import pkgutil
import resource
import signal
import time
from ipaddress import ip_address
from itertools import pairwise

import pytest
from msgspec.structs import replace

from sidestep.model.condition import ConditionType
from sidestep.model.errors import KernelError
from sidestep.model.pod import Family, Location, Transport
from sidestep.node.pods import reconciler
from sidestep.node.proxies.supervisor import ProxyState
from sidestep.steering import CompiledProgram
from tests.harness import kernel
from tests.harness.namespaces import pod_namespace, run
from tests.harness.peers import Server, http_app
from tests.privileged.node.rig import PORT, QUICK, ask, intercept, moved, pod_of, rig

pytestmark = pytest.mark.privileged


def serving(space, address=None):
    return Server(http_app, netns=space.pod, address=address or space.ip, port=PORT)


async def answers(space, **fields):
    return await asyncio.to_thread(ask, space, **fields)


@contextlib.asynccontextmanager
async def steered(program):
    """A pod with an app, one port of it steered; yields (namespace, rig, key of the pod)."""
    with pod_namespace() as space, serving(space):
        async with rig(program) as some:
            yield space, some, await steer(some, space)


async def steer(some, space):
    """Have one port of the pod steered; returns the pod's key."""
    key = some.add(pod_of(space))
    some.intercepts = [intercept()]
    some.plan()
    await some.until(lambda: some.steered(key))
    return key


def types(some):
    return {each.type for each in some.conditions.all()}


def test_a_port_is_steered_while_an_app_listens_and_the_app_answers(program):
    async def story():
        with pod_namespace() as space:
            async with rig(program) as some:
                key = some.add(pod_of(space))
                some.intercepts = [intercept()]
                some.plan()
                await some.until(lambda: ConditionType.NO_APP in types(some))
                assert not some.steered(key)
                with pytest.raises(ConnectionRefusedError):
                    await answers(space)
                with serving(space) as app:
                    await some.until(lambda: some.steered(key), within=1.0)
                    assert some.target(key).steered() == {PORT: {Family.IPV4}}
                    assert types(some) == set()
                    assert await answers(space) == "app"
                    await some.until(lambda: some.target(key).seen, within=2.0)
                    app.close_listener()
                    await some.until(lambda: not some.steered(key), within=1.0)
                    with pytest.raises(ConnectionRefusedError):
                        await answers(space)

    asyncio.run(story())


@pytest.mark.alone
def test_a_refused_dial_unsteers_at_once(program):
    async def story():
        with pod_namespace() as space:
            async with rig(program) as some:
                key = some.add(pod_of(space))
                some.intercepts = [intercept()]
                some.plan()
                with serving(space) as app:
                    await some.until(lambda: some.steered(key))
                    app.close_listener()
                    begun = time.monotonic()
                    try:
                        await answers(space)
                    except (OSError, Exception):  # noqa: BLE001 - how this one client fails is not the question here
                        pass
                    await some.until(lambda: not some.steered(key), within=0.45)
                    assert time.monotonic() - begun < 0.45

    asyncio.run(story())


def test_both_families_of_a_wildcard_app_are_steered(program):
    async def story():
        with pod_namespace() as space, Server(http_app, netns=space.pod, address="::", port=PORT, dual_stack=True):
            async with rig(program) as some:
                key = some.add(pod_of(space, stated=False))
                some.intercepts = [intercept()]
                some.plan()
                await some.until(lambda: some.steered(key))
                assert some.target(key).steered() == {PORT: {Family.IPV4, Family.IPV6}}
                assert await answers(space, ip=space.ip) == "app"
                assert await answers(space, ip=space.ip6) == "app"
                assert some.target(key).expected() == {
                    (PORT, Transport.TCP, Family.IPV4),
                    (PORT, Transport.TCP, Family.IPV6),
                }

    asyncio.run(story())


def test_a_whole_port_is_steered_without_an_app(program):
    async def story():
        with pod_namespace(ipv6=False) as space:
            async with rig(program) as some:
                key = some.add(pod_of(space))
                some.intercepts = [intercept(whole=True)]
                some.plan()
                await some.until(lambda: some.steered(key))

    asyncio.run(story())


def test_without_an_intercept_nothing_is_left_and_nobody_is_reset(program):
    async def story():
        async with steered(program) as (space, some, _):
            before = kernel.steering(space.pod)
            assert len(before.links) == 1
            served = []

            async def knock():
                for _ in range(60):
                    served.append(await answers(space))  # noqa: PERF401 - looked at while it grows

            knocking = [asyncio.ensure_future(knock()) for _ in range(4)]
            await some.until(lambda: len(served) > 20)
            some.intercepts = []
            some.plan()
            await asyncio.gather(*knocking)
            assert served == ["app"] * 240
            await some.until(lambda: not some.reconciler._draining)
            assert some.reconciler._workers == {}
            assert len(some.reconciler._uids) == 0
            assert before.left() == []
            assert space.pod.processes() == frozenset()
            assert some.conditions.all() == ()

    asyncio.run(story())


def test_a_pod_can_be_a_target_again_while_its_old_proxy_drains(program):
    async def story():
        from tests.harness.peers import Client

        async with steered(program) as (space, some, key):
            client = await asyncio.to_thread(lambda: Client(space.ip, PORT, netns=space.client))
            with client:
                client.send(b"GET /")
                await some.until(lambda: some.target(key).connections)
                some.intercepts = []
                some.plan()
                await some.until(lambda: some.reconciler.target(key) is None)
                some.intercepts = [intercept()]
                some.plan()
                await some.until(lambda: some.steered(key))
                assert some.reconciler._draining
                assert await answers(space) == "app"
                client.send(b" HTTP/1.1\r\nHost: a\r\n\r\n")
                assert (await asyncio.to_thread(client.reader.message)).header("x-served-by") == "app"

    asyncio.run(story())


def test_a_namespace_that_is_gone_is_released_within_a_second(program):
    async def story():
        with pod_namespace() as space, serving(space) as app:
            async with rig(program) as some:
                await steer(some, space)
                programs = kernel.steering(space.pod)
                app.stop()
                app.close_listener()
                space.delete_pod()
                await some.until(lambda: not space.peer_exists(), within=1.0)
                await some.until(lambda: not programs.left(), within=1.0)
                await some.until(lambda: ConditionType.NETNS_UNAVAILABLE in types(some))
                assert "no such network namespace" in some.texts()

    asyncio.run(story())


def test_a_namespace_replaced_under_the_same_path_is_followed(program):
    async def story():
        with pod_namespace() as space, pod_namespace() as other, serving(other):
            async with rig(program) as some:
                key = some.add(pod_of(space, stated=False))
                some.intercepts = [intercept(whole=True)]
                some.plan()
                await some.until(lambda: some.steered(key))
                first = some.target(key)
                space.delete_pod()
                run("touch", space.pod.path)
                run("mount", "--bind", other.pod.path, space.pod.path)
                await some.until(lambda: some.steered(key) and some.target(key) is not first)
                assert some.target(key).netns.id.inode == other.pod.inode

    asyncio.run(story())


@pytest.mark.parametrize(
    ("path", "ips", "kind", "text"),
    [
        ("/proc/self/ns/net", (), ConditionType.POD_REFUSED, "host's own network namespace"),
        ("/run/netns/sdG-none", (), ConditionType.NETNS_UNAVAILABLE, "no such network namespace"),
        ("/etc/passwd", (), ConditionType.NETNS_UNAVAILABLE, "is not a network namespace"),
        (None, ("192.0.2.9",), ConditionType.POD_REFUSED, "none of the pod's addresses (192.0.2.9)"),
    ],
)
def test_what_is_not_the_pods_namespace_is_refused_and_nothing_is_left(program, path, ips, kind, text):
    async def story():
        with pod_namespace() as space:
            async with rig(program) as some:
                pod = pod_of(space)
                if path is not None:
                    pod = moved(pod, path)
                before = set(os.listdir("/proc/self/fd"))
                some.add(replace(pod, ips=tuple(ip_address(each) for each in ips)))
                some.intercepts = [intercept()]
                some.plan()
                await some.until(lambda: kind in types(some))
                assert text in some.texts()
                assert kernel.steering(space.pod).links == frozenset()
                some.intercepts = []
                some.plan()
                await some.until(lambda: some.conditions.all() == () and not some.reconciler._workers)
                assert set(os.listdir("/proc/self/fd")) == before

    asyncio.run(story())


def test_a_failed_attachment_leaves_nothing(program):
    async def story():
        with pod_namespace() as space:
            broken = CompiledProgram(instructions=program.instructions[:16], maps=program.maps)
            async with rig(broken) as some:
                before = set(os.listdir("/proc/self/fd"))
                some.add(pod_of(space))
                some.intercepts = [intercept()]
                some.plan()
                await some.until(lambda: types(some))
                some.intercepts = []
                some.plan()
                await some.until(lambda: not some.reconciler._workers)
                assert space.pod.processes() == frozenset()
                assert set(os.listdir("/proc/self/fd")) == before

    asyncio.run(story())


def test_running_out_of_descriptors_at_any_step_is_a_condition_and_leaves_nothing(program):
    """Every step of making a target takes one or two: the limit is set to fail at each of them in turn."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def story():
        with pod_namespace() as space, serving(space):
            async with rig(program) as some:
                before = len(os.listdir("/proc/self/fd"))
                some.add(pod_of(space))
                alone, spare = space.pod.processes(), 0
                while True:
                    some.intercepts = [intercept()]
                    free = [number for number in range(1000) if str(number) not in os.listdir("/proc/self/fd")]
                    resource.setrlimit(resource.RLIMIT_NOFILE, (free[spare], hard))
                    try:
                        some.plan()
                        await some.until(lambda: types(some) or some.reconciler.targets(), within=10.0)
                    finally:
                        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                    if some.reconciler.targets() and not types(some):
                        break
                    some.intercepts = []
                    some.plan()
                    await some.until(lambda: not some.reconciler._workers, within=10.0)
                    await some.until(lambda: space.pod.processes() == alone)
                    # A pidfd that cannot be received costs the zygote its channel: another one takes its place.
                    await some.until(lambda: len(os.listdir("/proc/self/fd")) == before, within=20.0)
                    spare += 1
                assert spare > 5

    asyncio.run(story())


def test_two_pods_of_one_namespace_are_not_both_targets(program):
    async def story():
        with pod_namespace() as space, serving(space):
            async with rig(program) as some:
                first, second = some.add(pod_of(space)), some.add(pod_of(space, "orders-2"))
                some.intercepts = [intercept(), intercept(name="orders-2", uid="u2")]
                some.plan()
                await some.until(some.conditions.all)
                await some.until(lambda: some.steered(first) or some.steered(second))
                assert some.steered(first) != some.steered(second)
                assert "is a target already" in some.texts()

    asyncio.run(story())


def test_the_second_pod_of_a_namespace_costs_no_proxy_and_takes_over_when_the_first_leaves(program, monkeypatch):
    async def story():
        spawned = []
        async with steered(program) as (space, some, first):
            spawn = some.supervisor.zygote.spawn
            monkeypatch.setattr(some.supervisor.zygote, "spawn", lambda *words: spawned.append(words) or spawn(*words))
            second = some.add(pod_of(space, "orders-2"))
            some.intercepts.append(intercept(name="orders-2", uid="u2"))
            some.plan()
            await some.until(lambda: "is a target already" in some.texts())
            for _ in range(20):  # whatever wakes its task, nothing is made for it before its time
                some.reconciler._changed(second)
                await asyncio.sleep(0.01)
            assert spawned == []
            assert some.steered(first)
            del some.pods[first]
            some.plan()
            await some.until(lambda: some.steered(second), within=10.0)
            assert types(some) == set()

    asyncio.run(story())


@pytest.mark.parametrize(
    "step",
    [
        "sidestep.node.pods.target.Steering.attach",
        "sidestep.node.pods.target.Target._attach_client_addresses",
        "sidestep.node.proxies.pod_proxy.PodProxy.start",
        "sidestep.node.proxies.pod_proxy.PodProxy.apply",
        "sidestep.node.pods.stream_ports.tcp_listener",
        "sidestep.node.proxies.pod_proxy.PodProxy.listen",
        "sidestep.node.pods.stream_ports.StreamPorts.apply",
        "sidestep.node.pods.target.DatagramPorts.apply",
    ],
)
def test_whatever_step_fails_is_tried_again_with_growing_pauses(program, monkeypatch, step):
    """A step that fails makes the target say that it has changed: that is no reason to try again at once."""
    module, name = step.rpartition(".")[::2]
    owner = pkgutil.resolve_name(module)
    real, tries = getattr(owner, name), []

    def fails(*_words, **_named):
        tries.append(time.monotonic())
        raise KernelError(name, errno.ENOMEM)

    async def story():
        with pod_namespace() as space, serving(space):
            async with rig(program) as some:
                monkeypatch.setattr(owner, name, fails)
                key = some.add(pod_of(space))
                some.intercepts = [intercept()]
                some.plan()
                await some.until(lambda: len(tries) == 1, within=10.0)
                while len(tries) < 4:
                    some.reconciler._changed(key)
                    await asyncio.sleep(0.01)
                pauses = [later - earlier for earlier, later in pairwise(tries)]
                for least, pause in zip((0.1, 0.2, 0.4), pauses, strict=True):
                    assert pause >= least * 0.9, pauses
                assert types(some)
                monkeypatch.setattr(owner, name, real)
                await some.until(lambda: some.steered(key) and types(some) == set(), within=10.0)

    asyncio.run(story())


def test_steering_that_is_lost_again_and_again_is_made_anew_with_growing_pauses(program):
    async def story():
        async with steered(program) as (space, some, key):
            lost = []
            while len(lost) < 4:
                some.target(key).detach()
                lost.append(time.monotonic())
                await some.until(lambda: not some.steered(key))
                await some.until(lambda: some.steered(key), within=10.0)
            pauses = [later - earlier for earlier, later in pairwise(lost)]
            for least, pause in zip((0.1, 0.2, 0.4), pauses, strict=True):
                assert pause >= least * 0.9, pauses
            assert await answers(space) == "app"

    asyncio.run(story())


def test_a_killed_proxy_is_replaced_and_the_port_stays_steered(program):
    async def story():
        async with steered(program) as (space, some, key):
            pid = some.target(key).proxy_pid
            os.kill(pid, signal.SIGKILL)
            assert await answers(space) == "app"
            assert some.steered(key)
            assert some.target(key).proxy_pid not in {None, pid}

    asyncio.run(story())


def test_a_crash_loop_leaves_the_port_to_the_app_and_ends_by_itself(program):
    async def story():
        with pod_namespace() as space, serving(space):
            async with rig(program, settings=QUICK) as some:
                key = some.add(pod_of(space))
                some.intercepts = [intercept()]
                some.plan()
                await some.until(lambda: some.steered(key))
                target = some.target(key)
                while target.proxy_state is not ProxyState.FAILED:
                    if (pid := target.proxy_pid) is not None:
                        os.kill(pid, signal.SIGKILL)
                        await some.until(lambda pid=pid: target.proxy_pid != pid)
                    await asyncio.sleep(0)
                assert not some.steered(key)
                assert ConditionType.PROXY_CRASH_LOOP in types(some)
                assert await answers(space) == "app"
                await some.until(lambda: some.steered(key))
                assert types(some) == set()
                assert await answers(space) == "app"

    asyncio.run(story())


def test_a_bug_in_the_keeping_of_a_proxy_costs_its_pod_a_moment(program, monkeypatch):
    async def bug():
        raise ZeroDivisionError

    async def story():
        monkeypatch.setattr("sidestep.node.pods.reconciler.LAST_RETRY", 0.3)
        reported = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: reported.append(context["exception"]))
        async with steered(program) as (space, some, key):
            broken = some.target(key)
            broken._proxy._tasks.start(bug(), name="bug")
            await some.until(lambda: not some.steered(key))
            assert await answers(space) == "app"
            await some.until(lambda: some.steered(key))
            assert some.target(key) is not broken
            assert types(some) == set()
            assert await answers(space) == "app"
            assert [type(each) for each in reported] == [ZeroDivisionError]

    asyncio.run(story())


def test_a_stopped_proxy_is_replaced_and_meanwhile_the_app_is_served(program):
    async def story():
        async with steered(program) as (space, some, key):
            os.kill(some.target(key).proxy_pid, signal.SIGSTOP)
            assert await answers(space) == "app"

    asyncio.run(story())


def test_the_audit_puts_drift_right_and_tells_it(program):
    async def story():
        async with steered(program) as (_, some, key):
            some.audit.once()
            assert some.audit.repaired == 0
            target = some.target(key)
            target._steering.unsteer(PORT, Transport.TCP, Family.IPV4)
            target._steering.steer(9999, Transport.TCP, Family.IPV4, target._streams._ports[PORT].listener.fileno())
            some.audit.once()
            assert some.audit.repaired == 2
            assert target._steering.entries() == target.expected() == {(PORT, Transport.TCP, Family.IPV4)}
            assert types(some) == {ConditionType.DRIFT_REPAIRED}
            some.audit.once()
            assert types(some) == set()

    asyncio.run(story())


def test_a_lost_link_makes_the_target_anew(program):
    async def story():
        from sidestep.steering import bpf

        async with steered(program) as (space, some, key):
            first = some.target(key)
            bpf.link_detach(first._steering._link)
            assert await answers(space) == "app"
            some.audit.once()
            await some.until(lambda: some.steered(key) and some.target(key) is not first)
            assert await answers(space) == "app"

    asyncio.run(story())


def test_closing_leaves_nothing(program):
    async def story():
        with pod_namespace() as space, serving(space):
            async with rig(program) as some:
                await steer(some, space)
                programs = kernel.steering(space.pod)
            assert programs.left() == []
            assert space.pod.processes() == frozenset()
            assert await answers(space) == "app"

    asyncio.run(story())


def test_a_pod_whose_processes_are_not_there_is_a_problem_after_a_while_only(program, monkeypatch):
    """Where they are looked for, that is: a pod that starts has none yet, and one that leaves has none any more."""
    monkeypatch.setattr(reconciler, "ABSENT", 1.0)

    async def story():
        with pod_namespace() as space, serving(space):
            async with rig(program) as some:
                pod = replace(pod_of(space), location=Location(searched=True))
                key = some.add(pod)
                some.intercepts = [intercept()]
                begun = time.monotonic()
                some.plan()
                await some.until(lambda: types(some))
                assert time.monotonic() - begun >= 1.0
                assert types(some) == {ConditionType.NETNS_UNAVAILABLE}
                assert some.reconciler.problem(key) == "none of its processes is found on this node"
                some.add(replace(pod, leaving=True))
                some.plan()
                await some.until(lambda: not types(some))
                some.add(replace(pod, location=Location(netns=str(space.pod.path), searched=True)))
                some.plan()
                await some.until(lambda: some.steered(key))

    asyncio.run(story())
