"""The page's server, on 127.0.0.1 only.

    GET  /TOKEN/                  the page; its script and style beside it
    GET  /TOKEN/events?after=N    changes as they come (Server-Sent Events, HTML Living Standard section 9.2)
    GET  /TOKEN/flows/ID          one flow with all that is known of it
    POST /TOKEN/har               the flows with these ids (HAR 1.2): `{"ids": [1, 2]}`
    POST /TOKEN/replay            their requests again, and how the answers differ: `{"ids": [1], "to": "http://..."}`
    POST /TOKEN/clear             forget all flows

Every request passes `guard.Guard` first. Nothing is loaded from elsewhere: the page's own policy forbids it (Content
Security Policy). Bounds: `STREAMS` browsers at once, `BODY` bytes of a request; a stream sends at most one batch per
`PAUSE`, and reads from the ring what it has not sent: a browser that does not read costs one buffer of a socket. A
browser that has gone makes room at once (`handler_cancellation`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from importlib import resources
from typing import Final, Protocol

import msgspec
from aiohttp import web

from sidestep.laptop.loopback_listener import listen_on_loopback
from sidestep.laptop.page.flow_ring import FlowRing, ShownFlow, details
from sidestep.laptop.page.guard import Guard
from sidestep.model.errors import ConfigurationError, SidestepError
from sidestep.model.text import harmless

STREAMS: Final = 8
"""Browsers that are told of changes at once."""
BODY: Final = 256 * 1024
"""Bytes of a request's body."""
BACKLOG: Final = 128
"""Connections that wait to be accepted."""
PAUSE: Final = 0.1
"""Seconds between two batches of changes: a page that shows ten a second is fluid."""
ALIVE: Final = 15.0
"""Seconds after which a stream without changes says that it lives."""
_SILENT: Final = logging.getLogger(f"{__name__}.silent")
"""Gets what aiohttp says of requests that it cannot read: anybody on this machine can send those."""
_SILENT.disabled = True
_ASSETS: Final = {
    "": ("index.html", "text/html"),
    "page.css": ("page.css", "text/css"),
    "page.js": ("page.js", "text/javascript"),
    "filter.js": ("filter.js", "text/javascript"),
    "table.js": ("table.js", "text/javascript"),
    "detail.js": ("detail.js", "text/javascript"),
}
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Board(Protocol):
    """What the page shows beside flows: sessions, their conditions, notes."""

    @property
    def version(self) -> int:
        """A number that changes when the document does."""

    def document(self) -> bytes:
        """As JSON, without a line break."""


class Chosen(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a POST: flows, and where to send their requests."""

    ids: tuple[int, ...] = ()
    to: str = ""


class PageServer:
    """Serves flows of `ring` and what `board` knows. `start` before anything else; `aclose` ends all streams.

    `har` writes flows as a HAR file; `replay` sends their requests again and says how the answers differ.
    """

    def __init__(
        self,
        *,
        ring: FlowRing,
        board: Board,
        har: Callable[[Sequence[ShownFlow]], bytes],
        replay: Callable[[Sequence[ShownFlow], str], Awaitable[object]],
    ) -> None:
        self._ring = ring
        self._board = board
        self._har = har
        self._replay = replay
        self._guard = Guard(0)
        self._runner: web.AppRunner | None = None
        self._streams: set[asyncio.Event] = set()
        self._closing = False

    async def start(self, listener: socket.socket) -> str:
        """Serve on this listener (`bind`), which belongs to the server then; returns the address for a browser."""
        self._guard = Guard(listener.getsockname()[1])
        app = web.Application(middlewares=[self._guarded], client_max_size=BODY)
        app.add_routes(
            [
                web.get("/{token}/events", self._events),
                web.get(r"/{token}/flows/{id:\d{1,15}}", self._flow),
                web.post("/{token}/har", self._save),
                web.post("/{token}/replay", self._send_again),
                web.post("/{token}/clear", self._clear),
                web.get("/{token}/{asset:[a-z.]*}", self._asset),
            ]
        )
        self._runner = web.AppRunner(
            app, access_log=None, logger=_SILENT, handle_signals=False, handler_cancellation=True, shutdown_timeout=1.0
        )
        await self._runner.setup()
        await web.SockSite(self._runner, listener).start()
        return self._guard.address

    def changed(self) -> None:
        """There is something new in the ring or on the board."""
        for each in self._streams:
            each.set()

    async def aclose(self) -> None:
        """Stop serving."""
        self._closing = True
        self.changed()
        if self._runner is not None:
            await self._runner.cleanup()

    @web.middleware
    async def _guarded(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        token = request.path.removeprefix("/").partition("/")[0]  # `*` and addresses have no slash
        if not self._guard.allows(request.method, token, request.headers):
            return web.Response(status=403, text="forbidden\n", headers=_HEADERS)
        try:
            response = await handler(request)
        except web.HTTPException as error:
            response = web.Response(status=error.status, text=f"{error.reason}\n")
        except SidestepError as error:
            response = web.Response(status=422, text=f"{harmless(str(error))}\n")
        if not response.prepared:
            response.headers.update(_HEADERS)
        return response

    async def _asset(self, request: web.Request) -> web.StreamResponse:
        asset = _ASSETS.get(request.match_info["asset"])
        if asset is None:
            raise web.HTTPNotFound
        name, kind = asset
        data = resources.files(__package__).joinpath("assets", name).read_bytes()
        return web.Response(body=data, content_type=kind, charset="utf-8")

    async def _events(self, request: web.Request) -> web.StreamResponse:
        if len(self._streams) >= STREAMS:
            raise web.HTTPServiceUnavailable
        after = request.headers.get("Last-Event-ID") or request.query.get("after", "0")
        version = int(after) if after.isascii() and after.isdecimal() and len(after) <= 15 else 0
        if version > self._ring.version:
            version = 0  # of a server before this one
        response = web.StreamResponse(headers={**_HEADERS, "Content-Type": "text/event-stream"})
        wake = asyncio.Event()
        self._streams.add(wake)
        try:
            await response.prepare(request)
            async for text in self._changes(version, wake):
                await response.write(text)
        except ConnectionError:
            pass  # the browser has gone
        finally:
            self._streams.discard(wake)
        return response

    async def _changes(self, version: int, wake: asyncio.Event) -> AsyncIterator[bytes]:
        """The events of one stream."""
        board = cleared = -1
        while not self._closing:
            wake.clear()
            if self._board.version != board:
                board = self._board.version
                yield b"event: board\ndata: %b\n\n" % self._board.document()
            changes = self._ring.changes(version)
            if changes.version != version or changes.cleared != cleared:
                version, cleared = changes.version, changes.cleared
                yield b"id: %d\nevent: flows\ndata: %b\n\n" % (version, msgspec.json.encode(changes))
            if self._ring.version == version:
                try:
                    await asyncio.wait_for(wake.wait(), ALIVE)
                except TimeoutError:
                    yield b": alive\n\n"
            await asyncio.sleep(PAUSE)

    async def _flow(self, request: web.Request) -> web.StreamResponse:
        flow = self._ring.get(int(request.match_info["id"]))
        if flow is None:
            raise web.HTTPNotFound
        return web.Response(body=msgspec.json.encode(details(flow)), content_type="application/json")

    async def _save(self, request: web.Request) -> web.StreamResponse:
        flows, _ = await self._chosen(request)
        return web.Response(
            body=await asyncio.to_thread(self._har, flows),
            content_type="application/json",
            headers={"Content-Disposition": 'attachment; filename="flows.har"'},
        )

    async def _send_again(self, request: web.Request) -> web.StreamResponse:
        flows, to = await self._chosen(request)
        return web.Response(body=msgspec.json.encode(await self._replay(flows, to)), content_type="application/json")

    async def _clear(self, _: web.Request) -> web.StreamResponse:
        self._ring.clear()
        self.changed()
        return web.Response(status=204)

    async def _chosen(self, request: web.Request) -> tuple[list[ShownFlow], str]:
        """The flows that a POST names and that are still there, in the order of the ring; and its destination."""
        try:
            chosen = msgspec.json.decode(await request.read(), type=Chosen)
        except msgspec.MsgspecError as error:
            raise web.HTTPBadRequest from error
        wanted = set(chosen.ids)
        return [flow for flow in self._ring if flow.id in wanted], chosen.to


def bind(port: int) -> socket.socket:
    """A listener on 127.0.0.1; port 0: any. Raises ConfigurationError when the port cannot be had."""
    try:
        return listen_on_loopback(port, backlog=BACKLOG)
    except OSError as error:
        raise ConfigurationError(f"the page cannot be served on port {port}: {error.strerror}") from error


def open_browser(address: str) -> None:
    """Ask the desktop, if there is one, to show the page."""
    import webbrowser

    with contextlib.suppress(webbrowser.Error, OSError):
        webbrowser.open(address)
