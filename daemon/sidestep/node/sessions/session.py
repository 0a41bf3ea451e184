"""One session at the daemon: its intercept, its tunnel, the connections that are diverted into it.

A diverted connection is a stream of the tunnel joined to one end of a socketpair; the other end goes to the pod proxy.
Each has a task of its own, and nothing is shared but the tunnel's transport, whose windows keep a stalled stream to
itself. When the session ends every stream fails, and the pumps close their sockets: the proxy sees its handler gone.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from dataclasses import dataclass

from sidestep.aio.patience import patience
from sidestep.aio.tasks import Tasks
from sidestep.model.errors import BugError, RefusedError, SidestepError
from sidestep.model.intercept import Intercept
from sidestep.node.sessions.stream_shares import StreamShares
from sidestep.tunnel.channel import SocketChannel
from sidestep.tunnel.connection import Connection
from sidestep.tunnel.daemon_end import DaemonEnd
from sidestep.tunnel.limits import DEFAULT_LIMITS, TunnelLimits
from sidestep.tunnel.messages import VERSION, Ended, Hello, Lost, Moving, Request, State
from sidestep.tunnel.opening import StreamOpening
from sidestep.tunnel.pump import pump
from sidestep.tunnel.stream import Stream
from sidestep.tunnel.unread_budget import UnreadBudget

StreamNumber = tuple[int, int]
"""A connection as a pod proxy numbers it."""


@dataclass(slots=True)
class SessionCounters:
    """Totals since the session began; `open` is now."""

    diverted: int = 0
    copied: int = 0
    copies_dropped: int = 0
    copies_truncated: int = 0
    connections: int = 0
    open: int = 0
    refused: int = 0
    dropped: int = 0

    def as_dict(self) -> dict[str, int]:
        """For views and metrics."""
        return {
            "diverted": self.diverted,
            "copied": self.copied,
            "copies_dropped": self.copies_dropped,
            "copies_truncated": self.copies_truncated,
            "connections": self.connections,
            "open": self.open,
            "refused": self.refused,
            "dropped": self.dropped,
        }


class Session:
    """A session whose spec was accepted. Nothing is diverted into it before the hello was answered.

    `greeted` is a tunnel whose hello has been answered already: `begin` is then not called.
    """

    def __init__(
        self,
        *,
        intercept: Intercept,
        node: str,
        software: str,
        limits: TunnelLimits = DEFAULT_LIMITS,
        budget: UnreadBudget | None = None,
        greeted: DaemonEnd | None = None,
    ) -> None:
        self.intercept = intercept
        self.counters = SessionCounters()
        self._over = False
        self._greeted = asyncio.Event()
        self._limits = limits
        self._end = greeted or DaemonEnd(Connection(limits=limits, budget=budget), limits=limits)
        self.connection = self._end.connection
        if greeted is not None:
            self._greeted.set()
        self._pumps = Tasks(f"session {intercept.display}", on_crash=self._crashed)
        self._shares = StreamShares(limits.streams)
        self._numbered: dict[StreamNumber, asyncio.Task[None]] = {}
        self._state: State | None = None
        self._crash: BugError | None = None
        self._hello = Hello(
            version=VERSION,
            software=software,
            node=node,
            nonce=secrets.token_hex(32),
            intercept=intercept.uid,
            namespace=intercept.namespace,
            name=intercept.name,
            created=intercept.created,
        )

    async def begin(self) -> None:
        """Say hello over the connection, which has its transport now. Raises PeerError or RefusedError."""
        await self._end.hello(self._hello)
        self._greeted.set()

    async def run(self) -> SidestepError | None:
        """Send events until the session is over. Returns the error that ended it, None for an orderly end."""
        error = await self._end.run()
        return self._crash or error

    async def end(self, ended: Ended) -> None:
        """Tell the session why it ends, then close it."""
        self._stop()
        await self._end.end(ended)

    async def aclose(self) -> None:
        """Close the tunnel; give the pumps a moment to deliver what had arrived, then end them."""
        self._stop()
        self.connection.close()
        try:
            async with asyncio.timeout(self._limits.farewell):
                await self._pumps.wait()
        except TimeoutError:
            pass
        finally:
            await self._pumps.aclose()

    def publish(self, state: State) -> None:
        """Tell the session about its pods and conditions, when that is news."""
        if state != self._state:
            self._state = state
            self._end.publish(state)

    def move(self, reason: str) -> None:
        """Tell the session to register anew; what runs through this tunnel goes on."""
        self._end.publish(Moving(reason))

    def record(self, request: Request) -> None:
        """Tell the session about a request that was diverted or copied to it, or about a copy that was lost."""
        counters = self.counters
        if not request.copied:
            counters.diverted += 1
        elif request.lost == "truncated":
            counters.copies_truncated += 1
        elif request.lost:
            counters.copies_dropped += 1
        else:
            counters.copied += 1
        self._end.publish(request)
        self.counters.dropped = self._end.dropped

    def record_loss(self, lost: Lost) -> None:
        """Tell the session of copies that were held back in a pod."""
        self.counters.copies_dropped += lost.count
        self._end.publish(lost)

    async def open_stream(self, opening: StreamOpening, *, number: StreamNumber | None = None) -> socket.socket:
        """Connect one diverted connection to the handler; returns the pod proxy's end. Raises RefusedError.

        `number` is what the proxy calls it, for `reset_stream`. What a proxy says about the connection is looked at
        before it is sent: the session's other pods must not lose their tunnel over it. Raises PeerError for nonsense.
        """
        opening.check()
        await self._greeted.wait()
        self._check_open()
        if len(self._pumps) >= 2 * self._limits.streams:  # those whose streams are over deliver what had arrived
            raise RefusedError(f"the session already has {len(self._pumps)} connections open")
        try:
            async with patience(self._limits.open_timeout):
                await self._shares.acquire(opening.pod)
        except TimeoutError as error:
            self.counters.refused += 1
            raise RefusedError("the pod has its share of the session's connections open") from error
        try:
            stream, ours, theirs = await self._connect(opening)
        except BaseException:
            self._shares.release(opening.pod)
            raise
        self.counters.connections += 1
        self.counters.open += 1
        channel = SocketChannel(ours)
        task = self._pumps.start(pump(stream, channel), name=f"stream {stream.id}")
        if number is not None:
            self._numbered[number] = task
        task.add_done_callback(lambda done: self._pumped(channel, number, done))
        task.add_done_callback(lambda _: self._shares.release(opening.pod))
        return theirs

    async def _connect(self, opening: StreamOpening) -> tuple[Stream, socket.socket, socket.socket]:
        """A stream that the handler has taken, and a socketpair for it. Raises RefusedError."""
        try:
            stream = await self._end.open(opening)
        except RefusedError:
            self.counters.refused += 1
            raise
        try:
            self._check_open()
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        except (RefusedError, OSError) as error:
            stream.reset()
            if isinstance(error, OSError):
                raise RefusedError(f"the node daemon cannot take another connection: {error.strerror}") from error
            raise
        return stream, ours, theirs

    def reset_stream(self, number: StreamNumber) -> bool:
        """Break a connection in both directions; False when it is none of this session's."""
        task = self._numbered.pop(number, None)
        if task is None:
            return False
        task.cancel()
        return True

    def _stop(self) -> None:
        """No stream is opened from now on."""
        self._over = True
        self._greeted.set()

    def _check_open(self) -> None:
        if self._over:
            raise RefusedError("the session is gone")

    def _pumped(self, channel: SocketChannel, number: StreamNumber | None, task: asyncio.Task[None]) -> None:
        self.counters.open -= 1
        if number is not None and self._numbered.get(number) is task:
            del self._numbered[number]
        channel.close()  # again, if the pump ran; a task that is cancelled before its first step closes nothing

    def _crashed(self, task: str, error: BaseException) -> None:
        self._crash = BugError(f"{task} failed: {error!r}")
        self._crash.__cause__ = error
        self.connection.close(self._crash)
