"""Intercepts held by this process: the laptop's own code without the start of a command, and many of them at once."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from sidestep.laptop.handler import Handler, HandlerSettings
from sidestep.laptop.local_client import LocalClient
from sidestep.laptop.session import Session
from sidestep.tunnel.messages import AnyEvent, HeaderSpec, Hello, SessionSpec, State
from sidestep.tunnel.opening import StreamOpening
from tests.harness.waiting import until


class _Heard:
    """An observer that knows on how many pods its session is active."""

    def __init__(self) -> None:
        self.active = 0

    def registered(self, hello: Hello) -> None:
        """As SessionObserver.registered."""

    def event(self, event: AnyEvent) -> None:
        """As SessionObserver.event."""
        if isinstance(event, State):
            self.active = event.active

    def interrupted(self, reason: str) -> None:
        """As SessionObserver.interrupted."""
        self.active = 0

    def handler_refused(self, opening: StreamOpening, reason: str) -> None:
        """As SessionObserver.handler_refused."""


def spec(port: int, name: str, value: str) -> SessionSpec:
    """An intercept of the scene's deployment by one header, to a handler in clear."""
    header = HeaderSpec(f"x-{name}", "exact", value)
    return SessionSpec(
        namespace="shop", workload="orders", port=str(port), name=name, headers=(header,), plaintext=True
    )


class Held:
    """Sessions in a thread of their own; made by `held`."""

    def __init__(self, socket: Path, handler: int) -> None:
        self._client = LocalClient(socket)
        self._settings = HandlerSettings(port=handler, plaintext=True)
        self._heard: list[_Heard] = []
        self._held: list[Session] = []
        self._running: list[asyncio.Task[object]] = []
        self._loop = asyncio.new_event_loop()
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._hold()), name="sessions")
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether no session has failed."""
        return self._thread.is_alive()

    def add(self, specs: Sequence[SessionSpec]) -> None:
        """Begin these."""
        made = [_Heard() for _ in specs]
        self._heard += made
        self._loop.call_soon_threadsafe(self._begin, list(zip(specs, made, strict=True)))

    def active(self) -> int:
        """How many are active on a pod, by what they heard last. AssertionError when one has failed."""
        assert self.alive, "a session has failed"
        return sum(1 for each in self._heard if each.active)

    def forget(self) -> None:
        """Take what was heard so far for void."""
        for each in self._heard:
            each.active = 0

    def close(self) -> None:
        """End all."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(20)
        self._loop.close()

    def _begin(self, wanted: Sequence[tuple[SessionSpec, _Heard]]) -> None:
        for each, observer in wanted:
            session = Session(client=self._client, spec=each, handler=Handler(self._settings), observer=observer)
            self._held.append(session)
            task: asyncio.Task[object] = self._loop.create_task(session.run())
            task.add_done_callback(lambda _task: self._ended.set())
            self._running.append(task)

    async def _hold(self) -> None:
        await self._ended.wait()
        for each in self._held:
            each.stop()
        await asyncio.gather(*self._running)


@contextlib.contextmanager
def held(socket: Path, *, handler: int) -> Iterator[Held]:
    """A place for sessions, to which more may be added; `handler` is the local port."""
    place = Held(socket, handler)
    try:
        yield place
    finally:
        place.close()


@contextlib.contextmanager
def sessions(socket: Path, specs: Sequence[SessionSpec], *, handler: int, wait: bool = True) -> Iterator[None]:
    """Hold these intercepts, in a thread; `handler` is the local port. `wait`: until all are active on a pod."""
    with held(socket, handler=handler) as place:
        place.add(specs)
        if wait:
            until(lambda: place.active() == len(specs), within=30, what="the intercepts")
        yield
