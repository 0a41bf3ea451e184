"""A proxy that lives but cannot serve, or dies where nobody looks: the app serves, nobody waits, and all comes back."""

import asyncio
import contextlib
import os
import signal
import socket
import time

import pytest

from sidestep.aio.time_limit import time_limit
from sidestep.model.condition import ConditionType
from sidestep.model.pod import Family, Transport
from sidestep.netns import Netns, accept_queue, cookie, tcp_listener
from sidestep.node.proxies.supervisor import ProxyLimits, ProxyState, SupervisorSettings
from tests.harness.namespaces import pod_namespace
from tests.harness.peers import Client, Server, http_app
from tests.harness.processes import cpu_seconds
from tests.privileged.node.rig import PORT, QUICK, ask, intercept, pod_of, rig

pytestmark = pytest.mark.privileged

HANG = 3.0
"""Seconds that are a hang, on a machine with much else to do; without one a client waits for at most 1.5."""


@contextlib.asynccontextmanager
async def steered(program, *, descriptors=None, **settings):
    """A pod with an app, one port of it steered; yields (namespace, rig, target). The proxy has so many descriptors."""
    if descriptors is not None:
        settings["settings"] = SupervisorSettings(limits=ProxyLimits(descriptors=descriptors))
    with pod_namespace() as space, Server(http_app, netns=space.pod, address=space.ip, port=PORT):
        async with rig(program, **settings) as some:
            key = some.add(pod_of(space))
            some.intercepts = [intercept()]
            some.plan()
            await some.until(lambda: some.steered(key))
            yield space, some, some.target(key)


async def answered(space):
    """Ask until somebody answers, as clients do that are reset; what the slowest try took."""
    slowest = 0.0
    async with time_limit(20):
        while True:
            began = time.monotonic()
            try:
                served_by = await asyncio.to_thread(ask, space)
            except ConnectionError:
                served_by = ""
            except OSError as error:
                raise AssertionError(f"hung for {time.monotonic() - began:.1f} s") from error
            slowest = max(slowest, time.monotonic() - began)
            if served_by:
                assert served_by == "app"
                return slowest


def listener_of(target, port=PORT):
    return target._streams._ports[port].listener


def types(some):
    return {each.type for each in some.conditions.all()}


async def comes_back(some, target, *, within=12.0):
    """The port is steered again and nothing is said about it any more."""
    await some.until(lambda: target.steered().get(PORT) and types(some) == set(), within=within)
    some.audit.once()
    assert types(some) == set()


# --- a proxy that is full ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def idle_clients(space, count):
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Client(space.ip, PORT, netns=space.client, record=False)) for _ in range(count)]


def test_a_full_proxy_leaves_the_port_to_the_app_and_comes_back(program):
    async def story():
        async with steered(program, descriptors=160) as (space, some, target):
            with idle_clients(space, 80):
                await some.until(lambda: ConditionType.PROXY_NOT_READY in types(some))
                assert "no room for more connections" in some.texts()
                assert not target.steered()[PORT]
                for _ in range(5):
                    assert await answered(space) < HANG
                assert target.proxy_state is ProxyState.RUNNING
            await comes_back(some, target)
            assert await answered(space) < HANG

    asyncio.run(story())


def test_who_waits_for_a_full_proxy_is_served_or_reset_within_a_second(program):
    """The queue fills faster than the daemon is told: some are in it when there is no room any more."""

    async def story():
        async with steered(program, descriptors=100) as (space, some, target):
            os.kill(target.proxy_pid, signal.SIGSTOP)
            with idle_clients(space, 100) as clients:
                os.kill(target.proxy_pid, signal.SIGCONT)
                for client in clients:
                    client.sock.settimeout(HANG)
                    with contextlib.suppress(ConnectionError):
                        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                outcomes = await asyncio.to_thread(lambda: [_outcome(client) for client in clients])
                assert set(outcomes) == {"app", "reset"}, outcomes
                assert outcomes.count("app") >= 20, outcomes
            await comes_back(some, target)

    asyncio.run(story())


def _outcome(client):
    try:
        return client.reader.message(answers="GET").header("x-served-by")
    except TimeoutError:
        return "hangs"
    except (ConnectionError, ValueError, AssertionError):
        return "reset"
    except Exception as error:  # noqa: BLE001 - told by name, whatever it is
        return "reset" if type(error).__name__ == "ClosedError" else repr(error)


def test_a_proxy_without_descriptors_leaves_the_port_to_the_app_and_comes_back(program):
    async def story():
        # So few that even those which are kept free are not there.
        async with steered(program, descriptors=14) as (space, some, target):
            proxy = target.proxy_pid
            with idle_clients(space, 6):
                await some.until(lambda: "cannot open more files (Too many open files)" in some.texts())
                assert not target.steered()[PORT]
                for _ in range(5):
                    assert await answered(space) < HANG
            await comes_back(some, target)
            assert target.proxy_pid == proxy

    asyncio.run(story())


# --- an app that cannot be dialled ------------------------------------------------------------------------------------

WALL = "add table inet wall; add chain inet wall in {{ type filter hook input priority 0; }}; add rule inet wall in {}"


@pytest.mark.parametrize("rule", ["iif lo drop", "iif lo reject with icmpx type admin-prohibited"])
def test_an_app_that_cannot_be_reached_from_inside_is_left_to_its_clients(program, rule):
    async def story():
        async with steered(program) as (space, some, target):
            assert await answered(space) < HANG
            space.pod.run("nft", WALL.format(rule))
            assert await answered(space) < HANG
            await some.until(lambda: not target.steered()[PORT])
            assert "the app cannot be reached from inside the pod over IPv4" in some.texts()
            for _ in range(5):
                assert await answered(space) < HANG
            space.pod.run("nft", "delete table inet wall")
            await comes_back(some, target)

    asyncio.run(story())


@pytest.mark.parametrize("rule", ["iif lo drop", "iif lo tcp flags & psh == psh drop"])
def test_connections_that_are_cut_off_from_their_app_are_ended(program, rule):
    """Those that are open when the firewall comes, and those that it lets be opened."""

    async def story():
        async with steered(program) as (space, some, target):
            with Client(space.ip, PORT, netns=space.client, within=HANG) as kept:
                assert kept.get().status == 200
                space.pod.run("nft", WALL.format(rule))
                with pytest.raises(ConnectionError):
                    await asyncio.to_thread(kept.get)
            assert await answered(space) < HANG
            assert "the app cannot be reached from inside the pod over IPv4" in some.texts()
            assert not target.steered()[PORT]
            space.pod.run("nft", "delete table inet wall")
            await comes_back(some, target)

    asyncio.run(story())


def test_an_app_that_refuses_although_it_listens_is_left_to_its_clients_and_the_condition_says_so(program):
    """So a firewall that rejects with a reset looks."""

    async def story():
        async with steered(program) as (space, some, target):
            space.pod.run("nft", WALL.format("iif lo tcp dport 8080 reject with tcp reset"))
            async with time_limit(20):
                while "although it listens" not in some.texts():
                    assert await answered(space) < HANG
            assert not target.steered()[PORT]
            assert target.why_left(PORT, Transport.TCP).startswith("the app refuses connections")
            space.pod.run("nft", "delete table inet wall")
            await comes_back(some, target, within=20.0)

    asyncio.run(story())


# --- listeners and sockets that die -----------------------------------------------------------------------------------


def kill_listener(space, target):
    space.pod.run("ss", "-K", "-t", "-l", "sport", "=", f":{listener_of(target).getsockname()[1]}")


def shut_listener(space, target):
    del space
    listener_of(target).shutdown(socket.SHUT_RDWR)


@pytest.mark.alone
@pytest.mark.parametrize("end", [kill_listener, shut_listener])
def test_a_listener_that_dies_is_replaced_and_costs_nothing_meanwhile(program, end):
    async def story():
        async with steered(program) as (space, some, target):
            first, used = cookie(listener_of(target)), cpu_seconds(target.proxy_pid)
            began = time.monotonic()
            end(space, target)
            assert await answered(space) < HANG
            await some.until(lambda: cookie(listener_of(target)) != first)
            await comes_back(some, target)
            assert accept_queue(listener_of(target)) is not None
            entry = (PORT, Transport.TCP, Family.IPV4)
            assert target._steering.socket_of(*entry) == cookie(listener_of(target)) != first
            assert cpu_seconds(target.proxy_pid) - used < 0.3 * (time.monotonic() - began)
            assert await answered(space) < HANG

    asyncio.run(story())


def test_a_listener_that_dies_again_and_again_is_replaced_ever_more_rarely(program):
    async def story():
        async with steered(program) as (space, some, target):
            renewals = []
            for _ in range(4):
                kill_listener(space, target)
                died, first = time.monotonic(), listener_of(target)
                assert await answered(space) < HANG
                await some.until(lambda first=first: listener_of(target) is not first, within=10.0)
                renewals.append(time.monotonic() - died)
            assert renewals[-1] > 0.7, renewals
            assert await answered(space) < HANG

    asyncio.run(story())


def test_the_audit_sees_that_a_port_is_steered_to_another_socket(program):
    async def story():
        async with steered(program) as (space, some, target):
            with Netns.open(str(space.pod.path)) as netns, tcp_listener(netns, backlog=8) as stranger:
                target._steering.steer(PORT, Transport.TCP, Family.IPV4, stranger.fileno())
                some.audit.once()
                assert some.audit.repaired == 1
                assert "another socket" in some.texts()
                assert target._steering.socket_of(PORT, Transport.TCP, Family.IPV4) == cookie(listener_of(target))
            assert await answered(space) < HANG

    asyncio.run(story())


# --- a queue without a reader -----------------------------------------------------------------------------------------


def test_nobody_waits_for_a_proxy_that_cannot_be_replaced(program):
    """The zygote is stopped and the proxy killed: no proxy comes until the zygote was replaced."""

    async def story():
        async with steered(program) as (space, some, target):
            zygote, proxy = some.supervisor.zygote.pid, target.proxy_pid
            os.kill(zygote, signal.SIGSTOP)
            try:
                os.kill(proxy, signal.SIGKILL)
                until = time.monotonic() + 3.0
                while time.monotonic() < until:
                    assert await answered(space) < HANG
                await some.until(lambda: some.supervisor.zygote.pid not in {None, zygote}, within=15.0)
                await comes_back(some, target, within=15.0)
                assert target.proxy_pid not in {None, proxy}
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(zygote, signal.SIGCONT)

    asyncio.run(story())


def test_nobody_waits_during_a_crash_loop(program):
    async def story():
        async with steered(program, settings=QUICK) as (space, some, target):
            with contextlib.ExitStack() as stack:
                clients = []
                while target.proxy_state is not ProxyState.FAILED:
                    if (pid := target.proxy_pid) is not None:
                        os.kill(pid, signal.SIGSTOP)
                        clients.append(stack.enter_context(Client(space.ip, PORT, netns=space.client, within=HANG)))
                        os.kill(pid, signal.SIGKILL)
                        await some.until(lambda pid=pid: target.proxy_pid != pid)
                    await asyncio.sleep(0)
                for client in clients:
                    with contextlib.suppress(ConnectionError):
                        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                outcomes = await asyncio.to_thread(lambda: [_outcome(client) for client in clients])
                assert set(outcomes) <= {"app", "reset"}, outcomes
            assert await answered(space) < HANG

    asyncio.run(story())


def test_a_proxy_that_hangs_gets_no_new_connections(program):
    async def story():
        async with steered(program) as (space, some, target):
            proxy = target.proxy_pid
            os.kill(proxy, signal.SIGSTOP)
            await some.until(lambda: not target.steered()[PORT])
            assert target.proxy_pid == proxy
            assert await answered(space) < 1.0
            await comes_back(some, target)

    asyncio.run(story())
