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
    """A listener that knows on how many pods its session is active."""

    def __init__(self) -> None:
        self.active = 0

    def registered(self, hello: Hello) -> None:
        """As Listener.registered."""

    def event(self, event: AnyEvent) -> None:
        """As Listener.event."""
        if isinstance(event, State):
            self.active = event.active

    def interrupted(self, reason: str) -> None:
        """As Listener.interrupted."""

    def handler_refused(self, opening: StreamOpening, reason: str) -> None:
        """As Listener.handler_refused."""


def spec(port: int, name: str, value: str) -> SessionSpec:
    """An intercept of the scene's deployment by one header, to a handler in clear."""
    header = HeaderSpec(f"x-{name}", "exact", value)
    return SessionSpec(
        namespace="shop", workload="orders", port=str(port), name=name, headers=(header,), plaintext=True
    )


@contextlib.contextmanager
def sessions(socket: Path, specs: Sequence[SessionSpec], *, handler: int, wait: bool = True) -> Iterator[None]:
    """Hold these intercepts, in a thread; `handler` is the local port. `wait`: until all are active on a pod."""
    heard = [_Heard() for _ in specs]
    ended = asyncio.Event()
    loop = asyncio.new_event_loop()

    async def hold() -> None:
        client = LocalClient(socket)
        settings = HandlerSettings(port=handler, plaintext=True)
        held = [
            Session(client=client, spec=each, handler=Handler(settings), listener=listener)
            for each, listener in zip(specs, heard, strict=True)
        ]
        running = [asyncio.create_task(each.run()) for each in held]
        await ended.wait()
        for each in held:
            each.stop()
        await asyncio.gather(*running)

    thread = threading.Thread(target=lambda: loop.run_until_complete(hold()), name="sessions")
    thread.start()
    try:
        if wait:
            until(lambda: not thread.is_alive() or all(each.active for each in heard), within=30, what="the intercepts")
            assert thread.is_alive()
        yield
    finally:
        if thread.is_alive():
            loop.call_soon_threadsafe(ended.set)
        thread.join(20)
        loop.close()
