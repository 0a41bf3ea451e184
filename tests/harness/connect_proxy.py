"""A forward proxy for CONNECT (RFC 9110, 9.3.6), which resolves names by a table; and proxies that do otherwise."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Iterator, Mapping
from typing import Any, Self

from sidestep.aio.time_limit import time_limit

ADDRESS = "127.0.0.77"
"""An address of loopback that nothing else listens at."""


class ConnectProxy:
    """Serves until it is left. With `answer` every request gets these bytes; with `silent` none gets any."""

    def __init__(
        self,
        routes: Mapping[str, tuple[str, int]],
        *,
        authorization: str = "",
        answer: bytes | None = None,
        endless: bool = False,
        silent: bool = False,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.routes, self.authorization = routes, authorization
        self.answer, self.endless, self.silent, self.tls = answer, endless, silent, tls
        self.requests: list[str] = []
        self.heads: list[str] = []
        self.port = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        """Its URL, without credentials."""
        return f"{'https' if self.tls else 'http'}://{ADDRESS}:{self.port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accepted, ADDRESS, 0, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        # Not cancelled: a connection that is being opened would be left open.
        async with time_limit(10):
            await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0.01)  # aborted transports close in the next turns

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.split("\r\n")
            self.requests.append(first)
            self.heads.append(head)
            fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            if self.silent:
                await reader.read()
            elif self.endless:
                writer.write(b"HTTP/1.1 200 OK\r\n")
                while True:
                    writer.write(b"x-more: and more\r\n" * 1000)
                    await writer.drain()
            elif self.answer is not None:
                writer.write(self.answer)
                await writer.drain()
            elif self.authorization and fields.get("proxy-authorization") != self.authorization:
                writer.write(b"HTTP/1.1 407 No\r\ncontent-length: 0\r\n\r\n")
                await writer.drain()
            else:
                await self._tunnel(first.split(" ")[1], reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _tunnel(self, target: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(*self.routes[target])
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")

        async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(65536):
                    sink.write(data)
                    await sink.drain()

        both = [asyncio.create_task(copy(reader, back)), asyncio.create_task(copy(there, writer))]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)
            back.transport.abort()


@contextlib.contextmanager
def connect_proxy(routes: Mapping[str, tuple[str, int]], **options: Any) -> Iterator[ConnectProxy]:
    """A proxy in a thread of its own; options as of `ConnectProxy`."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="proxy")
    thread.start()
    proxy = ConnectProxy(routes, **options)
    try:
        asyncio.run_coroutine_threadsafe(proxy.__aenter__(), loop).result(10)
        yield proxy
    finally:
        asyncio.run_coroutine_threadsafe(proxy.__aexit__(), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
