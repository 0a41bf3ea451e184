"""Sessions of a cluster: TLS 1.3 on the daemon pod's loopback, where only port-forwards arrive, and the hello.

A connection proves nothing. The daemon asks with a nonce; the answer must name one intercept that this node knows and
sign for it with the key that was pinned when the resource was first seen. Until then a connection costs a little
memory, and there are few of them.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable

from sidestep import __version__
from sidestep.aio.tasks import Tasks
from sidestep.model.errors import KernelError, PeerError, RefusedError, SidestepError
from sidestep.node.held import Held
from sidestep.node.registry import Registry
from sidestep.node.session import Session
from sidestep.node.sessions import Sessions
from sidestep.observability.logs import get_logger
from sidestep.tunnel.connection import Connection
from sidestep.tunnel.daemon_end import DaemonEnd
from sidestep.tunnel.limits import DEFAULT_LIMITS, TunnelLimits
from sidestep.tunnel.messages import VERSION, Hello, HelloAnswer
from sidestep.tunnel.node_tls import NodeTls
from sidestep.tunnel.proof import verify

ADDRESSES = ("127.0.0.1", "::1")
"""Where a port-forward arrives, as the runtime chooses."""
MAX_STRANGERS = 64
"""Connections at once whose hello has not been answered."""
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
        registry: Registry,
        sessions: Sessions,
        on_crash: Callable[[str, BaseException], None],
        limits: TunnelLimits = DEFAULT_LIMITS,
    ) -> None:
        self._tls = tls
        self.port = port
        self._node = node
        self._registry = registry
        self._sessions = sessions
        self._limits = limits
        self._tasks = Tasks("tunnels", on_crash=on_crash)
        self._strangers = 0
        self._servers: list[asyncio.Server] = []
        self._log = get_logger("tunnels")

    async def start(self) -> None:
        """Listen. Raises KernelError when not even IPv4's loopback can be listened on."""
        loop = asyncio.get_running_loop()
        for address in ADDRESSES:
            try:
                server = await loop.create_server(
                    lambda: _Arrival(self, limits=self._limits),
                    address,
                    self.port,
                    ssl=self._tls.context,
                    ssl_handshake_timeout=HANDSHAKE_TIMEOUT,
                )
            except OSError as error:
                if address == ADDRESSES[0]:
                    raise KernelError("bind", error.errno or 0, doing=f"listening on {address}:{self.port}") from error
                continue  # a node without IPv6
            self._servers.append(server)
            self.port = self.port or server.sockets[0].getsockname()[1]

    async def aclose(self) -> None:
        """Listen no more; end what has not become a session."""
        for server in self._servers:
            server.close()
        await self._tasks.aclose()

    def arrived(self, connection: Connection) -> None:
        """A connection has finished its TLS handshake."""
        if self._strangers >= MAX_STRANGERS:
            connection.close()
            return
        self._strangers += 1
        self._tasks.start(self._greet(connection), name="session")

    async def _greet(self, connection: Connection) -> None:
        end = DaemonEnd(connection, limits=self._limits)
        try:
            held = await self._hello(end)
        except (PeerError, RefusedError) as error:
            self._log.warning("session refused", reason=str(error))
            connection.close(error)
            await connection.wait_closed()
            return
        finally:
            self._strangers -= 1
        intercept = held.intercept
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

    async def _hello(self, end: DaemonEnd) -> Held:
        found: list[Held] = []

        def check(hello: Hello, answer: HelloAnswer) -> None:
            if len(answer.serves) != 1:
                raise RefusedError("a session serves one intercept")
            held = self._registry.find(answer.serves[0])
            if held is None or not held.key:
                raise RefusedError("the session claims an intercept that this node does not know")
            verify(held.key, answer.proof, nonce=hello.nonce, certificate=self._tls.certificate, uid=answer.serves[0])
            found.append(held)

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


class _Arrival(Connection):
    """A tunnel that tells the server when it has its transport."""

    def __init__(self, server: TunnelServer, *, limits: TunnelLimits) -> None:
        super().__init__(limits=limits)
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As Connection.connection_made; then the hello."""
        super().connection_made(transport)
        self._server.arrived(self)
