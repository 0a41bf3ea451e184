"""Pods with many ports, and a reconciler that is frozen because its daemon drains."""

import asyncio
import contextlib
from dataclasses import replace

import pytest

from sidestep.model.pod import ContainerPort, Family, Transport
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
