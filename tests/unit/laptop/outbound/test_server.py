"""The proxy on the developer's machine: SOCKS5 and HTTP with real clients' bytes, and what breaks the rules."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket

import pytest

from sidestep.laptop.outbound import server as module
from sidestep.laptop.outbound import udp_association
from sidestep.laptop.outbound.server import OutboundProxy
from sidestep.model.errors import PeerError, RefusedError
from sidestep.protocols import capsules
from tests.unit.tunnel.ends import asynchronous
from tests.unit.tunnel.ends import eventually as _eventually

HELLO = b"\x05\x01\x00"


class Stream:
    """A stream of the tunnel whose far end the test has."""

    id = 1

    def __init__(self):
        self.written = bytearray()
        self.ended = asyncio.Event()
        self.over = False
        self.was_reset = False
        self.breaks = self.refused = False
        self._broken = asyncio.get_running_loop().create_future()
        self._incoming = asyncio.Queue()

    def answers(self, data):
        self._incoming.put_nowait(data)

    async def read(self):
        data = await self._incoming.get()
        if isinstance(data, PeerError):
            raise data
        return data

    async def write(self, data):
        self.refused = self.breaks
        if self.was_reset or self.breaks:
            raise PeerError("reset")
        self.written += data

    async def write_eof(self):
        self.ended.set()

    async def until_broken(self):
        return await self._broken

    def reset(self, code=0):
        self.was_reset = self.over = True
        self._incoming.put_nowait(b"")

    def discard(self):
        pass


class Granted:
    def __init__(self):
        self.stream = Stream()
        self.closed = False

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        self.closed = True


class Pod:
    """An access that remembers what it was asked for."""

    def __init__(self):
        self.asked = []
        self.granted = []
        self.refuses = ""
        self.ended = None

    async def connect(self, host, port, protocol="tcp"):
        self.asked.append((host, port, protocol))
        if self.refuses:
            raise RefusedError(self.refuses)
        self.granted.append(Granted())
        return self.granted[-1]


class Proxy(OutboundProxy):
    """A proxy that knows the test's clients."""

    clients: list[asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def proxy(pod, told=None):
    """A proxy, and its clients: all of them are closed with it."""
    async with Proxy(pod, tell=(told if told is not None else []).append) as found:
        found.clients = []
        try:
            yield found
        finally:
            for writer in found.clients:
                writer.close()
                with contextlib.suppress(ConnectionError):
                    await writer.wait_closed()


async def eventually(condition):
    await _eventually(condition, what="what the proxy does")


async def client(found):
    reader, writer = await asyncio.open_connection("127.0.0.1", found.urls.port)
    found.clients.append(writer)
    return reader, writer


async def said(reader, size):
    return await asyncio.wait_for(reader.readexactly(size), 20)


async def rest(reader):
    try:
        return await asyncio.wait_for(reader.read(), 20)
    except ConnectionError:
        return b""


@asynchronous
async def test_socks_by_name_and_bytes_both_ways():
    pod = Pod()
    async with proxy(pod) as found:
        reader, writer = await client(found)
        writer.write(HELLO + b"\x05\x01\x00\x03\x07db.shop\x15\x38" + b"early")
        assert await said(reader, 2) == b"\x05\x00"
        assert await said(reader, 10) == b"\x05\x00\x00\x01\0\0\0\0\0\0"
        stream = pod.granted[0].stream
        await eventually(lambda: bytes(stream.written) == b"early")
        stream.answers(b"answer")
        assert await said(reader, 6) == b"answer"
        writer.write_eof()
        await asyncio.wait_for(stream.ended.wait(), 20)
        stream.answers(b"")
        assert await rest(reader) == b""
        await eventually(lambda: pod.granted[0].closed)
        writer.close()
    assert pod.asked == [("db.shop", 5432, "tcp")]


@asynchronous
async def test_addresses_of_both_kinds_byte_by_byte():
    pod = Pod()
    async with proxy(pod) as found:
        for address, host in ((b"\x01\x0a\0\0\x07", "10.0.0.7"), (b"\x04\xfd" + b"\0" * 14 + b"\x07", "fd00::7")):
            reader, writer = await client(found)
            for each in HELLO + b"\x05\x01\x00" + address + b"\x00\x50":
                writer.write(bytes((each,)))
                await writer.drain()
                await asyncio.sleep(0)
            assert (await said(reader, 12))[2:4] == b"\x05\x00"
            assert pod.asked[-1] == (host, 80, "tcp")
            writer.close()


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (b"\x04\x01\x00\x50\x0a\0\0\x01\0", b"\0\x5b\0\0\0\0\0\0"),
        (b"\x05\x00", b"\x05\xff"),
        (b"\x05\x01\x01", b"\x05\xff"),
        (HELLO + b"\x05\x02\x00\x01\x0a\0\0\x01\0\x50", b"\x05\0\x05\x07"),
        (HELLO + b"\x05\x01\x00\x02\x0a\0\0\x01\0\x50", b"\x05\0\x05\x08"),
        (HELLO + b"\x05\x01\x00\x01\x0a\0\0\x01\0\0", b"\x05\0\x05\x01"),
        (HELLO + b"\x05\x01\x01\x01\x0a\0\0\x01\0\x50", b"\x05\0"),
        (HELLO + b"\x05\x01\x00\x03\x00\0\x50", b"\x05\0\x05\x01"),
        (HELLO + b"\x05\x01\x00\x03\x03a\nb\0\x50", b"\x05\0"),
        (HELLO + b"\x05\x01\x00\x03\x03a\xffb\0\x50", b"\x05\0\x05\x01"),
    ],
)
@asynchronous
async def test_what_breaks_the_rules_of_socks_reaches_nothing(words, answer):
    pod = Pod()
    async with proxy(pod) as found:
        reader, writer = await client(found)
        writer.write(words)
        writer.write_eof()
        heard = await rest(reader)
        if answer is not None:
            assert heard.startswith(answer)
        writer.close()
    assert pod.asked == []


@asynchronous
async def test_another_user_needs_the_password(monkeypatch):
    monkeypatch.setattr(module, "is_ours", lambda _sock: False)
    pod = Pod()
    async with proxy(pod) as found:
        reader, writer = await client(found)
        writer.write(HELLO)
        assert await rest(reader) == b"\x05\xff"
        password = found.urls.password.encode()
        for given, answer in ((b"wrong", b"\x01\x01"), (password, b"\x01\x00")):
            reader, writer = await client(found)
            writer.write(b"\x05\x02\x00\x02\x01\x08sidestep" + bytes((len(given),)) + given)
            assert await said(reader, 4) == b"\x05\x02" + answer
        writer.write(b"\x05\x01\x00\x01\x0a\0\0\x07\0\x50")
        assert (await said(reader, 10))[1] == 0
        for given, status in ((None, b"407"), (b"sidestep:wrong", b"407"), (b"sidestep:" + password, b"200")):
            reader, writer = await client(found)
            field = b"" if given is None else b"Proxy-Authorization: Basic " + base64.b64encode(given) + b"\r\n"
            writer.write(b"CONNECT db:80 HTTP/1.1\r\nHost: db:80\r\n" + field + b"\r\n")
            assert (await said(reader, 12)).split()[1] == status
    assert len(pod.asked) == 2


@asynchronous
async def test_other_users_take_no_place_of_this_one(monkeypatch):
    """They hold all that they may have, and more; then this user is served, and they with the password."""
    monkeypatch.setattr(module, "MAX_UNPROVEN", 4)
    monkeypatch.setattr(module, "MAX_CLIENTS", 2)
    ours = []
    monkeypatch.setattr(module, "is_ours", lambda sock: sock.getpeername() in ours)
    pod = Pod()
    async with proxy(pod) as found:
        strangers = [await client(found) for _ in range(7)]
        for reader, _ in strangers[:3]:  # the oldest ones were ended
            assert await rest(reader) == b""
        with socket.socket() as mine:
            mine.bind(("127.0.0.1", 0))
            mine.setblocking(False)
            ours.append(mine.getsockname())
            loop = asyncio.get_running_loop()
            await loop.sock_connect(mine, ("127.0.0.1", found.urls.port))
            await loop.sock_sendall(mine, HELLO + b"\x05\x01\x00\x01\x0a\0\0\x07\0\x50")
            await eventually(lambda: len(pod.granted) == 1)
            reader, writer = strangers[-1]
            password = found.urls.password.encode()
            writer.write(b"\x05\x01\x02\x01\x08sidestep" + bytes((len(password),)) + password)
            assert await said(reader, 4) == b"\x05\x02\x01\x00"
            waiting, _ = await client(found)  # two have shown that they may, so it waits in the queue
            writer.close()
            monkeypatch.setattr(module, "is_ours", lambda _sock: False)
            await eventually(lambda: not found._places.full)
        assert not waiting.at_eof()


@asynchronous
async def test_a_burst_of_clients_is_served_where_users_cannot_be_told(monkeypatch):
    """They all connect before the first one says anything."""
    monkeypatch.setattr(module, "MAX_UNPROVEN", 4)
    monkeypatch.setattr(module, "TELLS_USERS", False)
    monkeypatch.setattr(module, "is_ours", lambda _sock: False)
    pod = Pod()
    async with proxy(pod) as found:
        password = found.urls.password.encode()
        for reader, writer in [await client(found) for _ in range(40)]:
            writer.write(b"\x05\x01\x02\x01\x08sidestep" + bytes((len(password),)) + password)
            assert await said(reader, 4) == b"\x05\x02\x01\x00"


@asynchronous
async def test_what_the_node_ends_is_told_and_not_without_end():
    pod, told = Pod(), []
    async with proxy(pod, told):
        for number in range(100):
            pod.ended(f"the node has ended {number}\x1b[2J")
    assert told[0].startswith("the node has ended 0")
    assert "\x1b" not in told[0]
    assert 1 < len(told) < 45
    assert told[-1] == f"More connections were refused or ended: {100 - len(told[:-1])}."


@asynchronous
async def test_http_connect():
    pod = Pod()
    async with proxy(pod) as found:
        reader, writer = await client(found)
        writer.write(b"CONNECT [fd00::7]:5432 HTTP/1.1\r\nHost: [fd00::7]:5432\r\n\r\nearly")
        assert await said(reader, 39) == b"HTTP/1.1 200 Connection established\r\n\r\n"
        await eventually(lambda: bytes(pod.granted[0].stream.written) == b"early")
        writer.close()
    assert pod.asked == [("fd00::7", 5432, "tcp")]


@asynchronous
async def test_what_follows_a_head_with_bare_line_feeds_is_the_tunnels():
    pod = Pod()
    async with proxy(pod) as found:
        _, writer = await client(found)
        for each in (b"CONNECT db:5432 HTTP/1.1\nHost: db\n", b"\n", b"early\r\n\r\nmore"):
            writer.write(each)
            await writer.drain()
        await eventually(lambda: pod.granted and bytes(pod.granted[0].stream.written) == b"early\r\n\r\nmore")
    assert pod.asked == [("db", 5432, "tcp")]


@asynchronous
async def test_a_request_with_a_url_is_sent_on_alone():
    pod = Pod()
    async with proxy(pod) as found:
        reader, writer = await client(found)
        writer.write(
            b"POST http://db.shop:8080/a?b=1 HTTP/1.1\r\nHost: elsewhere\r\nProxy-Connection: keep-alive\r\n"
            b"Connection: x-hop, keep-alive\r\nX-Hop: 1\r\nX-Kept: 2\r\nProxy-Authorization: Basic eDp5\r\n"
            b"Content-Length: 3\r\n\r\nabcGET http://other/ HTTP/1.1\r\nHost: other\r\n\r\n"
        )
        await eventually(lambda: pod.granted and pod.granted[0].stream.written.endswith(b"abc"))
        stream = pod.granted[0].stream
        head = bytes(stream.written).partition(b"\r\n\r\n")[0].decode().split("\r\n")
        assert head[0] == "POST /a?b=1 HTTP/1.1"
        assert sorted(head[1:]) == ["Connection: close", "Content-Length: 3", "Host: db.shop:8080", "X-Kept: 2"]
        stream.answers(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        stream.answers(b"")
        assert (await rest(reader)).endswith(b"ok")
        writer.close()
        assert b"other" not in stream.written
    assert pod.asked == [("db.shop", 8080, "tcp")]


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET https://db/ HTTP/1.1\r\nHost: db\r\n\r\n",
        b"GET http://user@db/ HTTP/1.1\r\nHost: db\r\n\r\n",
        b"GET http:///x HTTP/1.1\r\nHost: db\r\n\r\n",
        b"GET http://db:0/ HTTP/1.1\r\nHost: db\r\n\r\n",
        b"GET http://db:99999/ HTTP/1.1\r\nHost: db\r\n\r\n",
        b"CONNECT db HTTP/1.1\r\nHost: db\r\n\r\n",
        b"CONNECT db:1_0 HTTP/1.1\r\nHost: db\r\n\r\n",
        b"CONNECT user@db:80 HTTP/1.1\r\nHost: db\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        b"\n\nGET http://db/ HTTP/1.1\r\nHost: db\r\n\r\n",
        b"\xb5GET http://db/ HTTP/1.1\r\nHost: db\r\n\r\n",
        b"GET http://db/ HTTP/1.1\r\nHost : db\r\n\r\n",
        b"GET http://db/ HTTP/1.1\r\nHost: db\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    ],
)
@asynchronous
async def test_what_is_no_request_for_a_proxy_reaches_nothing(request_):
    pod = Pod()
    async with proxy(pod) as found:
        reader, writer = await client(found)
        writer.write(request_)
        assert (await rest(reader)).startswith(b"HTTP/1.1 400 ")
        writer.close()
    assert pod.asked == []


@asynchronous
async def test_a_refusal_is_answered_and_told_but_not_without_end():
    pod, told = Pod(), []
    pod.refuses = "the pod knows no host db\x1b[2J"
    async with proxy(pod, told) as found:
        reader, writer = await client(found)
        writer.write(b"GET http://db/ HTTP/1.1\r\nHost: db\r\n\r\n")
        answer = await rest(reader)
        assert answer.startswith(b"HTTP/1.1 502 ")
        assert b"the pod knows no host db" in answer
        for _ in range(60):
            reader, writer = await client(found)
            writer.write(HELLO + b"\x05\x01\x00\x03\x02db\x00\x50")
            assert (await rest(reader))[2:4] == b"\x05\x01"
    assert told[0].startswith("No connection to db:80: the pod knows no host db")
    assert "\x1b" not in told[0]
    assert len(told) < 45


@asynchronous
async def test_a_refusal_is_read_even_by_a_client_that_sends_on():
    pod = Pod()
    pod.refuses = "no"
    async with proxy(pod) as found:
        for start in (
            b"POST http://db/ HTTP/1.1\r\nHost: db\r\nContent-Length: 500000\r\n\r\n",
            b"POST / HTTP/1.0\r\n\r\n",
        ):
            reader, writer = await client(found)
            writer.write(start + b"x" * 500_000)
            await writer.drain()
            answer = await asyncio.wait_for(reader.read(), 20)
            assert answer.startswith((b"HTTP/1.1 502 ", b"HTTP/1.1 400 "))
            assert int(answer.partition(b"Content-Length: ")[2].split()[0]) == len(answer.partition(b"\r\n\r\n")[2])


@asynchronous
async def test_an_answer_that_breaks_off_is_no_end():
    pod = Pod()
    async with proxy(pod) as found:
        reader, writer = await client(found)
        writer.write(b"GET http://db/ HTTP/1.1\r\nHost: db\r\n\r\n")
        await eventually(lambda: pod.granted and pod.granted[0].stream.written)
        stream = pod.granted[0].stream
        stream.answers(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        assert (await said(reader, 23)).endswith(b"half")
        stream.answers(PeerError("reset"))
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), 20)


@asynchronous
async def test_an_answer_before_the_whole_request_was_taken():
    pod = Pod()
    async with proxy(pod) as found:
        reader, writer = await client(found)
        writer.write(b"POST http://db/ HTTP/1.1\r\nHost: db\r\nContent-Length: 9\r\n\r\n")
        await eventually(lambda: pod.granted and pod.granted[0].stream.written)
        stream = pod.granted[0].stream
        stream.breaks = stream.over = True
        writer.write(b"some")
        await eventually(lambda: stream.refused)
        stream.answers(b"HTTP/1.1 413 Too Large\r\n\r\n")
        assert (await said(reader, 26)).startswith(b"HTTP/1.1 413 ")
        assert not stream.was_reset
        stream.answers(b"")
        assert await rest(reader) == b""


@asynchronous
async def test_a_length_beside_chunks_is_not_sent_on():
    pod = Pod()
    async with proxy(pod) as found:
        _, writer = await client(found)
        fields = b"Host: db\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
        writer.write(b"POST http://db/ HTTP/1.1\r\n" + fields + b"2\r\nab\r\n0\r\n\r\n")
        await eventually(lambda: pod.granted and pod.granted[0].stream.written.endswith(b"0\r\n\r\n"))
        assert b"ontent-" not in pod.granted[0].stream.written


@asynchronous
async def test_an_error_of_one_client_ends_no_other(monkeypatch):
    def out_of_descriptors(*_, **__):
        raise OSError(24, "Too many open files")

    pod = Pod()
    async with proxy(pod) as found:
        reader, writer = await client(found)
        with monkeypatch.context() as patched:
            patched.setattr(module, "UdpAssociation", out_of_descriptors)
            writer.write(HELLO + b"\x05\x03\x00\x01\0\0\0\0\0\0")
            assert await rest(reader) == b"\x05\0"
        reader, writer = await client(found)
        writer.write(HELLO)
        assert await said(reader, 2) == b"\x05\0"


@asynchronous
async def test_a_head_without_end_is_cut():
    pod = Pod()
    async with proxy(pod) as found:
        reader, writer = await client(found)
        writer.write(b"GET http://db/ HTTP/1.1\r\n" + b"a: b\r\n" * 20_000)
        assert await rest(reader) == b""
        writer.close()
    assert pod.asked == []


@asynchronous
async def test_datagrams():
    pod = Pod()
    async with proxy(pod) as found:
        reader, writer = await client(found)
        writer.write(HELLO + b"\x05\x03\x00\x01\0\0\0\0\0\0")
        reply = (await said(reader, 12))[2:]
        assert reply[:8] == b"\x05\0\0\x01\x7f\0\0\x01"
        loop, heard = asyncio.get_running_loop(), asyncio.Queue()

        class Heard(asyncio.DatagramProtocol):
            def datagram_received(self, data, addr):
                heard.put_nowait(data)

        there = ("127.0.0.1", int.from_bytes(reply[8:], "big"))
        transport, _ = await loop.create_datagram_endpoint(Heard, remote_addr=there)
        stranger, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=there)
        header = b"\0\0\0\x03\x03dns\0\x35"
        transport.sendto(b"\0\0\x01\x03\x03dns\0\x35fragment")
        transport.sendto(header + b"question")
        await eventually(lambda: pod.granted and pod.granted[0].stream.written)
        stranger.sendto(header + b"not mine")
        transport.sendto(header + b"again")
        stream = pod.granted[0].stream
        await eventually(lambda: bytes(stream.written) == capsules.encode(b"question") + capsules.encode(b"again"))
        stream.answers(capsules.encode(b"answer"))
        assert await asyncio.wait_for(heard.get(), 20) == header + b"answer"
        assert pod.asked == [("dns", 53, "udp")]
        writer.close()
        await eventually(lambda: pod.granted[0].closed)
        transport.close()
        stranger.close()
        await asyncio.sleep(0)


@asynchronous
async def test_datagrams_of_another_user_are_not_taken(monkeypatch):
    asked = []
    monkeypatch.setattr(udp_association, "sends_for", lambda _sock, sender: asked.append(sender) or len(asked) > 2)
    pod = Pod()
    async with proxy(pod) as found:
        reader, writer = await client(found)
        writer.write(HELLO + b"\x05\x03\x00\x01\0\0\0\0\0\0")
        there = ("127.0.0.1", int.from_bytes((await said(reader, 12))[10:], "big"))
        senders = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(3)]
        for sender, name in zip(senders, (b"one", b"two", b"own"), strict=True):
            sender.sendto(b"\0\0\0\x03\x03" + name + b"\0\x35question", there)
        await eventually(lambda: pod.granted)
        senders[0].sendto(b"\0\0\0\x03\x03one\0\x35question", there)
        senders[2].sendto(b"\0\0\0\x03\x03end\0\x35question", there)
        await eventually(lambda: len(pod.asked) == 2)
        for sender in senders:
            sender.close()
    assert pod.asked == [("own", 53, "udp"), ("end", 53, "udp")]
    assert len(asked) == 3


@asynchronous
async def test_more_clients_than_it_takes_wait(monkeypatch):
    monkeypatch.setattr(module, "MAX_CLIENTS", 2)
    pod = Pod()
    async with proxy(pod) as found:
        first = [await client(found) for _ in range(3)]
        for _, writer in first:
            writer.write(HELLO)
        for reader, _ in first[:2]:
            assert await said(reader, 2) == b"\x05\0"
        waiting = asyncio.create_task(first[2][0].readexactly(2))
        assert not (await asyncio.wait({waiting}, timeout=0.2))[0]
        first[0][1].close()
        assert await asyncio.wait_for(waiting, 20) == b"\x05\0"
        for _, writer in first:
            writer.close()
