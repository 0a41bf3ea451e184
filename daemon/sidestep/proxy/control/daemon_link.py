"""The control channel on the event loop: every message of the daemon handed on, every message of ours sent or queued.

`on_message(message, fd)` is called in the order of arrival; it may raise PeerError, as a channel does that closes or
carries nonsense: either is the end of the line, told once by `on_gone`. After that nothing is sent and nobody is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sidestep.model.errors import PeerError
from sidestep.proxy.control import messages
from sidestep.proxy.control.channel import ChannelClosed, ControlChannel
from sidestep.proxy.control.daemon_breaker import DaemonBreaker
from sidestep.proxy.io.loop import READ, WRITE, Loop

BACKLOG: Final = 256
"""Messages that wait for a slow daemon above which it is asked nothing on behalf of clients."""


class DaemonLink:
    """The daemon, as a worker reaches it."""

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
        """Begin to receive."""
        self._loop.add(self._channel.fileno(), self._ready, READ)
        self._loop.urgent = self.glance  # a daemon that is not answered in time kills the process

    def glance(self) -> None:
        """Receive what is there."""
        if self.is_open:
            self._ready(READ)

    @property
    def is_open(self) -> bool:
        """Whether the daemon can still be spoken to."""
        return self._channel.fileno() >= 0

    @property
    def is_backlogged(self) -> bool:
        """Whether the daemon is so far behind that it should not be asked for more: its queue is bounded."""
        return self._channel.pending >= BACKLOG

    def advise(self, message: messages.Message) -> bool:
        """Send a message that may be lost when the daemon is far behind; tell whether it was sent."""
        return self.send(message, droppable=self.is_backlogged)

    def send(self, message: messages.Message, *, droppable: bool = False) -> bool:
        """Send or queue a message; False when it was not: dropped, or nobody is there."""
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
        """Answer a message. Raises ChannelClosed, which `on_message` lets through."""
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
        self.breaker.heard()
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
