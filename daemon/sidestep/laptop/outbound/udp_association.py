"""A SOCKS5 client's UDP ASSOCIATE (RFC 1928 section 7): datagrams through a socket on 127.0.0.1.

Each destination has a flow of its own, a stream of the tunnel whose far end is a UDP socket in the pod.

    unknown --first datagram--> opening --granted--> open --end, idle in the pod, oldest of too many--> gone
                                   `---refused---> told, and gone; the next datagram tries again

Invariants
  * The association ends with the client's TCP connection, and its flows with it.
  * Datagrams are taken from one address and port: the first whose socket is of the user who has the connection
    (`local_user.sends_for`; on macOS and Windows the first at all). Others may reach this port, too.
  * At most MAX_FLOWS flows, of each of which at most MAX_WAITING datagrams wait; what is beyond is dropped, as a
    network would.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Literal, Protocol

from sidestep.aio.tasks import Tasks
from sidestep.laptop.outbound import socks5
from sidestep.laptop.outbound.conversation import Conversation
from sidestep.laptop.outbound.local_user import sends_for
from sidestep.laptop.outbound.socks5 import Place, Reply
from sidestep.model.errors import PeerError, SidestepError
from sidestep.protocols import capsules

if TYPE_CHECKING:
    from sidestep.laptop.pod_access import Granted

MAX_FLOWS: Final = 256
MAX_WAITING: Final = 64
"""Datagrams."""
STRANGER: Final = 0.01
"""Seconds until the next datagram after one of another user: to find out whose it is costs about a millisecond."""
_MAX_HEADER: Final = 3 + 2 + 255 + 2


class Access(Protocol):
    """What is needed of `laptop.pod_access.PodAccess`."""

    async def connect(self, host: str, port: int, protocol: Literal["tcp", "udp"] = "tcp") -> Granted:
        """Connect from the pod. Raises RefusedError, PeerError."""


class UdpAssociation:
    """One association. `tell` gets the reasons why flows were refused."""

    def __init__(self, access: Access, client: Conversation, *, tell: Callable[[Place, SidestepError], None]) -> None:
        self._access = access
        self._client = client
        self._tell = tell
        self._sender: tuple[str, int] | None = None
        self._flows: dict[Place, tuple[asyncio.Queue[bytes], asyncio.Task[None]]] = {}
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    async def run(self) -> None:
        """Serve until the client closes its connection. Raises PeerError."""
        sock = self._sock
        try:
            sock.bind((self._client.sock.getsockname()[0], 0))
            sock.setblocking(False)
            await socks5.reply(self._client, Reply.SUCCEEDED, Place(*sock.getsockname()))
            async with Tasks("association") as tasks:
                tasks.start(self._receive(tasks), name="receive")
                while await self._client.read():
                    pass  # there is nothing to be said any more
        finally:
            sock.close()

    async def _receive(self, tasks: Tasks) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                data, sender = await loop.sock_recvfrom(self._sock, capsules.MAX_PAYLOAD + _MAX_HEADER)
            except OSError:
                continue  # an answer met nobody (ICMP)
            found = socks5.datagram(data)
            if found is None or (self._sender or sender) != sender:
                continue
            if self._sender is None and not sends_for(self._client.sock, sender):
                await asyncio.sleep(STRANGER)
                continue
            self._sender = sender
            place, payload = found
            if place not in self._flows:
                if len(self._flows) >= MAX_FLOWS:
                    _, oldest = self._flows.pop(next(iter(self._flows)))
                    oldest.cancel()
                queue: asyncio.Queue[bytes] = asyncio.Queue(MAX_WAITING)
                task = tasks.start(self._flow(place, queue), name=f"flow to port {place.port}")
                self._flows[place] = queue, task
            waiting = self._flows[place][0]
            if not waiting.full():
                waiting.put_nowait(payload)

    async def _flow(self, place: Place, waiting: asyncio.Queue[bytes]) -> None:
        try:
            granted = await self._access.connect(place.host, place.port, "udp")
        except SidestepError as error:
            self._tell(place, error)
        else:
            async with granted, Tasks("flow") as tasks:
                tasks.start(self._send(granted, waiting), name="send")
                await self._answer(granted, place)
        finally:
            if place in self._flows and self._flows[place][0] is waiting:
                del self._flows[place]

    async def _send(self, granted: Granted, waiting: asyncio.Queue[bytes]) -> None:
        try:
            while True:
                await granted.stream.write(capsules.encode(await waiting.get()))
        except PeerError:
            pass  # the flow has ended, as its reader sees

    async def _answer(self, granted: Granted, place: Place) -> None:
        """Send datagrams of the destination to the client until the flow ends."""
        loop, decoder, header = asyncio.get_running_loop(), capsules.Decoder(), b"\0\0\0" + socks5.encode(place)
        try:
            while data := await granted.stream.read():
                for payload in decoder.feed(data):
                    if self._sender is not None:
                        try:
                            await loop.sock_sendto(self._sock, header + payload, self._sender)
                        except OSError:
                            pass  # too long with its header, or nobody is there any more
        except PeerError:
            pass  # broken, or idle for long; the next datagram begins another one
