"""A port-forward against servers that say exactly these frames, and against any bytes."""

import asyncio
import base64
import hashlib
import random

import pytest

from sidestep.aio.time_limit import time_limit
from sidestep.kube.access import ClusterAccess
from sidestep.kube.api import Api
from sidestep.kube.errors import UnreachableClusterError
from sidestep.kube.portforward import MAX_MESSAGE, PortForward

BINARY, CONT, CLOSE, PING = 2, 0, 8, 9
KINDS = [0, 1, 2, 3, 8, 9, 10]
PORTS = b"\x82\x03\x00\x50\x00" + b"\x82\x03\x01\x50\x00"


def served(opcode, payload, *, final=True):
    """A frame as a server sends it: not masked."""
    size = len(payload)
    first = (0x80 if final else 0) | opcode
    if size < 126:
        return bytes((first, size)) + payload
    return bytes((first, 126)) + size.to_bytes(2, "big") + payload


async def told(data, *, accept=None, step=0):
    """What a forward gives of these bytes of a server: (bytes at its socket, its error, what the server was sent)."""
    sent = bytearray()

    async def serve(reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        key = next(each for each in head.split("\r\n") if each.startswith("sec-websocket-key")).split(": ")[1]
        original = requested(head, key)
        good = base64.b64encode(hashlib.sha1(original + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()).decode()
        answer = (
            "HTTP/1.1 101 X\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
            f"sec-websocket-accept: {accept or good}\r\n\r\n"
        )
        if step:
            writer.write(answer.encode())
            for begin in range(0, len(data), step):
                writer.write(data[begin : begin + step])
                await asyncio.sleep(0)
        else:
            writer.write(answer.encode() + data)
        try:
            writer.write_eof()
            while more := await reader.read(65536):
                sent.extend(more)
        except OSError:
            pass
        writer.close()

    keys = {}

    def requested(_head, lowered):
        return next(key for key in keys if key.decode().lower() == lowered)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    client = Api(ClusterAccess("127.0.0.1", server.sockets[0].getsockname()[1], None))
    upgrade = client.upgrade

    async def recorded(path, query, headers):
        keys[headers["Sec-WebSocket-Key"].encode()] = True
        return await upgrade(path, query, headers)

    client.upgrade = recorded
    try:
        forward = await PortForward.open(client, namespace="a", pod="b", port=80)
        got = b""
        async with time_limit(10):
            while part := await asyncio.get_running_loop().sock_recv(forward.socket, 65536):
                got += part
        await forward.aclose()
        forward.socket.close()
        return got, forward.error, bytes(sent)
    finally:
        await client.aclose()
        server.close()
        await asyncio.sleep(0.01)


def run(awaitable):
    return asyncio.run(asyncio.wait_for(awaitable, 30))


@pytest.mark.parametrize("step", [0, 1, 7])
def test_messages_fragments_and_pings_between_them(step):
    data = PORTS + served(BINARY, b"\0ab", final=False) + served(PING, b"p") + served(CONT, b"cd", final=False)
    data += served(CONT, b"") + served(BINARY, b"") + served(BINARY, b"\0" + b"x" * 300) + served(BINARY, b"\x07no")
    assert run(told(data, step=step))[:2] == (b"abcd" + b"x" * 300, "")


def test_the_nodes_error_is_kept_and_bounded():
    data = PORTS + served(BINARY, b"\x01nobody listens") + served(BINARY, b"\x01" + b"x" * 5000)
    got, error, _ = run(told(data))
    assert got == b""
    assert error.startswith("nobody listens")
    assert len(error) == 1000


@pytest.mark.parametrize(
    "data",
    [
        bytes((0x80 | BINARY, 0x80)) + b"abcd",  # masked by a server
        bytes((0xC0 | BINARY, 0)),  # a reserved bit
        served(CONT, b"x"),  # a continuation of nothing
        served(BINARY, b"\0x", final=False) + served(BINARY, b"y"),  # a message within a message
        served(PING, b"", final=False),
        served(PING, b"x" * 126),
        served(3, b""),
        bytes((0x80 | BINARY, 127)) + (MAX_MESSAGE + 1).to_bytes(8, "big"),
        served(BINARY, b"\x07x", final=False) + served(CONT, b"x" * 60_000, final=False) * 80,
    ],
    ids=["mask", "bit", "continuation", "nested", "cut ping", "long ping", "kind", "long frame", "long message"],
)
def test_what_breaks_the_rules_ends_the_forward_with_a_reason(data):
    got, error, _ = run(told(PORTS + data + served(BINARY, b"\0after")))
    assert b"after" not in got
    assert "broke the WebSocket" in error


def test_an_answer_that_is_no_websocket_is_refused():
    with pytest.raises(UnreachableClusterError, match="does not speak WebSocket"):
        run(told(b"", accept="x"))


@pytest.mark.parametrize("seed", range(20))
def test_any_bytes_end_it(seed):
    chance = random.Random(seed)
    data = b"".join(
        served(chance.choice(KINDS), chance.randbytes(chance.randrange(130)), final=chance.random() < 0.7)
        if chance.random() < 0.9
        else chance.randbytes(20)
        for _ in range(30)
    )
    run(told(PORTS + data))
