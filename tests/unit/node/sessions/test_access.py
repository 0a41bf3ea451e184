"""Accesses to pods, from the developer's end to the daemon's: rights, pods, bounds, and the end of all of it."""

import asyncio
import contextlib
import json
import socket

import msgspec
import pytest

from sidestep.laptop import pod_access
from sidestep.laptop.pod_access import PodAccess
from sidestep.model.errors import PeerError, RefusedError
from sidestep.model.filter import Filter
from sidestep.model.intercept import MAX_ENVIRONMENT, Allow, Kind
from sidestep.model.pod import PodKey
from sidestep.node.sessions import access as access_server
from sidestep.node.sessions.session import Session
from sidestep.tunnel import access as lines
from sidestep.tunnel.channel import SocketChannel
from sidestep.tunnel.cli_end import CliEnd
from sidestep.tunnel.messages import PodState, State
from tests.unit.node.scenes import intercept
from tests.unit.tunnel.ends import LIMITS, asynchronous, attach, eventually

POD, OTHER = PodKey("shop", "orders-1"), PodKey("shop", "orders-2")


def access(*allow):
    return intercept(kind=Kind.WIRETAP, port="", filter=Filter(), allow=frozenset(allow))


class World:
    """What there is behind the rights: it remembers what it is asked."""

    def __init__(self):
        self.asked = []
        self.peers = []
        self.holds = None
        self.variables = b"A=1\0B=two words\0"

    async def environment(self, access, pod, container):
        self.asked.append(("environment", str(pod), container))
        if self.holds is not None:
            await self.holds.wait()
        return self.variables

    async def files(self, access, pod, container, paths, max_bytes):
        self.asked.append(("files", str(pod), container, paths, max_bytes))
        return self._pair()

    async def connect(self, access, pod, host, port, protocol, *, ended):
        self.ended = ended
        self.asked.append(("connect", str(pod), host, port, protocol))
        if self.holds is not None:
            await self.holds.wait()
        if host == "nowhere":
            raise RefusedError("nowhere does not exist")
        return SocketChannel(self._pair())

    def _pair(self):
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        self.peers.append(theirs)
        return ours


class Laptop:
    def __init__(self, used):
        self.access = used
        self.hellos = []
        self.events = []
        self.end = CliEnd(
            dial=self._dial,
            on_hello=self.hellos.append,
            on_event=self.events.append,
            access=used.access if used else None,
        )

    async def _dial(self, opening):
        raise RefusedError("no handler")


@contextlib.asynccontextmanager
async def connected(wanted, world, used, *, pods=(POD,), limits=LIMITS):
    """A session at the daemon whose other end is `used`."""
    laptop = Laptop(used)
    session = Session(intercept=wanted, node="n1", software="1", world=world, limits=limits)
    left, right = socket.socketpair()
    await attach(left, session.connection)
    await attach(right, laptop.end.connection)
    running = asyncio.create_task(_serve(session, pods))
    try:
        yield session, laptop
    finally:
        await session.aclose()
        await running
        laptop.end.connection.close()
        await laptop.end.run()
        for peer in world.peers:
            peer.close()


async def _serve(session, pods):
    await session.begin()
    session.publish(state(*pods))
    return await session.run()


def state(*pods):
    return State(tuple(PodState(str(each), "active") for each in pods))


@asynchronous
async def test_variables_are_read():
    world, used = World(), PodAccess()
    async with connected(access(Allow.ENVIRONMENT), world, used):
        assert await used.pod() == "shop/orders-1"
        assert await used.environment() == b"A=1\0B=two words\0"
        assert await used.environment() == b"A=1\0B=two words\0"
        assert world.asked == [("environment", "shop/orders-1", "")] * 2


@asynchronous
async def test_a_daemon_that_sends_too_many_variables_is_not_believed():
    world, used = World(), PodAccess()
    async with connected(access(Allow.ENVIRONMENT), world, used):
        world.variables = b"A=" + b"x" * (MAX_ENVIRONMENT - 3) + b"\0"
        assert len(await used.environment()) == MAX_ENVIRONMENT
        world.variables += b"B=\0"
        with pytest.raises(PeerError, match="variables of more than 1048576 bytes came through the tunnel"):
            await used.environment()


@asynchronous
async def test_connections_have_both_directions_and_half_close():
    world, used = World(), PodAccess()
    loop = asyncio.get_running_loop()
    async with connected(access(Allow.NETWORK), world, used):
        async with await used.connect("db.shop", 5432) as granted:
            [peer] = world.peers
            await granted.stream.write(b"question")
            await granted.stream.write_eof()
            assert await loop.sock_recv(peer, 100) == b"question"
            assert await loop.sock_recv(peer, 100) == b""
            await loop.sock_sendall(peer, b"answer")
            peer.shutdown(socket.SHUT_WR)
            assert await granted.stream.read() == b"answer"
            assert await granted.stream.read() == b""
        with pytest.raises(RefusedError, match="nowhere does not exist"):
            await used.connect("nowhere", 1)


@asynchronous
async def test_the_reason_of_a_connection_that_the_node_ends_arrives():
    world, used, told = World(), PodAccess(), []
    used.ended = told.append
    async with connected(access(Allow.NETWORK), world, used), await used.connect("db.shop", 5432) as granted:
        world.ended("it is denied\x1b[2J now")
        await granted.stream.until_broken()
        await eventually(lambda: told, what="the reason")
    assert told[0].startswith("it is denied")
    assert "\x1b" not in told[0]


@asynchronous
async def test_a_connection_of_a_client_that_reads_nothing_ends_and_one_line_tells():
    world, used, told = World(), PodAccess(), []
    used.ended = told.append
    async with connected(access(Allow.NETWORK), world, used), await used.connect("db.shop", 5432) as granted:
        [peer] = world.peers
        idle = 0
        while idle < 5:  # the window is used up, and the buffers of the socket are full
            idle = 0 if given(peer) else idle + 1
            await asyncio.sleep(0.005)
        end = world.ended
        end("it is denied now")
        end("it is denied now")
        await granted.stream.until_broken()
        await eventually(lambda: given(peer) is None, what="the end of the socket")
        end("it is denied now")
        (await used.connect("db.shop", 5432)).close()
    assert told == ["it is denied now"]


def given(sock):
    """The bytes that a socket takes now; None once its other end is closed."""
    size = 0
    try:
        while True:
            size += sock.send(bytes(1 << 16))
    except BlockingIOError:
        return size
    except OSError:
        return None


@asynchronous
async def test_the_daemon_refuses_what_takes_too_long_before_the_session_gives_up(monkeypatch):
    assert access_server.GRANT < pod_access.ANSWER
    monkeypatch.setattr(access_server, "GRANT", 0.1)
    world, used = World(), PodAccess()
    world.holds = asyncio.Event()
    async with connected(access(Allow.NETWORK), world, used):
        with pytest.raises(RefusedError, match="the node could not carry it out within"):
            await used.connect("db.shop", 5432)


@asynchronous
@pytest.mark.parametrize("kept", [*Allow])
async def test_what_is_not_allowed_is_refused_and_never_asked(kept):
    world, used = World(), PodAccess()
    asks = {
        Allow.ENVIRONMENT: used.environment,
        Allow.FILES: lambda: used.files((), 10),
        Allow.NETWORK: lambda: used.connect("db", 1),
    }
    async with connected(access(kept), world, used):
        for needed, ask in asks.items():
            if needed is not kept:
                with pytest.raises(RefusedError, match=f"does not allow {needed} \\(it allows: {kept}\\)"):
                    await ask()
    assert world.asked == []


@asynchronous
async def test_a_session_of_another_kind_gets_no_lines_at_all():
    world, used = World(), PodAccess()
    async with connected(intercept(), world, used) as (session, laptop):
        await eventually(lambda: laptop.events, what="the session's state")
        assert used._links == {}
        assert session.connection.streams == 1  # the events


@asynchronous
async def test_only_pods_of_the_plan_are_used_and_no_longer_than_it_says():
    world, used = World(), PodAccess()
    async with connected(access(Allow.NETWORK), world, used) as (session, _):
        granted = await used.connect("db", 1)
        [link] = used._links.values()
        with pytest.raises(RefusedError, match="cannot use pod shop/orders-9 now"):
            await link.ask(lambda number: lines.Connect(number, "shop/orders-9", "db", 1))
        session.publish(state(OTHER))
        await granted.stream.until_broken()
        granted.close()
        await eventually(lambda: link.pods == {str(OTHER)}, what="the other pod")
        assert await used.pod() == str(OTHER)
        session.publish(state())
        await eventually(lambda: not link.pods, what="no pod")
        with pytest.raises(RefusedError, match="cannot use pod shop/orders-2 now"):
            await link.ask(lambda number: lines.Connect(number, str(OTHER), "db", 1))


@asynchronous
async def test_the_end_of_the_session_ends_what_it_uses():
    world, used = World(), PodAccess()
    async with connected(access(Allow.NETWORK), world, used) as (session, _):
        granted = await used.connect("db", 1)
        await session.aclose()
        await granted.stream.until_broken()
        granted.close()
        [peer] = world.peers
        assert await asyncio.get_running_loop().sock_recv(peer, 1) == b""
        await eventually(lambda: not used._links, what="the end of the tunnel")


@asynchronous
async def test_what_is_asked_for_is_bounded_and_can_be_given_up():
    world, used = World(), PodAccess()
    world.holds = asyncio.Event()
    async with connected(access(Allow.ENVIRONMENT), world, used):
        await used.pod()
        asking = [asyncio.create_task(used.environment()) for _ in range(4)]
        await eventually(lambda: len(world.asked) == 4, what="four requests")
        with pytest.raises(RefusedError, match="as much at once as it may"):
            await used.environment()
        asking[0].cancel()
        await asyncio.wait(asking[:1])
        world.holds.set()
        assert await asyncio.gather(*asking[1:]) == [b"A=1\0B=two words\0"] * 3
        assert await used.environment() == b"A=1\0B=two words\0"


@asynchronous
async def test_who_gives_up_amid_a_line_spoils_none():
    world, used = World(), PodAccess()
    small = msgspec.structs.replace(LIMITS, stream_window=16, stream_window_max=16)
    async with connected(access(Allow.NETWORK), world, used, limits=small):
        await used.pod()
        [link] = used._links.values()
        world.holds = asyncio.Event()
        amid = asyncio.create_task(used.connect("db.first", 1))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not link._stream._writable.done()  # the window is used up
        behind = asyncio.create_task(used.connect("db.second", 2))
        await asyncio.sleep(0)
        for each in (behind, amid):
            each.cancel()
        await asyncio.wait({amid, behind})
        world.holds.set()
        (await used.connect("db.third", 3)).close()
        assert [*used._links.values()] == [link]
    assert [each[2] for each in world.asked] == ["db.first", "db.third"]


@asynchronous
async def test_many_connections_that_end_at_once_cost_no_tunnel():
    world, used = World(), PodAccess()
    async with connected(access(Allow.NETWORK), world, used) as (session, _):
        await used.pod()
        [link] = used._links.values()
        world.holds = asyncio.Event()
        asking = [asyncio.create_task(used.connect("nowhere", 1)) for _ in range(1000)]
        await eventually(lambda: len(world.asked) == 1000, what="a thousand connections")
        world.holds.set()
        refusals = await asyncio.gather(*asking, return_exceptions=True)
        assert {str(each) for each in refusals} == {"nowhere does not exist"}
        granted = [await used.connect("db", 1) for _ in range(400)]
        session.publish(state(OTHER))
        for each in granted:
            await each.stream.until_broken()
            each.close()
        await eventually(lambda: link.pods == {str(OTHER)}, what="the other pod")
        assert [link] == [*used._links.values()]


@asynchronous
async def test_refusals_wait_for_a_session_that_reads_none():
    world, used = World(), Raw()
    async with connected(access(Allow.NETWORK), world, used):
        await eventually(lambda: getattr(used, "told", None), what="the pods")
        asked = [lines.encode_line(lines.Connect(number, "shop/gone", "db", 1)) for number in range(1, 3001)]
        await used.stream.write(b"".join(asked))
        await eventually(lambda: len(used.told) == 3001, what="three thousand refusals")
        last = json.loads(used.told[-1])
    assert last["number"] == 3000
    assert world.asked == []


class Raw(PodAccess):
    """Sends lines as they are written."""

    async def talk(self, tunnel, stream):
        stream.respond(200)
        self.stream = stream
        self.told = []
        while data := await stream.read():
            self.rest = getattr(self, "rest", b"") + data
            *whole, self.rest = self.rest.split(b"\n")
            self.told += whole


@pytest.mark.parametrize(
    "sent",
    [
        b"{}\n",
        b"x" * (lines.MAX_LINE + 1),
        b'{"access": "environment", "number": 0, "pod": "a/b"}\n',
        b'{"access": "environment", "number": 1, "pod": "a/b"}\n' * 2,
        b'{"access": "ready", "pods": []}\n',
        b'{"access": "connect", "number": 1, "pod": "a/b", "host": "h", "port": 70000}\n',
        b'{"access": "files", "number": 1, "pod": "a/b", "paths": ' + json.dumps(["/a"] * 65).encode() + b"}\n",
    ],
)
@asynchronous
async def test_who_breaks_the_rules_loses_the_tunnel(sent):
    world, used = World(), Raw()
    async with connected(access(*Allow), world, used) as (session, _):
        await eventually(lambda: getattr(used, "told", None), what="the pods")
        await used.stream.write(sent)
        await session.connection.wait_closed()
        assert "a pod's world" in str(session.connection.closed.result()) or "twice" in str(
            session.connection.closed.result()
        )
    assert world.asked == []
