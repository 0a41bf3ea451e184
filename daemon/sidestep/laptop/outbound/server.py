"""The proxy on 127.0.0.1: SOCKS5 and HTTP on one port, told apart by the first byte; every connection is made by a pod.

One client

    asking      it shows that it may use the proxy (`local_user`, or the password) and says where to, within ASKING
                seconds
    connecting  the pod has been asked; a refusal is answered, and told to the developer
    relaying    bytes in both directions (`tunnel.pump`), or a request sent on (`http_proxy`), or datagrams
                (`udp_association`)
    over        its socket is closed

Invariants
  * At most MAX_CLIENTS clients at once, or as many as `descriptors` has room for: others wait in the listener's queue.
    Clients that have not shown that they may use the proxy are counted by themselves (`places`).
  * Closing the proxy ends them all.
  * A client that goes away, or breaks the rules, ends its own connection only.
  * A client that has been answered is read from until it ends, PARTING seconds at most, so that it gets the answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from collections.abc import Callable
from types import TracebackType
from typing import Final, Literal, Protocol, Self

import h11
import msgspec

from sidestep.aio.tasks import Tasks
from sidestep.aio.time_limit import time_limit
from sidestep.laptop.loopback_listener import HOST, listen_on_loopback
from sidestep.laptop.outbound import descriptors, http_proxy, socks5
from sidestep.laptop.outbound.conversation import Conversation, EarlyChannel
from sidestep.laptop.outbound.local_user import TELLS_USERS, is_ours
from sidestep.laptop.outbound.places import Places
from sidestep.laptop.outbound.socks5 import Command, Place, Reply
from sidestep.laptop.outbound.udp_association import UdpAssociation
from sidestep.laptop.pod_access import Granted
from sidestep.model.errors import ConfigurationError, PeerError, RefusedError, SidestepError
from sidestep.model.text import harmless
from sidestep.tunnel.pump import pump

MAX_CLIENTS: Final = 1024
MAX_UNPROVEN: Final = 256
"""Clients beside them that have not shown that they may use the proxy."""
MAX_CONNECTING: Final = 256
"""Of these, clients for whom the pod is asked at once: with more, all of them would come near the deadline."""
ASKING: Final = 10.0
"""Seconds."""
BACKLOG: Final = 1024
USER: Final = "sidestep"
TOLD_AT_ONCE, TOLD_PAUSE = 20, 1.0
"""Refusals and ends that are told at once, and the seconds after which another one may be."""
TOLD_REST: Final = 5.0
"""Seconds after which the number of those that were not told is."""
PATIENCE: Final = 2.0
"""Seconds for which a client that has not shown that it may use the proxy is not ended for another one, where this
machine does not tell whose clients are: all of them may be this user's."""


class Access(Protocol):
    """What is needed of `laptop.pod_access.PodAccess`."""

    ended: Callable[[str], None]
    """Called with the reason why the node has ended a connection."""

    async def connect(self, host: str, port: int, protocol: Literal["tcp", "udp"] = "tcp") -> Granted:
        """Connect from the pod. Raises RefusedError, PeerError."""


class Urls(msgspec.Struct, frozen=True):
    """How clients are told of the proxy. They hold its password."""

    port: int
    password: str
    host: str = HOST
    user: str = USER

    @property
    def socks(self) -> str:
        """With names looked up by the pod."""
        return f"socks5h://{self.user}:{self.password}@{self.host}:{self.port}"

    @property
    def http(self) -> str:
        """For clients that speak HTTP only."""
        return f"http://{self.user}:{self.password}@{self.host}:{self.port}"

    def variables(self) -> dict[str, str]:
        """Return the variables by which programs find it, in both spellings; loopback stays this machine's."""
        named = {
            "ALL_PROXY": self.socks,
            "HTTP_PROXY": self.http,
            "HTTPS_PROXY": self.http,
            "NO_PROXY": "localhost,127.0.0.1,::1",
        }
        return named | {name.lower(): value for name, value in named.items()}


class OutboundProxy:
    """Serves while it is entered. `tell` gets a line about each refusal and each connection that the node ends, at most
    as often as TOLD_PAUSE says, and then the number of the others."""

    def __init__(self, access: Access, *, port: int = 0, tell: Callable[[str], None]) -> None:
        self._access = access
        self._port = port
        self._tell = tell
        self._password = secrets.token_urlsafe(18)
        self._tasks = Tasks("outbound proxy")
        found = descriptors.clients(MAX_CLIENTS, MAX_UNPROVEN)
        self._places = Places(found.most, unproven=found.unproven, patience=0.0 if TELLS_USERS else PATIENCE)
        self._to_tell = found.told
        self._connecting = asyncio.Semaphore(MAX_CONNECTING)
        self._listener: socket.socket | None = None
        self._may_tell = float(TOLD_AT_ONCE)
        self._told = 0.0
        self._untold = 0
        self._rest: asyncio.TimerHandle | None = None

    @property
    def urls(self) -> Urls:
        """How it is reached."""
        assert self._listener is not None  # noqa: S101 - it is entered
        return Urls(self._listener.getsockname()[1], self._password)

    async def __aenter__(self) -> Self:
        try:
            listener = listen_on_loopback(self._port, backlog=BACKLOG)
        except OSError as error:
            reason = f"cannot be listened on: {(error.strerror or str(error)).lower()}"
            raise ConfigurationError(reason, subject="port", value=str(self._port)) from error
        listener.setblocking(False)
        self._listener = listener
        self._access.ended = self._tell_some
        if self._to_tell:
            self._tell(self._to_tell)
        self._tasks.start(self._accept(listener), name="accept")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._tasks.aclose()
        self._tell_rest()
        if self._listener is not None:
            self._listener.close()

    async def failed(self) -> None:
        """Wait; raises what made the proxy fail."""
        await self._tasks.wait()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._places.room()
            try:
                sock, _ = await loop.sock_accept(listener)
            except OSError:
                await asyncio.sleep(0.1)  # no descriptor is left, or the client has gone again
                continue
            sock.setblocking(False)
            task = self._tasks.start(self._client(sock), name="client")
            task.add_done_callback(lambda _, sock=sock: self._over(sock))  # type: ignore[misc]  # the default binds it
            self._places.take(sock, task.cancel, proven=is_ours(sock))
            await asyncio.sleep(0)  # sock_accept does not yield while clients wait

    def _over(self, sock: socket.socket) -> None:
        sock.close()
        self._places.leave(sock)

    async def _client(self, sock: socket.socket) -> None:
        client = Conversation(sock)
        with contextlib.suppress(PeerError, OSError):  # TimeoutError is one, and so is that no descriptor is left
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with time_limit(ASKING):
                first = await client.peek()
            if first == socks5.VERSION:
                await self._socks(client)
            elif first == socks5.VERSION_4:
                await client.say(socks5.REFUSED_4)
            elif not bytes((first,)).isalpha():  # TLS, for instance
                await client.say(http_proxy.refusal(400, "this proxy speaks HTTP without TLS, and SOCKS version 5"))
            else:
                await self._http(client)
        await client.part()

    # --- SOCKS5 -----------------------------------------------------------------------------------------------------

    async def _socks(self, client: Conversation) -> None:
        async with time_limit(ASKING):
            ours = self._places.is_proven(client.sock)
            await socks5.greet(client, user=USER, password=self._password, is_ours=ours)
            self._places.prove(client.sock)
            command, place = await socks5.request(client)
        if command is Command.UDP_ASSOCIATE:
            await UdpAssociation(self._access, client, tell=self._refused).run()
            return
        try:
            async with self._connecting:
                granted = await self._access.connect(place.host, place.port)
        except SidestepError as error:
            self._refused(place, error)
            await socks5.reply(client, Reply.FAILED)
            return
        async with granted:
            await socks5.reply(client, Reply.SUCCEEDED)
            await pump(granted.stream, EarlyChannel(client))

    # --- HTTP -------------------------------------------------------------------------------------------------------

    async def _http(self, client: Conversation) -> None:
        try:
            async with time_limit(ASKING):
                ours = self._places.is_proven(client.sock)
                asked = await http_proxy.request(client, user=USER, password=self._password, is_ours=ours)
                self._places.prove(client.sock)
        except http_proxy.RefusalError as error:
            await client.say(http_proxy.refusal(error.status, str(error)))
            return
        try:
            async with self._connecting:
                granted = await self._access.connect(asked.place.host, asked.place.port)
        except SidestepError as error:
            self._refused(asked.place, error)
            await client.say(http_proxy.refusal(502, str(error)))
            return
        async with granted:
            if asked.forward is None:
                await client.say(b"HTTP/1.1 200 Connection established\r\n\r\n")
                await pump(granted.stream, EarlyChannel(client))
            else:
                await self._forward(client, asked, asked.forward, granted)

    async def _forward(
        self, client: Conversation, asked: http_proxy.Asked, request: h11.Request, granted: Granted
    ) -> None:
        """Send one request on, and its answer back; ends with the answer."""
        stream = granted.stream

        async def upward() -> None:
            try:
                await http_proxy.send_on(client, asked.connection, request, stream.write)
                while await client.read():
                    pass  # a second request, which has to come in a connection of its own
                await stream.write_eof()
            except PeerError:
                if not stream.over:  # else the server broke off, maybe after an answer, which is still to be read
                    stream.reset()

        async with Tasks("request") as tasks:
            tasks.start(upward(), name="upward")
            try:
                while data := await stream.read():
                    await client.say(data)
            except PeerError:
                client.abort()
                raise

    # --- refusals ---------------------------------------------------------------------------------------------------

    def _refused(self, place: Place, error: SidestepError) -> None:
        """Tell the developer why a connection was not made, unless there are too many."""
        host = f"[{place.host}]" if ":" in place.host else place.host
        reason = str(error) if isinstance(error, RefusedError) else f"the tunnel broke: {error}"
        self._tell_some(f"No connection to {host}:{place.port}: {reason}")

    def _tell_some(self, text: str) -> None:
        now = asyncio.get_running_loop().time()
        self._may_tell = min(float(TOLD_AT_ONCE), self._may_tell + (now - self._told) / TOLD_PAUSE)
        self._told = now
        if self._may_tell >= 1.0:
            self._may_tell -= 1.0
            self._tell(harmless(text))
            return
        self._untold += 1
        if self._rest is None:
            self._rest = asyncio.get_running_loop().call_later(TOLD_REST, self._tell_rest)

    def _tell_rest(self) -> None:
        if self._rest is not None:
            self._rest.cancel()
            self._tell(f"More connections were refused or ended: {self._untold}.")
            self._rest, self._untold = None, 0
