"""Pods with many ports, and a reconciler that is frozen because its daemon drains."""

import asyncio
import contextlib
import socket
import time
from itertools import pairwise

import pytest
from msgspec.structs import replace

from sidestep.model.pod import ContainerPort, Family, Transport
from sidestep.netns import exchange, listening
from sidestep.node.pods import stream_ports
from tests.harness import kernel
from tests.harness.namespaces import pod_namespace
from tests.harness.peers import Client, Server, http_app
from tests.privileged.node.rig import PORT, ask, intercept, pod_of, rig

pytestmark = pytest.mark.privileged

PORTS = range(9000, 9064)


def ask_all(space):
    """Who answers on each port."""
    answers = []
    for port in PORTS:
        with Client(space.ip, port, netns=space.client, within=5.0) as client:
            answers.append(client.get("/", "Connection: close").header("x-served-by"))
    return answers


def test_64_ports_of_one_pod(program):
    async def story():
        with pod_namespace() as space, contextlib.ExitStack() as stack:
            for port in PORTS:
                stack.enter_context(Server(http_app, name=f"app-{port}", netns=space.pod, address=space.ip, port=port))
            async with rig(program) as some:
                pod = pod_of(space)
                ports = tuple(ContainerPort(port, name=f"web-{port}") for port in PORTS)
                key = some.add(replace(pod, ports=ports))
                some.intercepts = [replace(intercept(uid=f"u{port}"), port=str(port)) for port in PORTS]
                some.plan()
                await some.until(lambda: all(some.steered(key, port) for port in PORTS), within=20)
                wanted = [f"app-{port}" for port in PORTS]
                assert await asyncio.to_thread(ask_all, space) == wanted
                assert len(some.target(key)._steering.entries()) == len(PORTS)
                some.audit.once()
                assert some.audit.repaired == 0
                # Half of them end, nobody notices.
                some.intercepts = some.intercepts[: len(PORTS) // 2]
                some.plan()
                await some.until(lambda: not some.steered(key, PORTS[-1]))
                assert await asyncio.to_thread(ask_all, space) == wanted
                assert len(some.target(key)._steering.entries()) == len(PORTS) // 2

    asyncio.run(story())


def test_a_frozen_reconciler_attaches_and_changes_nothing(program):
    async def story():
        with pod_namespace() as space, pod_namespace() as other, contextlib.ExitStack() as stack:
            for each in (space, other):
                stack.enter_context(Server(http_app, netns=each.pod, address=each.ip, port=PORT))
            async with rig(program) as some:
                key = some.add(pod_of(space))
                some.intercepts = [intercept()]
                some.plan()
                await some.until(lambda: some.steered(key))
                target = some.target(key)
                some.reconciler.freeze()
                second = some.add(pod_of(other, "orders-2"))
                some.intercepts = [intercept(), intercept(name="orders-2", uid="u2")]
                some.plan()
                some.reconciler.redo(key)  # as an audit that found the link lost
                assert await asyncio.to_thread(ask, space) == "app"
                assert await asyncio.to_thread(ask, other) == "app"
                assert some.reconciler.target(second) is None
                assert some.reconciler.target(key) is target
                assert not target.attached
                assert not kernel.steering(other.pod).links
                assert not kernel.steering(space.pod).links

    asyncio.run(story())


def test_a_frozen_reconciler_keeps_what_is_steered(program):
    async def story():
        with pod_namespace() as space, Server(http_app, netns=space.pod, address=space.ip, port=PORT):
            async with rig(program) as some:
                key = some.add(pod_of(space))
                some.intercepts = [intercept()]
                some.plan()
                await some.until(lambda: some.steered(key))
                some.reconciler.freeze()
                some.intercepts = []
                some.plan()
                assert some.target(key)._steering.entries() == {(PORT, Transport.TCP, Family.IPV4)}
                some.reconciler.abandon()
                assert not kernel.steering(space.pod).links
                assert await asyncio.to_thread(ask, space) == "app"

    asyncio.run(story())


def listeners(space, count):
    """So many sockets that share the port, as an app of many workers has."""

    def listen():
        found = []
        for _ in range(count):
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind((space.ip, PORT))
            sock.listen()
            found.append(sock)
        return found

    return space.pod.call(listen)


def test_a_pod_with_too_many_listening_sockets_is_asked_ever_more_seldom(program, monkeypatch):
    """The kernel has to list all of them each time, only for the answer to be refused."""
    monkeypatch.setattr(exchange, "MAX_ANSWERS", 10)
    asked = []

    def counted(*words):
        asked.append(time.monotonic())
        return listening(*words)

    monkeypatch.setattr(stream_ports, "listening", counted)
    monkeypatch.setattr(stream_ports, "FIRST_PAUSE", 0.2)
    monkeypatch.setattr(stream_ports, "LAST_PAUSE", 3.2)

    async def story():
        with pod_namespace(ipv6=False) as space, contextlib.ExitStack() as stack:
            many = listeners(space, 20)
            for each in many:
                stack.enter_context(each)
            async with rig(program) as some:
                key = some.add(pod_of(space))
                some.intercepts = [intercept()]
                some.plan()
                await some.until(lambda: "there are more than 10" in some.texts(), within=10)
                await some.until(lambda: len(asked) >= 6, within=30)
                pauses = [later - earlier for earlier, later in pairwise(asked[-3:])]
                assert min(pauses) > 1.0, asked  # twice a second without a pause
                assert not some.steered(key)
                for each in many[5:]:
                    each.close()
                await some.until(lambda: some.steered(key), within=10)
                assert "there are more than" not in some.texts()

    asyncio.run(story())
