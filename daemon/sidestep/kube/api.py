"""Requests to an API server, as paths and JSON. Keeps a few idle connections and no other state.

    await api.get(path)                        one object or list, bytes
    await api.create / patch / delete
    async with api.stream(path) as lines       a watch
    await api.upgrade(path, protocol)          the streams of a WebSocket

An unsuccessful answer raises `ApiError` with the server's message. When an idle connection turns out to be closed, the
request is sent once more on a new connection, provided that it may safely be repeated.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from urllib.parse import quote, urlencode

import msgspec

from sidestep.kube.access import ClusterAccess
from sidestep.kube.connection import HttpConnection, ResponseHead
from sidestep.kube.errors import ApiError, UnreachableClusterError

TIMEOUT = 30.0
"""Seconds for one request and its answer. An API server gives up after 60 s."""
MAX_BODY = 64 * 1024 * 1024
"""Bytes of an answer. Lists are read in pages of a few MiB."""
MAX_ERROR = 64 * 1024
MAX_LINE = 8 * 1024 * 1024
"""Bytes of one watch event. etcd stores objects of at most 1.5 MiB."""
MAX_IDLE = 4
"""Idle connections kept for later requests."""

MERGE_PATCH = "application/merge-patch+json"
JSON = "application/json"

Query = Mapping[str, str | int]


class _Status(msgspec.Struct):
    """meta/v1 Status: the fields that describe an error."""

    message: str = ""
    reason: str = ""


class Api:
    """Client of one API server, for one event loop."""

    def __init__(self, access: ClusterAccess) -> None:
        self.access = access
        self._idle: list[HttpConnection] = []

    async def get(self, path: str, query: Query | None = None, *, accept: str = JSON) -> bytes:
        """Send GET; returns the body. Raises ApiError, UnreachableClusterError."""
        return await self._exchange("GET", _target(path, query), accept=accept)

    async def create(self, path: str, body: bytes, query: Query | None = None) -> bytes:
        """Send POST; returns the body. Raises ApiError, UnreachableClusterError."""
        return await self._exchange("POST", _target(path, query), body)

    async def patch(self, path: str, body: bytes, *, kind: str = MERGE_PATCH) -> bytes:
        """Send PATCH (RFC 7386 unless `kind` says otherwise); returns the body. Raises ApiError,
        UnreachableClusterError.
        """
        return await self._exchange("PATCH", path, body, content_type=kind)

    async def delete(self, path: str, body: bytes = b"") -> bytes:
        """Send DELETE with DeleteOptions as the body; returns the body. Raises ApiError, UnreachableClusterError."""
        return await self._exchange("DELETE", path, body)

    @contextlib.asynccontextmanager
    async def stream(self, path: str, query: Query, *, accept: str = JSON) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open a watch and yield its lines; they end when the server ends it. Raises ApiError,
        UnreachableClusterError.
        """
        connection = await HttpConnection.open(self.access)
        try:
            async with asyncio.timeout(TIMEOUT):
                head = await connection.send("GET", _target(path, query), headers=[("accept", accept)])
                if head.status != 200:
                    raise await _failure(head, connection)
            async with contextlib.aclosing(_lines(connection)) as lines:
                yield lines
        except TimeoutError as error:
            raise UnreachableClusterError(f"the API server {self.access} does not answer") from error
        finally:
            connection.close()

    async def upgrade(
        self, path: str, query: Query, *, protocol: str
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
        """Open a WebSocket (RFC 6455) with this subprotocol. Raises ApiError, UnreachableClusterError."""
        connection = await HttpConnection.open(self.access)
        key = base64.b64encode(os.urandom(16)).decode()
        headers = [
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", key),
            ("sec-websocket-protocol", protocol),
        ]
        try:
            async with asyncio.timeout(TIMEOUT):
                head = await connection.send("GET", _target(path, query), headers=headers)
                if head.status != 101:
                    raise await _failure(head, connection)
        except TimeoutError as error:
            connection.close()
            raise UnreachableClusterError(f"the API server {self.access} does not answer") from error
        except BaseException:
            connection.close()
            raise
        return connection.take_over()

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()

    async def _exchange(
        self, method: str, target: str, body: bytes = b"", *, accept: str = JSON, content_type: str = JSON
    ) -> bytes:
        headers = [("accept", accept)]
        if body:
            headers.append(("content-type", content_type))
        connection, kept = await self._connection()
        try:
            async with asyncio.timeout(TIMEOUT):
                try:
                    head = await connection.send(method, target, headers=headers, body=body)
                except UnreachableClusterError:
                    if not kept or method == "POST":
                        raise
                    connection.close()
                    connection = await HttpConnection.open(self.access)
                    head = await connection.send(method, target, headers=headers, body=body)
                if head.status >= 300:
                    raise await _failure(head, connection)
                answer = await connection.body(MAX_BODY)
        except TimeoutError as error:
            connection.close()
            raise UnreachableClusterError(f"the API server {self.access} does not answer") from error
        except BaseException:
            connection.close()
            raise
        if connection.reusable and len(self._idle) < MAX_IDLE:
            self._idle.append(connection)
        else:
            connection.close()
        return answer

    async def _connection(self) -> tuple[HttpConnection, bool]:
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                return connection, True
            connection.close()
        return await HttpConnection.open(self.access), False


def escape(name: str) -> str:
    """Escape a name for use as one segment of a path."""
    return quote(name, safe="")


def _target(path: str, query: Query | None) -> str:
    return f"{path}?{urlencode(query)}" if query else path


async def _failure(head: ResponseHead, connection: HttpConnection) -> ApiError:
    body = await connection.body(MAX_ERROR)
    try:
        status = msgspec.json.decode(body, type=_Status)
    except (msgspec.DecodeError, UnicodeDecodeError):
        status = _Status()
    message = status.message or f"the API server answered with status {head.status}"
    return ApiError(head.status, status.reason, " ".join(message.split())[:1000])


async def _lines(connection: HttpConnection) -> AsyncGenerator[bytes]:
    rest = b""
    async with contextlib.aclosing(connection.parts()) as parts:
        async for part in parts:
            *whole, rest = (rest + part).split(b"\n")
            if len(rest) > MAX_LINE:
                raise UnreachableClusterError(f"the API server sent an event of more than {MAX_LINE} bytes")
            for line in whole:
                if line:
                    yield line
