"""Sessions of a cluster: TLS 1.3 on the daemon pod's loopback, where only port-forwards arrive, and the hello.

A connection proves nothing. The daemon asks with a nonce; the answer must name one intercept that this node knows and
sign for it with the key that was pinned when the resource was first seen. Until then a connection costs a little
memory (`Connection`, unproved), and there are at most `MAX_STRANGERS` of them, from the first byte of their TLS
handshake on. When there are more, the oldest has to go, but not before it had `GRACE` seconds: whoever holds a key
needs less, and nobody who does not keeps others out for longer. Until then newcomers wait in the kernel's queue.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Callable

from sidestep import __version__
from sidestep.aio.tasks import Tasks
from sidestep.model.errors import KernelError, PeerError, RefusedError, SidestepError
from sidestep.node.sessions.registry import SessionRegistry
from sidestep.node.sessions.resource import SessionResource
from sidestep.node.sessions.resources import SessionResources
from sidestep.node.sessions.session import Session
from sidestep.observability.logs import get_logger
from sidestep.tunnel.connection import Connection
from sidestep.tunnel.daemon_end import DaemonEnd
from sidestep.tunnel.limits import DEFAULT_LIMITS, TunnelLimits
from sidestep.tunnel.messages import VERSION, Hello, HelloAnswer
from sidestep.tunnel.node_tls import NodeTls
from sidestep.tunnel.proof import verify

ADDRESSES = ("127.0.0.1", "::1")
"""Where a port-forward arrives, as the runtime chooses."""
MAX_UNPROVED = 64
"""Connections at once whose hello has not been answered."""
GRACE = 1.0
"""Seconds that each has for its proof even if others wait."""
BACKLOG = 128
"""Connections that wait in the kernel."""
BREATH = 0.5
"""Seconds without accepting after the kernel refused to (no descriptors)."""
HANDSHAKE_TIMEOUT = 10.0
"""Seconds for TLS."""


class TunnelServer:
    """Listens once `start`ed; each proved connection becomes a session."""

    def __init__(
        self,
        *,
        tls: NodeTls,
        port: int,
        node: str,
        resources: SessionResources,
        sessions: SessionRegistry,
        on_crash: Callable[[str, BaseException], None],
        limits: TunnelLimits = DEFAULT_LIMITS,
    ) -> None:
        self._tls = tls
        self.port = port
        self._node = node
        self._resources = resources
        self._sessions = sessions
        self._limits = limits
        self._tasks = Tasks("tunnels", on_crash=on_crash)
        self._loop = asyncio.get_running_loop()
        self._unproved: dict[asyncio.Task[None], float] = {}
        """Who has proved nothing, oldest first, and when each arrived."""
        self._listeners: list[socket.socket] = []
        self._resuming: asyncio.TimerHandle | None = None
        self._log = get_logger("tunnels")

    async def start(self) -> None:
        """Listen. Raises KernelError when not even IPv4's loopback can be listened on."""
        for address in ADDRESSES:
            try:
                family = socket.AF_INET6 if ":" in address else socket.AF_INET
                listener = socket.create_server((address, self.port), family=family, backlog=BACKLOG)
            except OSError as error:
                if address == ADDRESSES[0]:
                    raise KernelError("bind", error.errno or 0, doing=f"listening on {address}:{self.port}") from error
                continue  # a node without IPv6
            listener.setblocking(False)
            self._listeners.append(listener)
            self.port = self.port or listener.getsockname()[1]
        self._resume()

    async def aclose(self) -> None:
        """Listen no more; end what has not become a session."""
        self._pause(None)
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        await self._tasks.aclose()

    # --- arrivals ---------------------------------------------------------------------------------------------------

    def _resume(self) -> None:
        self._resuming = None
        for listener in self._listeners:
            self._loop.add_reader(listener, self._accept, listener)

    def _pause(self, seconds: float | None) -> None:
        """Accept nobody for so long, or from now on."""
        if self._resuming is not None:
            self._resuming.cancel()
        for listener in self._listeners:
            self._loop.remove_reader(listener)
        self._resuming = None if seconds is None else self._loop.call_later(seconds, self._resume)

    def _accept(self, listener: socket.socket) -> None:
        now = self._loop.time()
        if len(self._unproved) >= MAX_UNPROVED:
            oldest, arrived = next(iter(self._unproved.items()))
            if now - arrived < GRACE:
                self._pause(GRACE - (now - arrived))
                return
            del self._unproved[oldest]
            oldest.cancel()
        try:
            sock, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError:
            self._pause(BREATH)
            return
        task = self._tasks.start(self._serve(sock), name="session")
        self._unproved[task] = now
        task.add_done_callback(self._no_longer_unproved)

    def _no_longer_unproved(self, task: asyncio.Task[None]) -> None:
        """It is no stranger any more: it has proved who it is, or is gone. That makes room."""
        if self._unproved.pop(task, None) is not None and self._resuming is not None:
            self._resuming.cancel()
            self._resume()

    async def _serve(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        connection = Connection(limits=self._limits, budget=self._sessions.budget, proved=False)
        try:
            await self._loop.connect_accepted_socket(
                lambda: connection, sock, ssl=self._tls.context, ssl_handshake_timeout=HANDSHAKE_TIMEOUT
            )
        except OSError:
            return  # whoever it was has no interest; asyncio has closed the socket
        except asyncio.CancelledError:
            sock.close()
            raise
        try:
            await self._greet(connection)
        finally:
            connection.close()

    async def _greet(self, connection: Connection) -> None:
        end = DaemonEnd(connection, limits=self._limits)
        try:
            resource = await self._hello(end)
        except (PeerError, RefusedError) as error:
            self._log.warning("session refused", reason=str(error))
            connection.close(error)
            await connection.wait_closed()
            return
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - this is a coroutine
        self._no_longer_unproved(task)
        connection.mark_proved()
        intercept = resource.intercept
        assert intercept is not None  # noqa: S101 - only what can be served has a key to prove
        session = Session(intercept=intercept, node=self._node, software=__version__, limits=self._limits, greeted=end)
        self._log.info("session", intercept=intercept.display, owner=intercept.owner)
        ended: SidestepError | None
        try:
            ended = await self._sessions.join(session)
        except RefusedError as refused:
            connection.close(refused)
            ended = refused
        self._log.info("session ended", intercept=intercept.display, reason=str(ended) if ended else "closed")

    async def _hello(self, end: DaemonEnd) -> SessionResource:
        found: list[SessionResource] = []

        def check(hello: Hello, answer: HelloAnswer) -> None:
            if len(answer.serves) != 1:
                raise RefusedError("a session serves one intercept")
            resource = self._resources.find(answer.serves[0])
            if resource is None or not resource.key:
                raise RefusedError("the session claims an intercept that this node does not know")
            verify(
                resource.key, answer.proof, nonce=hello.nonce, certificate=self._tls.certificate, uid=answer.serves[0]
            )
            found.append(resource)

        hello = Hello(
            version=VERSION,
            software=__version__,
            node=self._node,
            nonce=secrets.token_hex(32),
            intercept="",
            namespace="",
            name="",
        )
        await end.hello(hello, verify=check)
        return found[0]
