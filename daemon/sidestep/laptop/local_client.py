"""HTTP/1.1 client of the node daemon's unix socket: one request per connection, or an upgrade to a tunnel.

The socket is trusted when its peer process runs as root or as the caller's user (SO_PEERCRED, unix(7)). Any other user
could have created a socket there to receive traffic. Only Linux has daemons and SO_PEERCRED; on other systems every
request raises UnreachableError.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
import struct
from pathlib import Path
from platform import system
from typing import cast

import h11
import msgspec

from sidestep.aio.os_reason import os_reason
from sidestep.aio.time_limit import time_limit
from sidestep.laptop.retry import Retry
from sidestep.model.errors import PeerError, RefusedError, SidestepError
from sidestep.tunnel.connection import Connection
from sidestep.tunnel.messages import UPGRADE

TIMEOUT = 15.0
"""Seconds for one answer."""
FIRST_PAUSE, LAST_PAUSE = 0.05, 0.5
"""Seconds between attempts to connect while the accept queue is full; doubled each time."""
MAX_BODY = 32 * 1024 * 1024
"""Bytes of one answer."""


def has_local_mode() -> bool:
    """Whether this system can have a node daemon, and tell whose socket it is."""
    return hasattr(socket, "SO_PEERCRED")


class UnreachableError(SidestepError):
    """No trustworthy daemon answers on the socket, or the daemon is about to end."""


class _Problem(msgspec.Struct):
    error: str


class LocalClient:
    """Client of the daemon at the socket `path`. Every method raises UnreachableError, RefusedError or PeerError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    async def get(self, target: str) -> bytes:
        """Send GET; returns the body of a 200."""
        return await self._exchange("GET", target)

    async def delete(self, target: str) -> bytes:
        """Send DELETE; returns the body of a 200."""
        return await self._exchange("DELETE", target)

    async def upgrade(self, target: str, body: bytes, connection: Connection) -> None:
        """Send POST with `Upgrade`; after 101 the connection takes over the socket."""
        await self._exchange("POST", target, body, connection)

    async def _exchange(self, method: str, target: str, body: bytes = b"", upgrade: Connection | None = None) -> bytes:
        sock = await self._connect()
        loop = asyncio.get_running_loop()
        exchange = _ApiRequest(_request(method, target, body, upgrade=upgrade is not None), body, upgrade)
        try:
            await loop.create_unix_connection(lambda: exchange, sock=sock)
        except BaseException:
            sock.close()
            raise
        try:
            async with time_limit(TIMEOUT):
                status, answer = await exchange.answer
        except TimeoutError as error:
            raise PeerError(f"the node daemon did not answer within {TIMEOUT:g} s") from error
        finally:
            exchange.leave()
        if status == 503:
            raise UnreachableError(_problem(status, answer))
        if status not in {101, 200}:
            raise RefusedError(_problem(status, answer))
        if upgrade is not None and status != 101:
            raise PeerError("the node daemon did not upgrade the connection; does it have another version?")
        return answer

    async def _connect(self) -> socket.socket:
        if not has_local_mode():
            raise UnreachableError(f"{self.path} is not used: a node daemon runs on Linux only, and this is {system()}")
        self._distrust_open_folder()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            await self._enqueue(sock)
            _pid, uid, _gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        except OSError as error:
            sock.close()
            if isinstance(error, PermissionError):
                raise UnreachableError(f"you may not connect to {self.path}: permission denied; try sudo") from error
            raise UnreachableError(
                f"no node daemon answers on {self.path} ({os_reason(error)}); "
                "start one with: sidestep node --manifests DIR"
            ) from error
        if uid not in {0, os.getuid()}:
            sock.close()
            raise UnreachableError(f"{self.path} belongs to user {uid}, who is neither root nor you; not used")
        return sock

    async def _enqueue(self, sock: socket.socket) -> None:
        """Connect. The accept queue of a hanging daemon is full, and connecting to a full unix socket would block."""
        end = asyncio.get_running_loop().time() + TIMEOUT
        retry = Retry(FIRST_PAUSE, LAST_PAUSE)
        while True:
            try:
                sock.connect(str(self.path))
            except BlockingIOError as error:
                if asyncio.get_running_loop().time() > end:
                    raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)) from error
                await asyncio.sleep(retry.pause())
            else:
                return

    def _distrust_open_folder(self) -> None:
        try:
            mode = self.path.parent.stat().st_mode
        except OSError:
            return  # connecting reports the reason
        if mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise UnreachableError(
                f"{self.path} is not used: others may write to its folder; run: chmod go-w {self.path.parent}"
            )


class _ApiRequest(asyncio.Protocol):
    """One request and its answer. `answer` resolves to (status, body)."""

    def __init__(self, request: h11.Request, body: bytes, upgrade: Connection | None) -> None:
        self._http = h11.Connection(h11.CLIENT)
        self._request = request
        self._body = body
        self._upgrade = upgrade
        self._status = 0
        self._parts: list[bytes] = []
        self._size = 0
        self._heard = False
        self._transport: asyncio.Transport | None = None
        self.answer: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the request."""
        self._transport = cast("asyncio.Transport", transport)
        events: list[h11.Event] = [self._request]
        if self._body:
            events.append(h11.Data(data=self._body))
        events.append(h11.EndOfMessage())
        self._transport.write(b"".join(self._http.send(event) or b"" for event in events))

    def data_received(self, data: bytes) -> None:
        """Process bytes of the answer."""
        self._heard = True
        self._take(data)

    def eof_received(self) -> bool:
        """The daemon has closed. A close before any answer means that the daemon ended; it is not a malformed
        answer.
        """
        if self._heard:
            self._take(b"")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended."""
        reason = "" if exc is None else f" ({exc})"
        self._fail(f"the node daemon closed the connection without an answer{reason}")

    def leave(self) -> None:
        """Close the connection unless a tunnel has taken it over."""
        if not self.answer.done():
            self.answer.cancel()
        if self._transport is not None:
            self._transport.close()

    def _take(self, data: bytes) -> None:
        try:
            self._http.receive_data(data)
            while not self.answer.done() and self._next():
                pass
        except h11.RemoteProtocolError as error:
            self._fail(f"what answers is not a node daemon: {error}")

    def _next(self) -> bool:
        event = self._http.next_event()
        match event:
            case h11.InformationalResponse(status_code=101):
                self._take_over()
            case h11.Response():
                self._status = event.status_code
            case h11.Data():
                self._size += len(event.data)
                if self._size > MAX_BODY:
                    self._fail("the node daemon's answer is too long")
                self._parts.append(bytes(event.data))
            case h11.EndOfMessage():
                self.answer.set_result((self._status, b"".join(self._parts)))
            case h11.InformationalResponse():
                pass
            case _:
                return False
        return True

    def _take_over(self) -> None:
        transport, self._transport = self._transport, None
        if self._upgrade is None or transport is None:
            self._fail("the node daemon switched protocols unasked")
            return
        trailing, _closed = self._http.trailing_data
        transport.set_protocol(self._upgrade)
        self._upgrade.connection_made(transport)
        if trailing:
            self._upgrade.data_received(trailing)
        self.answer.set_result((101, b""))

    def _fail(self, reason: str) -> None:
        if not self.answer.done():
            self.answer.set_exception(PeerError(reason))


def _request(method: str, target: str, body: bytes, *, upgrade: bool) -> h11.Request:
    headers = [("host", "sidestep"), ("content-length", str(len(body)))]
    if upgrade:
        headers += [("connection", "upgrade"), ("upgrade", UPGRADE), ("content-type", "application/json")]
    else:
        headers += [("connection", "close")]
    return h11.Request(method=method, target=target, headers=headers)


def _problem(status: int, body: bytes) -> str:
    try:
        return msgspec.json.decode(body, type=_Problem).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        return f"the node daemon refused with status {status}"
