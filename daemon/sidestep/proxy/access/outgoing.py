"""One connection that the pod proxy makes for a session, from the daemon's `Dial` to its end.

States

    connecting   `connecting.Connecting` at work; the daemon's socket is watched for its end only
    relaying     `Dialed` was sent: TCP is spliced (`io.splice`), UDP goes through `datagram_relay`
    over         both sockets are closed

    connecting --made--> relaying --ends, resets--> over
    connecting --refused, failed, in time or not--> over, with the reason in `Dialed`
    connecting | relaying --the daemon closes its socket--> over: the session has ended, lost its right, or gave it up

Invariants
  * `Dialed` is sent once, unless the daemon has closed its socket before.
  * An end of the server is passed on as an end. After a reset the daemon's socket is closed in both directions at once,
    before the daemon has ended its own.
  * Being over closes both descriptors, ends the task, and is told to the owner once.
"""

from __future__ import annotations

import socket
from typing import Final, Protocol

from sidestep.model.errors import SidestepError
from sidestep.proxy.access.connecting import Connecting, PodNetwork
from sidestep.proxy.access.datagram_relay import DatagramRelay
from sidestep.proxy.control.messages import MAX_DIAL_ERROR, Dial
from sidestep.proxy.io.loop import READ, Loop
from sidestep.proxy.io.splice import Pipes, Splicer
from sidestep.proxy.io.stream import PlainStream
from sidestep.proxy.io.task import Task

KINDS: Final = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


class OutgoingOwner(Protocol):
    """What all such connections share."""

    loop: Loop
    pipes: Pipes

    def dialed(self, stream: int, error: str, address: str = "") -> None:
        """Tell the daemon that a connection is made, and to which address, or why not."""

    def over(self, outgoing: Outgoing) -> None:
        """Note that a connection is over."""


class Outgoing:
    """See the module. Owns `sock`, the socket to the daemon."""

    def __init__(self, owner: OutgoingOwner, dial: Dial, sock: socket.socket, network: PodNetwork) -> None:
        self._owner = owner
        self._dial = dial
        self._stream = PlainStream(sock)
        self._network = network
        self._relay: Splicer | DatagramRelay | None = None
        self._over = False
        self._task = Task(self._run())

    def begin(self) -> None:
        """Connect. Raises OSError when the daemon's socket cannot be watched."""
        try:
            self._owner.loop.add(self._stream.fd, self._hung_up, 0)
        except OSError:
            self._task.cancel()
            raise
        self._task.start()

    def abandon(self) -> None:
        """End it now."""
        if self._relay is not None:
            self._relay.abandon()
        else:
            self._task.cancel()
            self._close()

    def _hung_up(self, mask: int) -> None:
        """The daemon has closed its socket while the connection was being made."""
        del mask
        self._task.cancel()
        self._close()

    async def _run(self) -> None:
        dial = self._dial
        connecting = Connecting(self._owner.loop, self._network, allow_loopback=dial.allow_loopback)
        try:
            sock = await connecting.connected(dial.host, dial.port, KINDS[dial.protocol])
            address = connecting.address
        except SidestepError as error:
            self._refuse(str(error))
        except Exception as error:
            self._refuse(f"the pod's proxy met an error of its own: {type(error).__name__}")
            raise
        else:
            self._begin_relay(sock, address)

    def _begin_relay(self, sock: socket.socket, address: str) -> None:
        owner, stream = self._owner, self._stream
        try:
            if sock.type & socket.SOCK_DGRAM:
                self._relay = DatagramRelay(owner.loop, stream, sock, done=self._relayed)
            else:
                owner.loop.add(sock.fileno(), self._hung_up, READ)
                self._relay = Splicer(
                    owner.loop,
                    owner.pipes,
                    PlainStream(sock),
                    stream,
                    ended=(False, False),
                    finished=(False, False),
                    done=self._relayed,
                )
        except OSError as error:
            owner.loop.remove(sock.fileno())
            sock.close()
            self._refuse(f"the pod's proxy cannot hold another connection: {error.strerror}")
            return
        owner.dialed(self._dial.stream, "", address)

    def _refuse(self, reason: str) -> None:
        self._owner.dialed(self._dial.stream, reason[:MAX_DIAL_ERROR])
        self._close()

    def _close(self) -> None:
        self._owner.loop.remove(self._stream.fd)
        self._stream.close()
        self._relayed()

    def _relayed(self) -> None:
        if not self._over:
            self._over = True
            self._owner.over(self)
