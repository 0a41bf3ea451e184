"""WebSocket peers of the `websockets` library, client and server, for tests that do one thing after another.

Each peer has a thread with an event loop. The library's own peers with threads (`websockets.sync`) read in one thread
while they write in another. OpenSSL does not allow that of one connection (SSL_read(3), openssl-threads(7)), and Python
3.11 does not prevent it: over TLS about one in a hundred handshakes then waits for ever, without any proxy.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from tests.harness import scene
from tests.harness.namespaces import Netns
from tests.harness.nginx import client_context

T = TypeVar("T")
LONG = 30.0
"""Seconds that a step may take at most."""


class _LoopThread:
    """An event loop in a thread."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name)
        self._thread.start()

    def call(self, coroutine: Coroutine[Any, Any, T], within: float = LONG) -> T:
        """What a coroutine returns. Raises TimeoutError."""
        return asyncio.run_coroutine_threadsafe(asyncio.wait_for(coroutine, within), self._loop).result(within + LONG)

    def stop(self) -> None:
        """End the loop and the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LONG)
        self._loop.close()


@contextlib.contextmanager
def _loop_thread(name: str) -> Iterator[_LoopThread]:
    made = _LoopThread(name)
    try:
        yield made
    finally:
        made.stop()


@contextlib.contextmanager
def websocket_server(
    name: str,
    *,
    netns: Netns | None = None,
    address: str = "127.0.0.1",
    port: int = 0,
    tls: ssl.SSLContext | None = None,
    compression: str | None = None,
    received: list[object] | None = None,
) -> Iterator[int]:
    """A WebSocket server that says its name and returns every message, which `received` gets; yields its port."""

    async def echo(connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            await connection.send(name)
            async for message in connection:
                if received is not None:
                    received.append(message)
                await connection.send(message)

    async def start() -> Any:
        return await serve(echo, sock=sock, ssl=tls, max_size=None, compression=compression)

    async def stop(server: Any) -> None:
        server.close()
        await server.wait_closed()

    def listen() -> socket.socket:
        return socket.create_server((address, port))

    sock = netns.call(listen) if netns else listen()
    with _loop_thread(f"websocket {name}") as thread:
        server = thread.call(start())
        try:
            yield sock.getsockname()[1]
        finally:
            thread.call(stop(server))


class WebSocketClient:
    """A client's end. Each method waits at most LONG seconds (TimeoutError), and raises ConnectionClosed."""

    def __init__(self, thread: _LoopThread, connection: ClientConnection) -> None:
        self._thread = thread
        self._connection = connection

    def recv(self, timeout: float = LONG) -> str | bytes:
        """The next message."""
        return self._thread.call(self._connection.recv(), timeout)

    def send(self, message: str | bytes) -> None:
        """Send a message."""
        self._thread.call(self._connection.send(message))

    def ping(self) -> float:
        """Seconds until the other end has answered."""

        async def ask() -> float:
            return await (await self._connection.ping())

        return self._thread.call(ask())

    def close(self, code: int = 1000, reason: str = "") -> None:
        """End the connection."""
        self._thread.call(self._connection.close(code, reason))

    @property
    def close_code(self) -> int | None:
        """What the connection was ended with."""
        return self._connection.close_code


@contextlib.contextmanager
def websocket_client(
    shop: scene.Shop, port: int, *, header: str | None = None, compression: str | None = None
) -> Iterator[WebSocketClient]:
    """A client of the shop's app, over TLS on its TLS port."""
    raw = shop.space.client.call(lambda: socket.create_connection((shop.space.ip, port), timeout=20))
    tls = client_context(shop.authority.pem, alpn=["http/1.1"]) if port == scene.TLS_PORT else None
    scheme = "ws" if tls is None else "wss"
    fields = dict([header.split(": ")]) if header else {}

    async def begin() -> ClientConnection:
        return await connect(
            f"{scheme}://{scene.HOST}:{port}/ws",
            sock=raw,
            ssl=tls,
            additional_headers=fields,
            max_size=None,
            compression=compression,
            open_timeout=LONG,
        )

    with _loop_thread("websocket client") as thread:
        client = WebSocketClient(thread, thread.call(begin()))
        try:
            yield client
        finally:
            client.close()
