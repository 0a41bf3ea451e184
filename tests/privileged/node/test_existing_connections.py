"""Connections that existed before a port was steered: ended in portions; where they cannot be listed, kept."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest

from sidestep.model.condition import ConditionType
from sidestep.model.pod import Family, PodKey
from sidestep.netns import Netns, established, exchange
from sidestep.node.conditions import Conditions, Statements
from sidestep.node.planning.plan import PortPlan
from sidestep.node.pods import existing_connections
from sidestep.node.pods.existing_connections import ExistingConnections
from sidestep.node.pods.listening_port import ListeningPort
from sidestep.snapshots.ports import PortSnapshot
from tests.harness.namespaces import pod_namespace

pytestmark = pytest.mark.privileged

PORT = 8080
POD = PodKey("shop", "app")
PLAN = PortPlan(PortSnapshot(PORT, "tcp", "probe", "probe", (), app="app=1"), needs_app=True, resets=frozenset({"ada"}))


@pytest.fixture
def crowded():
    """A namespace, opened, with five clients of its port."""
    with contextlib.ExitStack() as stack:
        space = stack.enter_context(pod_namespace())
        netns = stack.enter_context(Netns.open(str(space.pod.path)))
        server = stack.enter_context(netns.run(lambda: socket.create_server((space.ip, PORT))))
        for _ in range(5):
            stack.enter_context(space.client.call(lambda: socket.create_connection((space.ip, PORT), 5)))
            stack.enter_context(server.accept()[0])
        yield netns


@pytest.fixture
def conditions():
    return Conditions()


@pytest.fixture
def existing(conditions):
    statements = Statements(conditions, POD)
    statements.begin()
    return ExistingConnections(POD, statements)


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = ListeningPort(plan=PLAN, listener=listener)
        port.steered.add(Family.IPV4)
        yield port


async def turns(number):
    for _ in range(number):
        await asyncio.sleep(0)


def test_many_end_in_portions_between_which_the_loop_runs(crowded, existing, port, monkeypatch):
    monkeypatch.setattr(existing_connections, "PORTION", 2)

    async def end():
        existing.end(port, crowded, existing.of(port, crowded))
        left = [len(established(crowded, PORT))]
        for _ in range(3):
            await turns(1)
            left.append(len(established(crowded, PORT)))
        return left

    assert asyncio.run(end()) == [3, 1, 0, 0]


def test_a_pod_that_is_released_meanwhile_ends_it(crowded, existing, port, conditions, monkeypatch):
    monkeypatch.setattr(existing_connections, "PORTION", 2)

    async def end():
        with Netns.open(crowded.path) as netns:
            existing.end(port, netns, existing.of(port, netns))
        await turns(5)

    asyncio.run(end())
    assert len(established(crowded, PORT)) == 3


def test_too_many_stay_with_the_app_and_are_not_listed_again(crowded, existing, port, conditions, monkeypatch):
    with monkeypatch.context() as few:
        few.setattr(exchange, "MAX_ANSWERS", 4)
        assert existing.of(port, crowded) == ()
    (condition,) = [each for each in conditions.all() if each.type is ConditionType.EXISTING_KEPT]
    assert "more than 4" in condition.text
    assert existing.of(port, crowded) == ()
    existing.end(port, crowded, ())
    assert len(established(crowded, PORT)) == 5
    assert list(conditions.all()) == [condition]
