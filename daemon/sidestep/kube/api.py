"""Requests to an API server, as paths and JSON. Keeps idle connections and no other state.

    await api.get(path)                        one object or list, bytes
    await api.create / patch / delete
    async with api.stream(path) as lines       a watch
    await api.upgrade(path, headers)           the streams of another protocol

An unsuccessful answer raises `ApiError` with the server's message. `transport` connects; bodies stay bytes here,
because decoding them into the library's models costs fifty times as much as msgspec.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import msgspec

from sidestep.aio.time_limit import time_limit
from sidestep.kube.access import ClusterAccess
from sidestep.kube.errors import ApiError, UnreachableClusterError

if TYPE_CHECKING:
    import aiohttp

    from sidestep.kube.transport import UpgradedStream

TIMEOUT = 30.0
"""Seconds for one request and its answer. An API server gives up after 60 s."""
MAX_BODY = 64 * 1024 * 1024
"""Bytes of an answer. Lists are read in pages of a few MiB."""
MAX_ERROR = 64 * 1024
MAX_LINE = 8 * 1024 * 1024
"""Bytes of one watch event. etcd stores objects of at most 1.5 MiB."""

MERGE_PATCH = "application/merge-patch+json"
JSON = "application/json"

Query = Mapping[str, str | int]


class _Status(msgspec.Struct):
    """meta/v1 Status: the fields that describe an error."""

    message: str = ""
    reason: str = ""


class Api:
    """Client of one API server, for one event loop. Raises ConfigurationError when a proxy's setting is invalid."""

    def __init__(self, access: ClusterAccess) -> None:
        # Loaded by the first client: it takes 0.3 s, which a command without a cluster does not pay.
        from sidestep.kube.transport import Transport

        self.access = access
        self._transport = Transport(access)

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
        answer = await self._open("GET", _target(path, query), {"accept": accept}, expected=200)
        try:
            async with contextlib.aclosing(self._lines(answer)) as lines:
                yield lines
        finally:
            answer.close()

    async def upgrade(self, path: str, query: Query, headers: Mapping[str, str]) -> tuple[UpgradedStream, list[Field]]:
        """Switch to another protocol (RFC 9110, 7.8); returns the streams and the fields of the answer. Raises
        ApiError, UnreachableClusterError.
        """
        answer = await self._open("GET", _target(path, query), headers, expected=101)
        try:
            with self._transport.translated():
                return self._transport.upgraded(answer), list(answer.headers.items())
        except BaseException:
            answer.close()
            raise

    async def aclose(self) -> None:
        """Close all connections."""
        await self._transport.close()

    async def _open(
        self, method: str, target: str, headers: Mapping[str, str], *, expected: int
    ) -> aiohttp.ClientResponse:
        """Send a request without a body; returns its answer, of which the head has arrived."""
        with self._transport.translated():
            async with time_limit(TIMEOUT):
                answer = await self._transport.send(method, target, headers, upgrade=expected == 101)
                if answer.status == expected:
                    return answer
                try:
                    raise await self._failure(answer)
                finally:
                    answer.close()

    async def _exchange(
        self, method: str, target: str, body: bytes = b"", *, accept: str = JSON, content_type: str = JSON
    ) -> bytes:
        headers = {"accept": accept, **({"content-type": content_type} if body else {})}
        with self._transport.translated():
            async with time_limit(TIMEOUT):
                answer = await self._transport.send(method, target, headers, body)
                try:
                    if not 200 <= answer.status < 300:
                        raise await self._failure(answer)
                    found = await self._body(answer, MAX_BODY)
                except BaseException:
                    answer.close()
                    raise
                answer.release()
                return found

    async def _body(self, answer: aiohttp.ClientResponse, limit: int) -> bytes:
        found, size = [], 0
        async for part in answer.content.iter_any():
            size += len(part)
            if size > limit:
                shown = self._transport.shown
                raise UnreachableClusterError(f"the API server {shown} answered with more than {limit} bytes")
            found.append(part)
        return b"".join(found)

    async def _failure(self, answer: aiohttp.ClientResponse) -> ApiError:
        body = await self._body(answer, MAX_ERROR)
        try:
            status = msgspec.json.decode(body, type=_Status)
        except (msgspec.DecodeError, UnicodeDecodeError):
            status = _Status()
        message = status.message or f"the API server answered with status {answer.status}"
        return ApiError(answer.status, status.reason, " ".join(message.split())[:1000])

    async def _lines(self, answer: aiohttp.ClientResponse) -> AsyncGenerator[bytes]:
        rest = b""
        with self._transport.translated():
            async for part in answer.content.iter_any():
                *whole, rest = (rest + part).split(b"\n")
                if len(rest) > MAX_LINE:
                    raise UnreachableClusterError(f"the API server sent an event of more than {MAX_LINE} bytes")
                for line in whole:
                    if line:
                        yield line


Field = tuple[str, str]
"""Name and value of a field of a head."""


def _target(path: str, query: Query | None) -> str:
    return f"{path}?{urlencode(query)}" if query else path
