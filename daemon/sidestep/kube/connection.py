"""One HTTP/1.1 connection to an API server: successive requests, a stream, or the start of a WebSocket.

h11 parses. Foreign exceptions become `UnreachableClusterError` here. TCP keepalive detects an unreachable machine
within half a minute, also on a watch that is silent for minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import h11

from sidestep.kube.access import ClusterAccess
from sidestep.kube.errors import UnreachableClusterError

CONNECT_TIMEOUT = 10.0
"""Seconds for TCP and TLS."""
READ_SIZE = 64 * 1024
MAX_HEAD = 64 * 1024
"""Bytes of a response head."""

Headers = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """The head of a response."""

    status: int
    headers: dict[str, str]


class HttpConnection:
    """One connection, created by `open`. Carries one exchange at a time."""

    def __init__(self, access: ClusterAccess, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._access = access
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)

    @classmethod
    async def open(cls, access: ClusterAccess) -> Self:
        """Connect to the API server. Raises UnreachableClusterError."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                name = (access.server_name or access.host) if access.tls is not None else None
                reader, writer = await asyncio.open_connection(
                    access.host, access.port, ssl=access.tls, server_hostname=name, limit=READ_SIZE
                )
        except TimeoutError as error:
            raise UnreachableClusterError(f"the API server {access} does not answer") from error
        except ssl.SSLError as error:
            reason = error.reason or str(error)
            if isinstance(error, ssl.SSLCertVerificationError):
                reason = error.verify_message
            raise UnreachableClusterError(f"TLS with the API server {access} failed: {reason}") from error
        except OSError as error:
            # asyncio puts a text of its own into strerror; a failure of several addresses has no errno.
            reason = os.strerror(error.errno).lower() if error.errno and error.errno > 0 else str(error)
            raise UnreachableClusterError(f"the API server {access} cannot be reached: {reason}") from error
        _keep_alive(writer.get_extra_info("socket"))
        return cls(access, reader, writer)

    @property
    def reusable(self) -> bool:
        """Whether the connection can carry another request."""
        return self._http.our_state is h11.IDLE and self._http.their_state is h11.IDLE and not self._reader.at_eof()

    async def send(self, method: str, target: str, *, headers: Headers = (), body: bytes = b"") -> ResponseHead:
        """Send a request; returns the response head. Raises UnreachableClusterError."""
        fields = [("host", self._access.host), ("user-agent", "sidestep"), *headers]
        authorization = self._access.authorization()
        if authorization:
            fields.append(("authorization", authorization))
        if body or method in {"POST", "PUT", "PATCH"}:
            fields.append(("content-length", str(len(body))))
        request = h11.Request(method=method, target=self._access.base + target, headers=fields)
        with self._mapped():
            parts = [self._http.send(request) or b""]
            if body:
                parts.append(self._http.send(h11.Data(data=body)) or b"")
            parts.append(self._http.send(h11.EndOfMessage()) or b"")
            self._writer.write(b"".join(parts))
            await self._writer.drain()
            while True:
                event = await self._next()
                if isinstance(event, h11.Response | h11.InformationalResponse):
                    if isinstance(event, h11.InformationalResponse) and event.status_code != 101:
                        continue
                    found = {name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers}
                    return ResponseHead(event.status_code, found)

    async def parts(self) -> AsyncGenerator[bytes]:
        """Yield the response body as it arrives. Raises UnreachableClusterError."""
        with self._mapped():
            while True:
                event = await self._next()
                if isinstance(event, h11.Data):
                    yield bytes(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
                        self._http.start_next_cycle()
                    return
                else:
                    raise UnreachableClusterError(f"the API server {self._access} broke off")

    async def body(self, limit: int) -> bytes:
        """Return the whole response body. Raises UnreachableClusterError when it is longer than `limit` bytes."""
        found, size = [], 0
        async with contextlib.aclosing(self.parts()) as parts:
            async for part in parts:
                size += len(part)
                if size > limit:
                    raise UnreachableClusterError(
                        f"the API server {self._access} answered with more than {limit} bytes"
                    )
                found.append(part)
        return b"".join(found)

    def take_over(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
        """After a 101: return the streams, and the bytes that arrived after the head."""
        trailing, _closed = self._http.trailing_data
        return self._reader, self._writer, bytes(trailing)

    def close(self) -> None:
        """Close immediately."""
        transport = self._writer.transport
        transport.abort()

    async def _next(self) -> h11.Event | type[h11.PAUSED]:
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                self._http.receive_data(await self._reader.read(READ_SIZE))
                continue
            return event  # type: ignore[return-value]  # NEED_DATA is handled above

    @contextlib.contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except (OSError, h11.ProtocolError, EOFError) as error:
            raise UnreachableClusterError(f"the API server {self._access} broke off: {error}") from error


def _keep_alive(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
