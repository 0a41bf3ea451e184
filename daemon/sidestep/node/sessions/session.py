"""One session at the daemon: its intercept, its tunnel, the connections diverted into it.

A diverted connection is a stream of the tunnel joined to one end of a socketpair; the other end goes to the pod proxy.
Each has a task of its own. They share only the tunnel's transport, whose windows isolate a stalled stream. When the
session ends every stream fails, and the pumps close their sockets: the proxy sees that its handler is gone.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from dataclasses import dataclass

from sidestep.aio.patience import patience
from sidestep.aio.tasks import Tasks
from sidestep.aio.time_limit import time_limit
from sidestep.model.errors import BugError, PeerError, RefusedError, SidestepError
from sidestep.model.intercept import Intercept
from sidestep.model.pod import PodKey
from sidestep.node.sessions.access import AccessServer
from sidestep.node.sessions.capture_bounds import CaptureBounds, CaptureChannel
from sidestep.node.sessions.pod_world import NoWorld, PodWorld
from sidestep.node.sessions.record_feed import RecordFeed, WaitingBytes
from sidestep.node.sessions.stream_shares import StreamShares
from sidestep.observability.logs import get_logger
from sidestep.tunnel.channel import SocketChannel
from sidestep.tunnel.connection import Connection
from sidestep.tunnel.daemon_end import DaemonEnd
from sidestep.tunnel.limits import DEFAULT_LIMITS, TunnelLimits
from sidestep.tunnel.messages import VERSION, Answered, Earlier, Ended, Hello, Lost, Moving, Request, State
from sidestep.tunnel.opening import StreamOpening
from sidestep.tunnel.pump import pump
from sidestep.tunnel.stream import Stream
from sidestep.tunnel.unread_budget import UnreadBudget

StreamNumber = tuple[int, int]
"""Number that a pod proxy assigned to a connection."""


@dataclass(slots=True)
class SessionCounters:
    """Totals since the session began; `open` is the current number. `records` of inspection were sent to it."""

    diverted: int = 0
    copied: int = 0
    copies_dropped: int = 0
    copies_truncated: int = 0
    connections: int = 0
    open: int = 0
    refused: int = 0
    dropped: int = 0
    records: int = 0
    records_lost: int = 0

    def as_dict(self) -> dict[str, int]:
        """Return the counters for views and metrics."""
        return {
            "diverted": self.diverted,
            "copied": self.copied,
            "copies_dropped": self.copies_dropped,
            "copies_truncated": self.copies_truncated,
            "connections": self.connections,
            "open": self.open,
            "refused": self.refused,
            "dropped": self.dropped,
            "records": self.records,
            "records_lost": self.records_lost,
        }


class Session:
    """A session whose spec was accepted. Nothing is diverted into it before its hello is answered.

    `greeted` is a tunnel whose hello has been answered; `begin` is then not called.
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
        waiting: WaitingBytes | None = None,
        world: PodWorld | None = None,
    ) -> None:
        self.intercept = intercept
        self.bounds: CaptureBounds | None = None
        """Of a capture, once it is in the registry."""
        self._counters = SessionCounters()
        self.feed: RecordFeed | None = None
        """The way of records of inspection to the session; None if it gets none."""
        if intercept.records:
            self.feed = RecordFeed(tell=self._tell_lost, waiting=waiting or WaitingBytes())
        self._access: AccessServer | None = None
        """What the session may use of the pods' world; None for every other kind of session."""
        if intercept.allow:
            self._access = AccessServer(intercept, world or NoWorld(), on_crash=self._crashed)
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

    @property
    def counters(self) -> SessionCounters:
        """What happened since the session began."""
        if self.feed is not None:
            self._counters.records, self._counters.records_lost = self.feed.sent, self.feed.lost
        return self._counters

    async def begin(self) -> None:
        """Send the hello over the connection, which has its transport. Raises PeerError or RefusedError."""
        answer = await self._end.hello(self._hello)
        self._greeted.set()
        if answer.software != self._hello.software:
            get_logger("sessions").info(
                "a command line of another version",
                session=self.intercept.display, software=answer.software or "not told", tunnel=answer.version,
            )  # fmt: skip

    async def run(self) -> SidestepError | None:
        """Send events until the session is over. Returns the error that ended it, None for an orderly end."""
        if self.feed is not None:
            self._pumps.start(self.feed.run(self._end.open_records), name="records")
        if self._access is not None:
            self._pumps.start(self._give_access(self._access), name="access")
        error = await self._end.run()
        return self._crash or error

    async def _give_access(self, access: AccessServer) -> None:
        try:
            await access.run(self._end.open_access, self._end.open_access_data)
        except (PeerError, RefusedError) as error:
            self.connection.close(error)

    async def end(self, ended: Ended) -> None:
        """Send the reason for the end, then close the session."""
        self._stop()
        if self.feed is not None:
            await self.feed.drain()
        await self._end.end(ended)

    async def conclude(self, ended: Ended, *, within: float) -> None:
        """The same, after what is on its way has been delivered, or `within` seconds have passed."""
        self._stop()
        try:
            async with time_limit(within):
                await self._pumps.wait()
        except TimeoutError:
            pass
        await self._end.end(ended)

    async def aclose(self) -> None:
        """Close the tunnel. The pumps get a moment to deliver received bytes, then they end."""
        self._stop()
        if self.feed is not None:
            self.feed.close()
        self.connection.close()
        try:
            async with time_limit(self._limits.farewell):
                await self._pumps.wait()
        except TimeoutError:
            pass
        finally:
            await self._pumps.aclose()

    def publish(self, state: State) -> None:
        """Send the state of pods and conditions, if it has changed."""
        if self.bounds is not None and state.active:
            self.bounds.begin()
        if self._access is not None:
            usable = (each.pod.partition("/") for each in state.pods if each.state in {"active", "attached"})
            self._access.follow(PodKey(namespace, name) for namespace, _, name in usable)
        if state != self._state:
            self._state = state
            self._end.publish(state)

    def move(self, reason: str) -> None:
        """Tell the session to register again; connections in this tunnel continue."""
        self._end.publish(Moving(reason))

    def record(self, request: Request) -> None:
        """Send an event about a request that was diverted or copied, or about a lost copy."""
        counters = self.counters
        if request.earlier:
            pass
        elif not request.copied:
            counters.diverted += 1
        elif request.lost == "truncated":
            counters.copies_truncated += 1
        elif request.lost:
            counters.copies_dropped += 1
        else:
            counters.copied += 1
        self._end.publish(request)
        self.counters.dropped = self._end.dropped

    def record_answer(self, answered: Answered) -> None:
        """Send an event about the answer to a request that was told before."""
        self._end.publish(answered)
        self.counters.dropped = self._end.dropped

    def record_earlier(self, earlier: Earlier) -> None:
        """Send the event that a pod's earlier requests were told."""
        self._end.publish(earlier)
        self.counters.dropped = self._end.dropped

    def record_loss(self, lost: Lost) -> None:
        """Send the number of copies, or of records, that a pod proxy did not make."""
        if self.feed is not None:
            self.feed.lose(lost.pod, lost.reason, lost.count)
            return
        self._counters.copies_dropped += lost.count
        self._end.publish(lost)

    def _tell_lost(self, lost: Lost) -> None:
        self._end.publish(lost)

    async def open_stream(self, opening: StreamOpening, *, number: StreamNumber | None = None) -> socket.socket:
        """Connect one diverted connection to the handler; returns the pod proxy's end of a socketpair.

        `number` identifies the connection for `reset_stream`. `opening` comes from a pod proxy and is checked before it
        is sent: an invalid value must not end the tunnel of the session's other pods. Raises RefusedError, and
        PeerError for an invalid `opening`.
        """
        opening.check()
        await self._greeted.wait()
        self._check_open()
        if len(self._pumps) >= 2 * self._limits.streams:  # pumps of ended streams still deliver received bytes
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
        channel = SocketChannel(ours) if self.bounds is None else CaptureChannel(ours, self.bounds)
        task = self._pumps.start(pump(stream, channel), name=f"stream {stream.id}")
        if number is not None:
            self._numbered[number] = task
        task.add_done_callback(lambda done: self._pumped(channel, number, done))
        task.add_done_callback(lambda _: self._shares.release(opening.pod))
        return theirs

    async def _connect(self, opening: StreamOpening) -> tuple[Stream, socket.socket, socket.socket]:
        """Open a stream that the handler has accepted, and a socketpair for it. Raises RefusedError."""
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
        """Break a connection in both directions; returns False when it does not belong to this session."""
        task = self._numbered.pop(number, None)
        if task is None:
            return False
        task.cancel()
        return True

    def _stop(self) -> None:
        """Open no more streams."""
        self._over = True
        self._greeted.set()

    def _check_open(self) -> None:
        if self._over:
            raise RefusedError("the session is gone")

    def _pumped(self, channel: SocketChannel, number: StreamNumber | None, task: asyncio.Task[None]) -> None:
        self.counters.open -= 1
        if number is not None and self._numbered.get(number) is task:
            del self._numbered[number]
        channel.close()  # the pump closes it too, but not when its task is cancelled before its first step

    def _crashed(self, task: str, error: BaseException) -> None:
        self._crash = BugError(f"{task} failed: {error!r}")
        self._crash.__cause__ = error
        self.connection.close(self._crash)
