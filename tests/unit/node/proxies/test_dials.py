"""Connections that a pod's proxy is asked to make: what it may answer, and what becomes of it when it does not."""

import asyncio
import socket
from types import SimpleNamespace

import pytest

from sidestep.model.errors import RefusedError
from sidestep.node.proxies.desired import Acknowledged
from sidestep.node.proxies.dials import Dials
from sidestep.node.proxies.pod_proxy import PodProxy, SupervisorSettings
from sidestep.node.proxies.proxy_worker import ProxyWorker
from sidestep.proxy.control.messages import Dial, UseNetwork
from tests.unit.tunnel.ends import asynchronous

WANTED = Dial(0, 0, "db", 5432, "tcp")


class Process:
    """A proxy process: it keeps the descriptors that it gets."""

    def __init__(self):
        self.asked = []

    async def tell(self, message, fd=None, *, doing):
        self.asked.append((message.stream, socket.socket(fileno=socket.dup(fd))))


async def begun(dials, process):
    making = asyncio.create_task(dials.make(process, WANTED))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return making, *process.asked[-1]


@asynchronous
async def test_a_connection_that_is_made():
    dials, process = Dials(), Process()
    making, stream, theirs = await begun(dials, process)
    with theirs:
        dials.answered(process, stream, "", "10.0.0.7\x1b")
        made = await making
        assert "\x1b" not in made.address
        with made.sock as ours:
            ours.sendall(b"hello")
            assert theirs.recv(5) == b"hello"


@asynchronous
async def test_only_the_process_that_was_asked_answers_and_once():
    dials, process, other = Dials(), Process(), Process()
    making, stream, theirs = await begun(dials, process)
    with theirs:
        dials.answered(other, stream, "")
        dials.answered(process, stream + 1, "")
        dials.answered(process, 0, "")
        await asyncio.sleep(0)
        assert not making.done()
        dials.answered(process, stream, "db refused\x1b[2J")
        dials.answered(process, stream, "")
        with pytest.raises(RefusedError, match="db refused") as caught:
            await making
        assert "\x1b" not in str(caught.value)
        assert theirs.recv(1) == b""


@pytest.mark.parametrize("how", ["ends", "cancelled"])
@asynchronous
async def test_nothing_is_left_of_one_that_is_not_made(how):
    dials, process = Dials(), Process()
    making, stream, theirs = await begun(dials, process)
    with theirs:
        if how == "ends":
            dials.process_ended(process)
            with pytest.raises(RefusedError, match="has ended"):
                await making
        else:
            making.cancel()
            await asyncio.wait({making})
        assert theirs.recv(1) == b""
        dials.answered(process, stream, "")


@asynchronous
async def test_what_a_process_was_told_by_one_who_gave_up_is_not_taken_for_what_it_was_told_before(monkeypatch):
    strict, lax = UseNetwork(0, "", "", denied=("10.0.0.0/8",)), UseNetwork(0, "", "")
    told, began, holds = [], asyncio.Event(), asyncio.Event()

    class Told(Process):
        told = Acknowledged(network=strict)

        async def tell(self, message, fd=None, *, doing):
            if not isinstance(message, UseNetwork):
                raise RefusedError("as far as this goes")
            told.append(message)
            began.set()
            if message is lax:
                await holds.wait()

    async def running(_self):
        return process

    process = Told()
    monkeypatch.setattr(ProxyWorker, "running", running)
    proxy = PodProxy(None, SimpleNamespace(name="orders"), None, SupervisorSettings())
    giving_up = asyncio.create_task(proxy.dial(WANTED, lax))
    await began.wait()
    giving_up.cancel()
    await asyncio.wait({giving_up})
    for _ in range(2):
        with pytest.raises(RefusedError, match="as far as this goes"):
            await proxy.dial(WANTED, strict)
    assert told == [lax, strict]
