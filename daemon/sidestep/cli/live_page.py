"""The live page of a command: serves flows of its sessions to a browser while they run (`laptop.page`).

`--ui` on `intercept`, `wiretap` and `flows` adds it to what the command prints; `sidestep ui` prints its address alone.
Every POLL seconds it asks which intercepts and wiretaps there are, as `sidestep status` does; what cannot be asked is
told once and asked again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
import msgspec

from sidestep.cli.page_actions import har_of, replay_flows
from sidestep.cli.saved_requests import SavedRequests
from sidestep.kube.access import ClusterAccess
from sidestep.laptop.local_client import LocalClient
from sidestep.laptop.page.flow_ring import FlowRing
from sidestep.laptop.page.observer import FlowObserver, InterceptShown, PageBoard
from sidestep.laptop.recorded_body import Body
from sidestep.laptop.session import SessionObserver
from sidestep.model.errors import SidestepError
from sidestep.model.intercept import Kind
from sidestep.tunnel.messages import AnyEvent, Hello, Request, SessionSpec, decode
from sidestep.tunnel.opening import StreamOpening
from sidestep.tunnel.views import StatusView

if TYPE_CHECKING:
    from sidestep.cli.backend import Backend
    from sidestep.cli.cluster_view import ResourceView
    from sidestep.laptop.copied_requests import CopiedRequest
    from sidestep.laptop.page.server import PageServer
    from sidestep.tunnel.views import InterceptView

POLL: Final = 5.0
"""Seconds between two questions for intercepts."""
MAX_PORT: Final = 65535

F = TypeVar("F", bound=Callable[..., Any])


class PageSettings(msgspec.Struct, frozen=True):
    """How a page is served. `port` 0: any that is free; `opened`: the desktop's browser is asked to show it."""

    port: int = 0
    opened: bool = False


def page_options(command: F, *, always: bool = False) -> F:
    """Add `--ui` (not with `always`), `--ui-port` and `--open`; the command receives `page`, None without a page."""

    def choosing(*arguments: Any, ui_port: int, opened: bool, ui: bool = always, **rest: Any) -> Any:
        wanted = ui or opened or ui_port > 0
        return command(*arguments, page=PageSettings(ui_port, opened) if wanted else None, **rest)

    choosing.__name__, choosing.__doc__ = command.__name__, command.__doc__
    choosing.__click_params__ = list(getattr(command, "__click_params__", ()))  # type: ignore[attr-defined]
    options = [
        click.option("--open", "opened", is_flag=True, help="Show the page in the desktop's browser."),
        click.option(
            "--ui-port",
            type=click.IntRange(0, MAX_PORT),
            default=0,
            metavar="PORT",
            help="Port of the page on 127.0.0.1. [default: a free one]",
        ),
    ]
    if not always:
        options.append(click.option("--ui", is_flag=True, help="Serve the requests as a page in a browser, too."))
    for option in options:
        choosing = option(choosing)
    return choosing  # type: ignore[return-value]  # the same function but for the options it takes


class LivePage:
    """One page. `begin` before its sessions start, `aclose` when they are over."""

    def __init__(self, title: str, settings: PageSettings, *, backend: Backend, namespace: str) -> None:
        self._backend = backend
        self._namespace = namespace
        self._settings = settings
        self._ring = FlowRing()
        self._board = PageBoard(title, self._changed)
        self._server: PageServer | None = None
        self._polling: asyncio.Task[None] | None = None
        self._copies: SavedRequests | None = None
        """Joins copies of the last session with what is told of them; a command that has copies has one session."""
        self.address = ""

    async def begin(self) -> None:
        """Serve the page, and print its address on standard error, so that standard output stays what it is without.

        Raises ConfigurationError when the port is taken.
        """
        from sidestep.laptop.page.server import (  # aiohttp's server: 0.2 s that others save
            PageServer,
            bind,
            open_browser,
        )

        self._server = PageServer(ring=self._ring, board=self._board, har=har_of, replay=replay_flows)
        self.address = await self._server.start(bind(self._settings.port))
        click.echo(f"Page: {self.address}", err=True)
        self._polling = asyncio.create_task(self._poll(), name="page")
        if self._settings.opened:
            await asyncio.to_thread(open_browser, self.address)

    def observer(self, spec: SessionSpec, inner: SessionObserver) -> SessionObserver:
        """The observer of one more session, which tells `inner` first."""
        name = f"{'flows' if spec.heads_only else spec.kind} {spec.workload}:{spec.port}"
        flows = FlowObserver(name, ring=self._ring, board=self._board, on_flow=self._changed)
        if spec.kind == Kind.WIRETAP.value and not spec.heads_only:
            self._copies = SavedRequests(_Copies(flows), copied=True)
        return _Both(inner, flows, self._copies)

    def take(self, copy: CopiedRequest) -> None:
        """Take a request that was copied by the session, for its fields and its body."""
        if self._copies is not None:
            self._copies.take(copy)

    async def aclose(self) -> None:
        """Stop serving."""
        if self._polling is not None:
            self._polling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._polling
        if self._server is not None:
            await self._server.aclose()

    def _changed(self) -> None:
        if self._server is not None:
            self._server.changed()

    async def _poll(self) -> None:
        told = ""
        while True:
            try:
                self._board.intercepts(*await intercepts_shown(self._backend, self._namespace))
                told = ""
            except SidestepError as error:
                if str(error) != told:
                    told = str(error)
                    self._board.note(f"intercepts cannot be listed: {told}")
            await asyncio.sleep(POLL)


def live_page(title: str, settings: PageSettings | None, *, backend: Backend, namespace: str) -> LivePage | None:
    """The page of a command, if it is to have one."""
    return None if settings is None else LivePage(title, settings, backend=backend, namespace=namespace)


async def intercepts_shown(backend: Backend, namespace: str) -> tuple[list[InterceptShown], list[str]]:
    """The intercepts, wiretaps and other sessions that there are, and what is wrong. Raises SidestepError."""
    if isinstance(backend, ClusterAccess):
        from sidestep.cli import cluster_view

        found = await cluster_view.status(backend, namespace)
        shown = [
            _shown(each, each.kind.lower(), f"{each.state}: {each.message}" if each.message else each.state)
            for each in found.intercepts
        ]
        return shown, [f"{each.type}: {each.subject}: {each.text}" for each in found.conditions]
    view = decode(await LocalClient(backend).get("/v1/status"), StatusView, what="the daemon's answer")
    shown = [_shown(each, each.kind, f"active on {each.state.active} pods") for each in view.intercepts]
    return shown, [f"{each.type}: {each.subject}: {each.text}" for each in view.conditions]


def _shown(view: ResourceView | InterceptView, kind: str, state: str) -> InterceptShown:
    fields = {"workload": view.workload, "port": view.port, "filter": view.filter, "state": state, "owner": view.owner}
    return InterceptShown(kind, f"{view.namespace}/{view.name}", tuple(each for each in fields.items() if each[1]))


class _Copies:
    """Copies for the flows of an observer. A `saved_requests.Archive`."""

    def __init__(self, flows: FlowObserver) -> None:
        self._flows = flows

    def keep(self, request: Request, body: Body | None) -> None:
        """As Archive.keep."""
        if body is not None:
            self._flows.recorded(request, body)

    def close(self) -> str:
        """As Archive.close."""
        return ""


class _Both:
    """A `SessionObserver` that tells two, and then what joins requests with their copies."""

    def __init__(self, inner: SessionObserver, flows: SessionObserver, copies: SavedRequests | None) -> None:
        self._observers = (inner, flows)
        self._copies = copies

    def registered(self, hello: Hello) -> None:
        """As SessionObserver.registered."""
        for each in self._observers:
            each.registered(hello)

    def event(self, event: AnyEvent) -> None:
        """As SessionObserver.event."""
        for each in self._observers:
            each.event(event)
        if self._copies is not None:
            self._copies.event(event)

    def interrupted(self, reason: str) -> None:
        """As SessionObserver.interrupted."""
        if self._copies is not None:
            self._copies.interrupted()  # before the page forgets which requests were told
        for each in self._observers:
            each.interrupted(reason)

    def handler_refused(self, opening: StreamOpening, reason: str) -> None:
        """As SessionObserver.handler_refused."""
        for each in self._observers:
            each.handler_refused(opening, reason)

    def note(self, text: str) -> None:
        """As SessionObserver.note."""
        for each in self._observers:
            each.note(text)
