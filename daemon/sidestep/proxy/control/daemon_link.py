"""The control channel on the event loop: receives the daemon's messages, sends or queues ours.

`on_message(message, fd)` is called for each message, in the order of arrival. When the channel closes, or something
that cannot be decoded arrives, or `on_message` raises PeerError, the link ends: `on_gone` is called once, and nothing
is sent from then on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sidestep.aio.packets import ChannelClosed
from sidestep.model.errors import PeerError
from sidestep.proxy.control import messages
from sidestep.proxy.control.channel import ControlChannel
from sidestep.proxy.control.daemon_breaker import DaemonBreaker
from sidestep.proxy.io.loop import READ, WRITE, Loop

BACKLOG: Final = 256
"""Queued messages above which no call is made on behalf of clients: the daemon is far behind."""


class DaemonLink:
    """The worker's connection to the daemon."""

    def __init__(
        self,
        loop: Loop,
        channel: ControlChannel[messages.ToProxy],
        *,
        on_message: Callable[[messages.ToProxy, int | None], None],
        on_gone: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._channel = channel
        self._on_message = on_message
        self._on_gone = on_gone
        self.next_seq = channel.next_seq
        self.breaker = DaemonBreaker(loop)

    def watch(self) -> None:
        """Begin to receive. During long batches of events messages are received, too (`Loop.urgent`)."""
        self._loop.add(self._channel.fileno(), self._ready, READ)
        self._loop.urgent = self.receive_now  # the daemon kills a proxy that does not answer in time

    def receive_now(self) -> None:
        """Receive the messages that have arrived."""
        if self.is_open:
            self._ready(READ)

    @property
    def is_open(self) -> bool:
        """Whether the channel is open."""
        return self._channel.fileno() >= 0

    @property
    def is_backlogged(self) -> bool:
        """Whether so much waits for the daemon that no call should be added to it; the queue is bounded."""
        return self._channel.pending >= BACKLOG

    def advise(self, message: messages.Message) -> bool:
        """Send a message that is dropped while the daemon is far behind; return whether it was sent."""
        return self.send(message, droppable=self.is_backlogged)

    def send(self, message: messages.Message, *, droppable: bool = False) -> bool:
        """Send or queue a message; False if it was dropped or the channel is closed."""
        if not self.is_open:
            return False
        try:
            sent = self._channel.send(message, droppable=droppable)
        except ChannelClosed:
            self._end()
            return False
        if self._channel.pending:
            self._rewatch()
        return sent

    def acknowledge(self, message: messages.Message, error: str) -> None:
        """Answer a message. Raises ChannelClosed, which `on_message` should let through."""
        self._channel.acknowledge(message, error)

    def _ready(self, mask: int) -> None:
        try:
            if mask & WRITE:
                self._channel.flush()
            while self.is_open and (packet := self._channel.receive()) is not None:
                self._received(*packet)
        except (ChannelClosed, PeerError):
            self._end()
            return
        if self.is_open:
            self._rewatch()

    def _received(self, message: messages.ToProxy, fd: int | None) -> None:
        self.breaker.received()
        if isinstance(message, messages.Ack):
            self.breaker.acknowledged(message.seq)
        self._on_message(message, fd)

    def _rewatch(self) -> None:
        self._loop.modify(self._channel.fileno(), READ | (WRITE if self._channel.pending else 0))

    def _end(self) -> None:
        if self.is_open:
            self._loop.remove(self._channel.fileno())
            self._channel.close()
            self._on_gone()
