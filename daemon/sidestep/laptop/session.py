"""A session on the developer's machine: asks the daemon for an intercept, then serves its tunnel until either ends it.

The session owns nothing but its connection to the daemon: closing that ends the intercept, whatever happens to this
process. What there is to tell goes to a `Listener`; how it is told is the command line's business.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Protocol

from sidestep.laptop.handler import Handler
from sidestep.laptop.local_client import LocalClient
from sidestep.model.errors import RefusedError, SidestepError
from sidestep.tunnel.channel import Channel
from sidestep.tunnel.cli_end import CliEnd
from sidestep.tunnel.messages import AnyEvent, Ended, Hello, SessionSpec, encode
from sidestep.tunnel.opening import StreamOpening


class Listener(Protocol):
    """Hears what happens in a session; must not raise."""

    def registered(self, hello: Hello) -> None:
        """The daemon has taken the intercept under this name."""

    def event(self, event: AnyEvent) -> None:
        """The daemon says what it sees."""

    def handler_refused(self, opening: StreamOpening, reason: str) -> None:
        """A diverted connection found no handler; the daemon has been told."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a session ended: stopped here (both None), ended by the daemon, or by an error of the tunnel."""

    ended: Ended | None = None
    error: SidestepError | None = None


class Session:
    """One session. `stop` may be called at any time, from the same event loop."""

    def __init__(self, *, client: LocalClient, spec: SessionSpec, handler: Handler, listener: Listener) -> None:
        self._client = client
        self._spec = spec
        self._handler = handler
        self._listener = listener
        self._ended: Ended | None = None
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        """End the session in an orderly way; `run` then returns."""
        self._stopped.set()

    async def run(self) -> Outcome:
        """Register, serve, return how it ended.

        Raises UnreachableError, RefusedError or PeerError when the session could not begin.
        """
        stopping = asyncio.create_task(self._stopped.wait(), name="session-stop")
        serving = asyncio.create_task(self._serve(), name="session-tunnel")
        try:
            tasks: set[asyncio.Task[Any]] = {serving, stopping}
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            serving.cancel()
            await asyncio.wait({stopping, serving})
        if serving.cancelled():
            return Outcome()
        return Outcome(ended=self._ended, error=serving.result())

    async def _serve(self) -> SidestepError | None:
        end = CliEnd(dial=self._dial, on_hello=self._begin, on_event=self._hear)
        try:
            await self._client.upgrade("/v1/sessions", encode(self._spec), end.connection)
            return await end.run()
        finally:
            end.connection.close()
            await end.connection.wait_closed()

    def _begin(self, hello: Hello) -> None:
        if hello.name:
            self._handler.intercept = f"{hello.namespace}/{hello.name}"
        self._listener.registered(hello)

    def _hear(self, event: AnyEvent) -> None:
        if isinstance(event, Ended):
            self._ended = event
        self._listener.event(event)

    async def _dial(self, opening: StreamOpening) -> Channel:
        try:
            return await self._handler.dial(opening)
        except RefusedError as error:
            self._listener.handler_refused(opening, str(error))
            raise
