"""The daemon's end and the CLI's end, talking to each other."""

import asyncio
import contextlib
import socket

import pytest
from msgspec.structs import replace

from sidestep import __version__
from sidestep.model.errors import PeerError, RefusedError
from sidestep.tunnel.channel import SocketChannel
from sidestep.tunnel.cli_end import CliEnd
from sidestep.tunnel.connection import Connection
from sidestep.tunnel.daemon_end import DaemonEnd
from sidestep.tunnel.messages import VERSION, Dropped, Ended, Hello, HelloAnswer, PodState, Request, State, encode
from tests.unit.tunnel.ends import LIMITS, OPENING, asynchronous, attach, eventually, tunnel

HELLO = Hello(VERSION, "0.1.0", "n1", "00", OPENING.intercept, "shop", "orders")


class Laptop:
    """A CLI's end that remembers what it hears; its handler is `handler`, a coroutine on a socket."""

    def __init__(self, handler=None, *, limits=LIMITS):
        self.hellos = []
        self.events = []
        self.openings = []
        self._handler = handler
        self._tasks = []
        self.end = CliEnd(dial=self._dial, on_hello=self.hellos.append, on_event=self.events.append, limits=limits)

    async def _dial(self, opening):
        self.openings.append(opening)
        if self._handler is None:
            raise RefusedError("no handler answers at 127.0.0.1:1: connection refused\r\nx: y")
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        self._tasks.append(asyncio.create_task(self._handler(theirs)))
        return SocketChannel(ours)


@contextlib.asynccontextmanager
async def session(laptop, *, limits=LIMITS):
    left, right = socket.socketpair()
    daemon = DaemonEnd(Connection(limits=limits), limits=limits)
    await attach(left, daemon.connection)
    await attach(right, laptop.end.connection)
    try:
        yield daemon
    finally:
        daemon.connection.close()
        await daemon.connection.wait_closed()
        laptop.end.connection.close()
        await laptop.end.run()


def request(path="/"):
    return Request(1.0, "shop/orders-1", 8443, "10.0.0.7", 5000, "GET", path, "orders.shop")


@asynchronous
async def test_hello_is_answered():
    laptop = Laptop()
    async with session(laptop) as daemon:
        answer = await daemon.hello(HELLO)
        assert answer == HelloAnswer(VERSION, (OPENING.intercept,), software=__version__)
        assert laptop.hellos == [HELLO]


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (encode(HelloAnswer(VERSION + 1, (OPENING.intercept,))), RefusedError),
        (encode(HelloAnswer(VERSION, ("another",))), RefusedError),
        (b"{}", PeerError),
        (b"x" * (LIMITS.hello + 1), PeerError),
        (b"", PeerError),
    ],
)
@asynchronous
async def test_an_unfit_answer_to_hello_is_refused(body, error):
    async def serve(stream):
        while await stream.read():
            pass
        stream.respond(200)
        await stream.write(body)
        await stream.write_eof()

    async with tunnel(serve) as (client, _server):
        with pytest.raises(error):
            await DaemonEnd(client).hello(HELLO)


@asynchronous
async def test_a_hello_without_answer_ends_in_time():
    async def serve(stream):
        await stream.until_broken()

    async with tunnel(serve) as (client, _server):
        with pytest.raises(PeerError, match="did not answer"):
            await DaemonEnd(client, limits=replace(LIMITS, hello_timeout=0.05)).hello(HELLO)


@asynchronous
async def test_a_verifier_has_the_last_word():
    def never(_hello, _answer):
        raise RefusedError("the proof is wrong")

    async with session(Laptop()) as daemon:
        with pytest.raises(RefusedError, match="proof"):
            await daemon.hello(HELLO, verify=never)


@asynchronous
async def test_a_stream_reaches_the_handler_and_back():
    async def handler(sock):
        loop = asyncio.get_running_loop()
        with sock:
            data = await loop.sock_recv(sock, 100)
            await loop.sock_sendall(sock, b"you said " + data)

    laptop = Laptop(handler)
    async with session(laptop) as daemon:
        stream = await daemon.open(OPENING)
        await stream.write(b"hello")
        assert await stream.read() == b"you said hello"
        assert await stream.read() == b""
        assert laptop.openings == [OPENING]


@asynchronous
async def test_a_refusal_carries_its_reason_as_one_line():
    async with session(Laptop()) as daemon:
        with pytest.raises(RefusedError) as caught:
            await daemon.open(OPENING)
        assert str(caught.value) == "no handler answers at 127.0.0.1:1: connection refused??x: y"
        await eventually(lambda: daemon.connection.streams == 0, what="the stream to be forgotten")


@asynchronous
async def test_a_handler_that_never_connects_is_given_up():
    async def serve(stream):
        await stream.until_broken()

    limits = replace(LIMITS, open_timeout=0.05)
    async with tunnel(serve) as (client, server):
        with pytest.raises(RefusedError, match="did not answer"):
            await DaemonEnd(client, limits=limits).open(OPENING)
        await eventually(lambda: server.streams == 0, what="the other end to be told")


@asynchronous
async def test_an_opening_that_is_cancelled_is_reset():
    async def serve(stream):
        await stream.until_broken()

    async with tunnel(serve) as (client, server):
        opening = asyncio.create_task(DaemonEnd(client).open(OPENING))
        await eventually(lambda: server.streams == 1, what="the stream")
        opening.cancel()
        await eventually(lambda: server.streams == 0, what="the reset")


@asynchronous
async def test_a_closed_tunnel_refuses():
    async with session(Laptop()) as daemon:
        daemon.connection.close()
        with pytest.raises(RefusedError, match="gone"):
            await daemon.open(OPENING)


@asynchronous
async def test_other_streams_are_refused():
    laptop = Laptop()
    async with session(laptop) as daemon:
        base = ((":scheme", "https"), (":authority", "session"))
        udp = daemon.connection.open(((":method", "CONNECT"), (":protocol", "connect-ip"), (":path", "/"), *base))
        assert dict(await udp.response())[":status"] == "501"
        other = daemon.connection.open(((":method", "GET"), (":path", "/"), *base))
        assert dict(await other.response())[":status"] == "404"


@asynchronous
async def test_events_arrive_in_order_and_the_last_says_why():
    laptop = Laptop()
    async with session(laptop) as daemon:
        running = asyncio.create_task(daemon.run())
        state = State((PodState("shop/orders-1", "active"),))
        daemon.publish(state)
        daemon.publish(request("/1"))
        daemon.publish(request("/2"))
        await eventually(lambda: len(laptop.events) == 3, what="three events")
        await daemon.end(Ended("ended by ada"))
        assert await running is None
        assert laptop.events == [state, request("/1"), request("/2"), Ended("ended by ada")]


@asynchronous
async def test_events_are_bounded_lossy_and_counted():
    laptop = Laptop()
    async with session(laptop, limits=replace(LIMITS, event_queue=10)) as daemon:
        for number in range(25):
            daemon.publish(State((PodState(f"shop/orders-{number}", "active"),)))
            daemon.publish(request(f"/{number}"))
        running = asyncio.create_task(daemon.run())
        await eventually(lambda: len(laptop.events) == 12, what="what is left")
        assert laptop.events[0] == State((PodState("shop/orders-24", "active"),))
        assert laptop.events[1] == Dropped(15)
        assert [event.path for event in laptop.events[2:]] == [f"/{number}" for number in range(15, 25)]
        assert daemon.dropped == 15
        daemon.connection.close()
        await running


@asynchronous
async def test_an_event_line_without_end_breaks_the_stream_not_the_memory():
    laptop = Laptop(limits=replace(LIMITS, event_line=1000))
    async with session(laptop) as daemon:
        stream = daemon.connection.open(
            ((":method", "POST"), (":scheme", "https"), (":authority", "session"), (":path", "/v1/events"))
        )
        with pytest.raises(PeerError):
            await stream.write(b"x" * 1_000_000)
        assert laptop.events == []


async def _echo(sock):
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(sock, 1000):
        await loop.sock_sendall(sock, data)
    sock.close()


@asynchronous
async def test_a_connection_beyond_what_the_session_takes_waits_its_turn():
    limits = replace(LIMITS, streams=4)
    async with session(Laptop(_echo), limits=limits) as daemon:
        first = [await daemon.open(OPENING) for _ in range(4)]
        late = [asyncio.create_task(daemon.open(OPENING)) for _ in range(4)]
        await asyncio.sleep(0)
        late.pop(1).cancel()
        assert not any(task.done() for task in late)
        for task in late:
            first.pop().reset()
            await task
        assert daemon.connection.streams == 4


@asynchronous
async def test_a_turn_that_does_not_come_is_a_refusal():
    limits = replace(LIMITS, streams=1, open_timeout=0.2)
    async with session(Laptop(_echo), limits=limits) as daemon:
        first = await daemon.open(OPENING)
        results = await asyncio.gather(*(daemon.open(OPENING) for _ in range(3)), return_exceptions=True)
        assert all(isinstance(each, RefusedError) for each in results)
        assert "others wait" in str(results[2])
        first.reset()
        assert await daemon.open(OPENING)


@asynchronous
async def test_a_turn_that_comes_in_the_moment_of_a_cancellation_goes_to_the_next():
    async with session(Laptop(_echo), limits=replace(LIMITS, streams=2)) as daemon:
        first, _ = await daemon.open(OPENING), await daemon.open(OPENING)
        gone, late = (asyncio.create_task(daemon.open(OPENING)) for _ in range(2))
        await asyncio.sleep(0)
        gone.cancel()
        first.reset()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert await late


@asynchronous
async def test_those_who_wait_learn_that_the_session_is_gone():
    async with session(Laptop(_echo), limits=replace(LIMITS, streams=1)) as daemon:
        await daemon.open(OPENING)
        late = asyncio.create_task(daemon.open(OPENING))
        await asyncio.sleep(0)
        daemon.connection.close()
        with pytest.raises(RefusedError, match="gone"):
            await late


@asynchronous
async def test_no_event_is_longer_than_the_other_end_takes():
    laptop = Laptop(limits=replace(LIMITS, event_line=100_000))
    async with session(laptop, limits=replace(LIMITS, event_line=100_000)) as daemon:
        running = asyncio.create_task(daemon.run())
        pods = tuple(PodState(f"shop/orders-{number}", "active", "x" * 4000) for number in range(40))
        daemon.publish(State(pods))
        daemon.publish(replace(request("/long"), path="x" * 200_000))
        daemon.publish(request("/short"))
        await eventually(lambda: len(laptop.events) == 3, what="what fits, and the count")
        short = State(tuple(PodState(pod.pod, pod.state) for pod in pods))
        assert laptop.events == [short, request("/short"), Dropped(1)]
        assert daemon.dropped == 1
        daemon.connection.close()
        await running
