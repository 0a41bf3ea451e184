"""Sends recorded requests one after the other, each in its version, on one connection of each version.

    recorded as HTTP/2   sent as HTTP/2; over TLS a server that does not choose it gets HTTP/1.1
    all others           sent as HTTP/1.1

A connection that is kept may be closed by the server in the very moment in which a request is sent; such a request is
sent once more on a new one (RFC 9110, section 9.2.2, allows that because the server has not read it as far as can be
told: no byte of an answer came). Each exchange has a deadline.
"""

from __future__ import annotations

import asyncio

from msgspec.structs import replace

from sidestep.aio.time_limit import time_limit
from sidestep.laptop.replay.http1 import Http1Connection
from sidestep.laptop.replay.http2 import Http2Connection
from sidestep.laptop.replay.message import Incoming, Outgoing, ReplayError, UnusedError
from sidestep.laptop.replay.target import Target

_IDEMPOTENT = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"))


class Sender:
    """See the module. `h2`: True or False sends all requests in that version."""

    def __init__(self, target: Target, *, timeout: float, h2: bool | None = None) -> None:
        self._target = target
        self._timeout = timeout
        self._h2 = h2
        self._kept: dict[bool, Http1Connection | Http2Connection] = {}

    async def send(self, request: Outgoing) -> Incoming:
        """Send a request; returns the answer. Raises ReplayError."""
        wants_h2 = request.is_h2 if self._h2 is None else self._h2
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with time_limit(self._timeout):
                try:
                    answer = await (await self._connection(wants_h2)).exchange(request)
                except UnusedError:
                    await self._drop(wants_h2)
                    if request.method not in _IDEMPOTENT:
                        raise
                    answer = await (await self._connection(wants_h2)).exchange(request)
        except TimeoutError as error:
            await self._drop(wants_h2)
            raise ReplayError(f"no answer within {self._timeout:g} s") from error
        except ReplayError:
            await self._drop(wants_h2)
            raise
        return replace(answer, seconds=loop.time() - began)

    async def _connection(self, wants_h2: bool) -> Http1Connection | Http2Connection:
        kept = self._kept.get(wants_h2)
        if kept is not None:
            if kept.is_open:
                return kept
            await self._drop(wants_h2)
        reader, writer, is_h2 = await self._target.connect(h2=wants_h2, within=self._timeout)
        made: Http1Connection | Http2Connection
        made = Http2Connection(reader, writer, self._target.scheme) if is_h2 else Http1Connection(reader, writer)
        self._kept[wants_h2] = made
        return made

    async def _drop(self, wants_h2: bool) -> None:
        kept = self._kept.pop(wants_h2, None)
        if kept is not None:
            await kept.aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        for version in [*self._kept]:
            await self._drop(version)
