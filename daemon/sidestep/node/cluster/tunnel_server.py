"""Accepts sessions of a cluster: TLS 1.3 on the daemon pod's loopback, where only port-forwards arrive, and the hello.

A connection proves nothing by itself. The daemon sends a nonce; the answer must name one intercept that this node knows
and carry a signature by the key that was pinned when the resource was first observed. Until then a connection costs
little memory (`Connection`, unproved), and at most `MAX_UNPROVED` exist, counted from the first byte of the TLS
handshake. Above that the oldest is closed, but not before it had `GRACE` seconds: the owner of a key needs less, and
nobody else can keep others out for longer. Meanwhile newcomers wait in the kernel's queue.
"""

from __future__ import annotations

import asyncio
import errno
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
"""Addresses at which a port-forward arrives, depending on the runtime."""
MAX_UNPROVED = 64
"""Connections whose hello has not been answered."""
GRACE = 1.0
"""Seconds that each connection has for its proof even if others wait."""
BACKLOG = 128
"""Connections that wait in the kernel."""
BREATH = 0.5
"""Seconds without accepting after the kernel refused to (no descriptors)."""
SHARED = "is there another daemon in this network namespace? daemonset.yaml gives each one of its own"
HANDSHAKE_TIMEOUT = 10.0
"""Seconds for the TLS handshake."""


class TunnelServer:
    """Listens after `start`. Each proved connection becomes a session."""

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
        """Tasks of connections without proof, oldest first, with their arrival times."""
        self._listeners: list[socket.socket] = []
        self._resuming: asyncio.TimerHandle | None = None
        self._log = get_logger("tunnels")

    async def start(self) -> None:
        """Start listening. Raises KernelError when IPv4's loopback is not available."""
        for address in ADDRESSES:
            try:
                family = socket.AF_INET6 if ":" in address else socket.AF_INET
                listener = socket.create_server((address, self.port), family=family, backlog=BACKLOG)
            except OSError as error:
                if address == ADDRESSES[0]:
                    hint = SHARED if error.errno == errno.EADDRINUSE else ""
                    doing = f"listening on {address}:{self.port}"
                    raise KernelError("bind", error.errno or 0, doing=doing, hint=hint) from error
                continue  # a node without IPv6
            listener.setblocking(False)
            self._listeners.append(listener)
            self.port = self.port or listener.getsockname()[1]
        self._resume()

    async def aclose(self) -> None:
        """Stop listening, and end connections that have not become a session."""
        self._pause(None)
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        await self._tasks.aclose()

    # --- accepting
    # ------------------------------------------------------------------------------------------------------

    def _resume(self) -> None:
        self._resuming = None
        for listener in self._listeners:
            self._loop.add_reader(listener, self._accept, listener)

    def _pause(self, seconds: float | None) -> None:
        """Stop accepting for so many seconds; None: permanently."""
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
        """Remove a connection from the unproved ones, after its proof or end, which makes room for another."""
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
            return  # the handshake failed; asyncio has closed the socket
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
        assert task is not None  # noqa: S101 - runs in a task
        self._no_longer_unproved(task)
        connection.mark_proved()
        intercept = resource.intercept
        assert intercept is not None  # noqa: S101 - a resource with a key has an intercept
        session = Session(
            intercept=intercept,
            node=self._node,
            software=__version__,
            limits=self._limits,
            greeted=end,
            waiting=self._sessions.waiting_records,
            world=self._sessions.world,
        )
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
        answer = await end.hello(hello, verify=check)
        if answer.software != __version__:
            software = answer.software or "not told"
            self._log.info("a command line of another version", software=software, tunnel=answer.version)
        return found[0]
