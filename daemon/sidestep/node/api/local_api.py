"""The unix socket for command lines of this machine: HTTP/1.1 by h11, one request per connection.

    GET    /v1/status                     StatusView
    GET    /v1/workloads                  list of WorkloadView
    GET    /v1/alerts/ID[/BY]             AlertView of an exchange, with what excepts it by `policy.exceptions.By`
    POST   /v1/sessions                   SessionSpec, `Upgrade: sidestep-tunnel` -> 101, then the tunnel on this socket
    DELETE /v1/intercepts/NAMESPACE/NAME[?kind=KIND]  ends a session, of this kind
    POST   /v1/drain                      another daemon has taken over the socket's path: drain and end
    GET    /healthz, /readyz, /metrics    for monitoring, in plain text

A refusal is `{"error": "one line"}` with 400 (invalid), 403, 404, 409 (conflict), 500, or 503 (the daemon is draining:
try again soon).

Root and the daemon's own user may connect, checked by SO_PEERCRED regardless of the file's permissions. `local_socket`
creates the socket and replaces that of another daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import cast
from urllib.parse import parse_qs

import h11
import msgspec

from sidestep.aio.tasks import Tasks
from sidestep.aio.time_limit import time_limit
from sidestep.model.errors import ConfigurationError, KernelError, PeerError, RefusedError, SidestepError
from sidestep.model.intercept import FLOWS, SessionKind
from sidestep.node.api.local_socket import BACKLOG, ask_to_drain, listen, predecessor_at, prepare_folder
from sidestep.node.api.metrics import CONTENT_TYPE, exposition
from sidestep.node.sessions.node_view import NodeView
from sidestep.node.sessions.registry import SessionRegistry
from sidestep.observability.logs import get_logger
from sidestep.policy.exceptions import By
from sidestep.tunnel.messages import UPGRADE, SessionSpec, decode

MAX_BODY = 256 * 1024
"""Bytes of a request body."""
MAX_CONNECTIONS = 2048
"""Connections, including tunnels."""
REQUEST_TIMEOUT = 10.0
"""Seconds for receiving a request, and for the client to read the answer."""


class LocalApi:
    """Serves the socket. Call `start` once, then `aclose`."""

    def __init__(
        self, *, path: Path, view: NodeView, sessions: SessionRegistry, on_drain: Callable[[], None] = lambda: None
    ) -> None:
        """Create the API. `on_drain` is called when another daemon has taken over the path."""
        self.on_drain = on_drain
        self.path = path
        self.view = view
        self.sessions = sessions
        self.registering = asyncio.Lock()
        """Serialises registrations to one per turn of the event loop: all sessions of a predecessor may arrive at once,
        and must not delay proxies and tunnels."""
        self._tasks = Tasks("local API")
        self._log = get_logger("local API")
        self._server: asyncio.Server | None = None
        self._identity: tuple[int, int] | None = None

    async def start(self) -> None:
        """Start listening. Raises ConfigurationError when the folder is unsafe or the peer is not trusted, and
        KernelError.
        """
        try:
            prepare_folder(self.path.parent)
            predecessor = predecessor_at(self.path)
            listener = listen(self.path)
            status = self.path.stat()
            self._identity = (status.st_dev, status.st_ino)
        except OSError as error:
            raise KernelError("socket", error.errno or 0, doing=f"listening on {self.path}") from error
        self._server = await asyncio.get_running_loop().create_unix_server(
            lambda: _LocalConnection(self), sock=listener, backlog=BACKLOG
        )
        if predecessor is not None:
            problem = await ask_to_drain(predecessor)
            self._log.info("took over from another daemon", path=str(self.path), problem=problem)

    async def aclose(self) -> None:
        """Stop listening, remove the socket file if it is still ours, end all connections."""
        if self._server is not None:
            self._server.close()
        with contextlib.suppress(OSError):
            status = self.path.stat()
            if (status.st_dev, status.st_ino) == self._identity:
                self.path.unlink()
        await self._tasks.aclose()

    @property
    def full(self) -> bool:
        """Whether the limit of connections is reached."""
        return len(self._tasks) >= MAX_CONNECTIONS

    def serve(self, connection: _LocalConnection) -> None:
        """Start a task for one connection."""
        self._tasks.start(connection.run(), name=f"connection of {connection.user}")


class _Answer(msgspec.Struct, frozen=True):
    """A status and a body."""

    status: int
    body: bytes
    content_type: str = "application/json"


class _LocalConnection(asyncio.Protocol):
    """One connection: receives a request, and answers it or hands the transport to a tunnel."""

    def __init__(self, api: LocalApi) -> None:
        self._api = api
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=32 * 1024)
        self._transport: asyncio.Transport | None = None
        self._request: h11.Request | None = None
        self._body = bytearray()
        self._whole: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._uid = -1
        self._farewell: asyncio.TimerHandle | None = None
        self.user = "unknown"

    # --- asyncio.Protocol -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Check the user of a new connection."""
        self._transport = cast("asyncio.Transport", transport)
        sock = transport.get_extra_info("socket")
        _pid, uid, _gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        self.user = _user_name(uid)
        self._uid = uid
        if uid not in {0, os.geteuid()} or self._api.full:
            self._transport.abort()
            return
        self._api.serve(self)

    def data_received(self, data: bytes) -> None:
        """Process bytes of the request."""
        try:
            self._http.receive_data(data)
            while not self._whole.done() and self._next():
                pass
        except h11.RemoteProtocolError as error:
            self._stop(PeerError(f"bad HTTP: {error}", code=error.error_status_hint))

    def eof_received(self) -> bool:
        """The client has finished sending; it may still expect its answer."""
        if not self._whole.done():
            self._stop(PeerError("the client left"))
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended."""
        if self._farewell is not None:
            self._farewell.cancel()
        self._stop(PeerError(f"the client left ({exc})"))

    # --- the request ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Wait for the request, answer it, and serve the tunnel if it became one."""
        try:
            async with time_limit(REQUEST_TIMEOUT):
                await self._whole
            answer = await self._dispatch()
            if answer is not None:
                self._send(answer)
        except TimeoutError:
            pass
        except PeerError as error:
            if error.code is not None:
                self._send(_problem(error.code, str(error)))
        except Exception as error:  # noqa: BLE001 - a bug ends this connection, not the other sessions
            self._send(_problem(500, f"internal error of the node daemon: {type(error).__name__}; its log says more"))
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"a connection of {self.user} to the local API failed", "exception": error}
            )
        finally:
            self._finish()

    async def _dispatch(self) -> _Answer | None:
        """Return the answer; None when the connection became a tunnel that has ended."""
        assert self._request is not None  # noqa: S101 - set before `_whole` resolves
        method, target = self._request.method.decode("ascii"), self._request.target.decode("ascii", "replace")
        path, _, query = target.partition("?")
        try:
            match method, path.split("/")[1:]:
                case "GET", ["v1", "status"]:
                    return _Answer(200, msgspec.json.encode(self._api.view.status()))
                case "GET", ["healthz" | "readyz"]:
                    return _Answer(200, b"ok\n", CONTENT_TYPE)
                case "GET", ["metrics"]:
                    return _Answer(200, exposition(self._api.view.status()), CONTENT_TYPE)
                case "GET", ["v1", "workloads"]:
                    return _Answer(200, msgspec.json.encode(self._api.view.workloads()))
                case "GET", ["v1", "alerts", exchange, *by] if len(by) < 2:
                    return self._alert(exchange, "".join(by), parse_qs(query).get("policy", [""])[0])
                case "POST", ["v1", "sessions"]:
                    return await self._open_session()
                case "POST", ["v1", "drain"]:
                    self._api.on_drain()
                    return _Answer(200, b"{}")
                case "DELETE", ["v1", "intercepts", namespace, name]:
                    return await self._leave(namespace, name, parse_qs(query).get("kind", [""])[0])
                case _:
                    return _problem(
                        404, "the node daemon does not know this request; is the CLI newer than the daemon?"
                    )
        except ConfigurationError as error:
            return _problem(400, str(error))
        except RefusedError as error:
            return _problem(409, str(error))
        except PeerError as error:
            return _problem(400, str(error))
        except SidestepError as error:
            return _problem(500, str(error))

    def _alert(self, exchange: str, by: str, policy: str) -> _Answer:
        if by not in {"", *By}:
            return _problem(400, "an exception is by request or by source")
        found = self._api.view.alert(exchange, By(by or By.REQUEST), policy)
        if found is None:
            return _problem(
                404, "is none of the last alerts of this daemon; earlier ones stand in its EVE log: --eve FILE"
            )
        return _Answer(200, msgspec.json.encode(found))

    async def _open_session(self) -> _Answer | None:
        assert self._request is not None  # noqa: S101 - set before `_whole` resolves
        if dict(self._request.headers).get(b"upgrade", b"").decode("latin-1").lower() != UPGRADE:
            return _problem(400, f"a session needs Upgrade: {UPGRADE}")
        spec = decode(bytes(self._body), SessionSpec, what="the session's spec")
        async with self._api.registering:
            await asyncio.sleep(0)
        if self._transport is not None and self._transport.is_closing():
            return None  # the client has given up
        leaving = self._api.sessions.leaving
        if not leaving:
            try:
                session = await self._api.sessions.register(spec, owner=self._owner(spec))
            except RefusedError:
                leaving = self._api.sessions.leaving  # may have changed meanwhile
                if not leaving:
                    raise
        if leaving:
            return _problem(503, f"the node daemon takes no sessions now: {leaving}")
        transport, self._transport = self._transport, None
        if transport is None or transport.is_closing():
            self._api.sessions.withdraw(session)
            return None
        switching = h11.InformationalResponse(
            status_code=101, headers=[("connection", "upgrade"), ("upgrade", UPGRADE)], reason=b"Switching Protocols"
        )
        transport.write(self._http.send(switching) or b"")
        trailing, _closed = self._http.trailing_data
        transport.set_protocol(session.connection)
        session.connection.connection_made(transport)
        if trailing:
            session.connection.data_received(trailing)
        await self._api.sessions.serve(session)
        return None

    async def _leave(self, namespace: str, name: str, kind: str) -> _Answer:
        if not await self._api.sessions.leave(namespace, name, by=self.user, kind=kind):
            what = kind if kind in {FLOWS, *SessionKind} else "session"
            return _problem(404, f"there is no {what} {namespace}/{name} here; sidestep status shows those there are")
        return _Answer(200, b"{}")

    # --- inside -----------------------------------------------------------------------------------------------------

    def _owner(self, spec: SessionSpec) -> str:
        """Return the user name from the peer credentials; root may claim to act for another user."""
        return spec.claimed_owner if self._uid == 0 and spec.claimed_owner else self.user

    def _next(self) -> bool:
        event = self._http.next_event()
        match event:
            case h11.Request():
                self._request = event
            case h11.Data():
                self._body += event.data
                if len(self._body) > MAX_BODY:
                    self._stop(PeerError(f"the request has more than {MAX_BODY} bytes", code=413))
            case h11.EndOfMessage():
                self._whole.set_result(None)
            case _:
                return False
        return True

    def _finish(self) -> None:
        """Close once the client has read the answer, at the latest after the timeout."""
        transport = self._transport
        if transport is not None:
            transport.close()
            self._farewell = asyncio.get_running_loop().call_later(REQUEST_TIMEOUT, transport.abort)

    def _stop(self, error: PeerError) -> None:
        if not self._whole.done():
            self._whole.set_exception(error)

    def _send(self, answer: _Answer) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        reason = {200: b"OK", 400: b"Bad Request", 404: b"Not Found", 409: b"Conflict", 413: b"Content Too Large"}
        response = h11.Response(
            status_code=answer.status,
            reason=reason.get(answer.status, b"Service Unavailable" if answer.status == 503 else b"Error"),
            headers=[
                ("content-type", answer.content_type),
                ("content-length", str(len(answer.body))),
                ("connection", "close"),
            ],
        )
        try:
            for event in (response, h11.Data(data=answer.body), h11.EndOfMessage()):
                transport.write(self._http.send(event) or b"")
        except h11.LocalProtocolError:
            transport.abort()  # h11 permits no answer to a malformed request


def _problem(status: int, text: str) -> _Answer:
    return _Answer(status, msgspec.json.encode({"error": text}))


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
