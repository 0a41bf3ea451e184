"""Connections that a node has pods make: where they may lead, also after they were made."""

from __future__ import annotations

import asyncio
import socket

import pytest

from sidestep.model.errors import RefusedError
from sidestep.model.intercept import Allow
from sidestep.model.inventory import Inventory
from sidestep.model.pod import PodKey
from sidestep.node import pod_world
from sidestep.node.certificates.requests import Names
from sidestep.node.pod_world import NodePodWorld
from sidestep.node.proxies.dials import Dialled
from sidestep.policy.destinations import networks_of
from sidestep.tunnel.errors import ChannelBrokenError
from tests.unit.node.scenes import intercept, pod
from tests.unit.tunnel.ends import asynchronous

POD = PodKey("shop", "orders-1")
ADDRESSES = {"n1": ("198.51.100.9",), "n2": ("192.0.2.1",)}


class Reader:
    async def names(self, root, birth):
        return Names("", "")


class Target:
    """A pod whose proxy connects to where it is told, and says so."""

    def __init__(self):
        self.address = "10.0.0.7"
        self.networks = []
        self.peers = []
        self.meanwhile = lambda: None

    def serves(self, uid):
        return True

    async def dial(self, dial, network):
        self.networks.append(network)
        ours, theirs = socket.socketpair()
        self.peers.append(theirs)
        self.meanwhile()
        return Dialled(ours, self.address)


class Scene:
    """A node, and at the end none of its sockets."""

    def __init__(self):
        self.denied = ()
        self.target = Target()
        self.reader = Reader()
        self.told = []
        self.world = NodePodWorld(
            inventory=lambda: Inventory(pods={POD: pod()}, node_addresses=ADDRESSES),
            reader=self.reader,
            name="n1",
            target=lambda _pod: self.target,
            denied=lambda: self.denied,
            node_addresses=frozenset,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for each in self.target.peers:
            each.close()

    async def connect(self, host="db"):
        access = intercept(allow=frozenset({Allow.NETWORK}))
        return await self.world.connect(access, POD, host, 5432, "tcp", ended=self.told.append)


@asynchronous
async def test_what_the_node_denies_from_now_on_ends_and_is_told_by_name():
    with Scene() as scene:
        kept = await scene.connect("cache")
        scene.target.address = "10.1.0.7"
        ended, finished, gone = [await scene.connect() for _ in range(3)]
        await finished.write_eof()
        gone.close()
        reading = asyncio.ensure_future(ended.read())
        await asyncio.sleep(0)
        scene.world.follow_settings()
        assert scene.told == []
        scene.denied = ("10.1.0.0/16",)
        scene.world.follow_settings()
        reason = "the node has ended the connection to db:5432 (10.1.0.7): the node denies it (annotation"
        scene.denied = ("10.1.0.0/16", "10.2.0.0/16")
        scene.world.follow_settings()
        assert [each.startswith(reason) for each in scene.told] == [True, True], (
            "once, and the channels are still there"
        )
        for broken in (reading, finished.read()):
            with pytest.raises(ChannelBrokenError):
                await broken
        scene.target.peers[0].sendall(b"on")
        assert await kept.read() == b"on"
        for each in (kept, ended, finished):
            each.abort()
        scene.world.follow_settings()
        assert len(scene.told) == 2


@asynchronous
async def test_networks_are_not_read_again_as_long_as_they_stay_the_same(monkeypatch):
    read = []
    monkeypatch.setattr(pod_world, "networks_of", lambda texts: read.append(texts) or networks_of(texts))
    with Scene() as scene:
        scene.denied = ("10.9.0.0/16",)
        made = [await scene.connect() for _ in range(3)]
        read.clear()
        for _ in range(3):
            scene.world.follow_settings()
        assert read == [scene.denied]
        for each in made:
            each.abort()


@asynchronous
async def test_an_ipv6_address_is_told_in_brackets():
    with Scene() as scene:
        scene.target.address = "fd00::7"
        channel = await scene.connect("fd00::7")
        scene.denied = ("fd00::/8",)
        scene.world.follow_settings()
        channel.abort()
        assert scene.told[0].startswith(
            "the node has ended the connection to [fd00::7]:5432 (fd00::7): the node denies"
        )


@pytest.mark.parametrize("address", ["", "somewhere", "10.1.0.7", "::ffff:10.1.0.7"])
@asynchronous
async def test_one_that_was_made_while_the_node_began_to_deny_it_is_refused(address):
    """A proxy that does not say where it leads is not asked twice."""
    with Scene() as scene:
        scene.target.address = address
        (await scene.connect()).abort()
        scene.target.meanwhile = lambda: setattr(scene, "denied", ("10.1.0.0/16",))
        with pytest.raises(RefusedError, match=f"^{address or 'db'} is refused: the "):
            await scene.connect()
        assert scene.target.peers[-1].recv(1) == b""
        assert scene.told == []


@asynchronous
async def test_addresses_in_the_nodes_status_are_its_own():
    with Scene() as scene:
        (await scene.connect()).abort()
        assert scene.target.networks[0].node == ("198.51.100.9",)


@asynchronous
async def test_a_reading_that_fails_late_takes_no_newer_one_with_it(monkeypatch):
    with Scene() as scene:
        answers = [asyncio.get_running_loop().create_future() for _ in range(2)]
        asked = []

        async def names(root, birth):
            asked.append(root)
            return await answers[len(asked) - 1]

        monkeypatch.setattr(scene.reader, "names", names)
        monkeypatch.setattr(pod_world, "KEPT", -1.0)
        late = asyncio.ensure_future(scene.connect())
        await asyncio.sleep(0)
        answers[1].set_result(Names("", ""))
        (await scene.connect()).abort()
        answers[0].set_exception(RefusedError("it took too long"))
        with pytest.raises(RefusedError, match="too long"):
            await late
        monkeypatch.setattr(pod_world, "KEPT", 60.0)
        (await scene.connect()).abort()
        assert len(asked) == 2
