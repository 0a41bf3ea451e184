"""The control channel as zygote and pod proxy use it, and the codec that both ends share.

One message is one packet. A message of the daemon that exceeds `MAX_INLINE` goes into a sealed memfd, and a `Large`
goes in its place; callers do not see that. A proxy cannot make a memfd (its sandbox refuses it), and bounds what it
sends.

Decoding is strict. An unknown message, field or type, and a descriptor that is missing or does not belong there, raise
PeerError; the receiver then closes the channel.

`ControlChannel` never blocks. The owner polls `fileno()` for reading, and for writing while `pending` is not 0, and
then calls `flush()`. What the socket does not take at once waits in a queue of at most MAX_WAITING messages. When the
queue is full, the daemon has not read for a long time, and `ChannelOverflow` (a `ChannelClosed`) is raised. Messages
whose loss is harmless (heartbeats, log lines) are sent with `droppable=True`, and are dropped while anything waits.
"""

from __future__ import annotations

import os
import select
import socket
from typing import Any, Generic, TypeVar

import msgspec

from sidestep.aio.packets import (
    DescriptorLostError,
    Outbox,
    read_sealed_memfd,
    receive_packet,
    sealed_memfd,
)
from sidestep.model.errors import BugError, PeerError
from sidestep.proxy.control import messages
from sidestep.proxy.control.messages import Message

M = TypeVar("M", bound=Message)

MAX_WAITING = 8192
"""Messages that may wait for the daemon: more than a proxy has connections whose ends it must report."""

CARRY_DESCRIPTOR = frozenset(
    {
        messages.Spawn,
        messages.Spawned,
        messages.Stderr,
        messages.Pulse,
        messages.Enter,
        messages.Credential,
        messages.FeedIds,
        messages.UseInspector,
        messages.ShareTable,
        messages.Listen,
        messages.Opened,
        messages.Dial,
        messages.Large,
    }
)
"""The messages that come with exactly one descriptor; all others come with none."""

UNANSWERED = frozenset({messages.Ack, messages.Spawned, messages.Heartbeat})
"""The messages that are not acknowledged."""


class Codec(Generic[M]):
    """Translates between messages and packets. `receives` is the union of what the other end may send; `folds` whether
    large messages of this end go into memfds.
    """

    def __init__(self, receives: Any, *, folds: bool = True) -> None:
        self._folds = folds
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[M] = msgspec.msgpack.Decoder(receives)

    def encode(self, message: Message, fd: int | None = None) -> tuple[bytes, int | None]:
        """Return the packet and, for a large message, the memfd that goes with it (the caller's to close)."""
        if (fd is not None) is not (type(message) in CARRY_DESCRIPTOR):
            raise BugError(f"{type(message).__name__} was sent with{'out its' if fd is None else ' a'} descriptor")
        data = self._encoder.encode(message)
        if len(data) <= messages.MAX_INLINE:
            return data, None
        if fd is not None or not self._folds:
            raise BugError(f"{type(message).__name__} is too large to travel with a descriptor, or from a proxy")
        memfd = sealed_memfd("sidestep-message", data)
        return self._encoder.encode(messages.Large(message.seq, len(data))), memfd

    def decode(self, data: bytes, fd: int | None) -> tuple[M, int | None]:
        """Return the message and its descriptor, now the caller's to close. PeerError: that has been closed."""
        try:
            message = self._checked(data, fd)
            if fd is None or not isinstance(message, messages.Large):
                return message, fd
            content = self._unfolded(message, fd)
        except PeerError:
            if fd is not None:
                os.close(fd)
            raise
        os.close(fd)
        return content, None

    def decode_alone(self, data: bytes) -> M:
        """Return a message whose descriptor was lost on the way. Raises PeerError."""
        return self._decode(data)

    def acknowledge(self, seq: int, error: str) -> messages.Ack:
        """Make the answer to the message with this `seq`."""
        return messages.Ack(seq, error[:4096])

    def is_answer(self, message: Message) -> bool:
        """Whether the message answers one of ours."""
        return isinstance(message, messages.Ack | messages.Spawned)

    def wants_answer(self, message: Message) -> bool:
        """Whether the message is to be acknowledged."""
        return type(message) not in UNANSWERED

    def _checked(self, data: bytes, fd: int | None) -> M:
        message = self._decode(data)
        if (fd is not None) is not (type(message) in CARRY_DESCRIPTOR):
            raise PeerError(f"{type(message).__name__} came with{'out its' if fd is None else ' a'} descriptor")
        return message

    def _unfolded(self, large: messages.Large, fd: int) -> M:
        message = self._checked(read_sealed_memfd(fd, large.size), None)
        if message.seq != large.seq:
            raise PeerError("a large message is not the one it was announced as")
        return message

    def _decode(self, data: bytes) -> M:
        try:
            return self._decoder.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise PeerError(f"a control message cannot be decoded: {error}") from error


class ControlChannel(Generic[M]):
    """The non-blocking end of a control channel. Owns the socket."""

    def __init__(self, sock: socket.socket, *, receives: Any = messages.ToProxy) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._codec: Codec[M] = Codec(receives, folds=False)
        self._outbox = Outbox(sock, max_packets=MAX_WAITING)
        self._seq = 0
        self.dropped = 0
        """Droppable messages given up so far."""

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._sock.fileno()

    @property
    def pending(self) -> int:
        """Messages that wait for the socket to become writable."""
        return self._outbox.pending

    def next_seq(self) -> int:
        """Return the `seq` of the next message of ours."""
        self._seq += 1
        return self._seq

    def send(self, message: Message, fd: int | None = None, *, droppable: bool = False) -> bool:
        """Send or queue a message; `fd` stays the caller's. False: it was droppable and has been dropped.

        Raises ChannelClosed (also for the overflow of the queue), KernelError.
        """
        if droppable and self._outbox.pending:
            self.dropped += 1
            return False
        data, memfd = self._codec.encode(message, fd)
        try:
            self._outbox.send(data, fd if memfd is None else memfd)
        finally:
            if memfd is not None:
                os.close(memfd)
        return True

    def acknowledge(self, message: Message, error: str = "") -> None:
        """Answer a message of the other end; `error` is empty when it was carried out. Raises like `send`."""
        self.send(self._codec.acknowledge(message.seq, error))

    def flush(self) -> bool:
        """Send what waits and the socket takes; True once nothing waits. Raises ChannelClosed, KernelError."""
        return self._outbox.flush()

    def receive(self) -> tuple[M, int | None] | None:
        """Return the next message and its descriptor (the caller's to close); None when there is none yet.

        A message comes without its descriptor when this process cannot hold another one. Raises ChannelClosed at the
        end, PeerError for what cannot be decoded, KernelError.
        """
        try:
            packet = receive_packet(self._sock)
        except DescriptorLostError as lost:
            return self._codec.decode_alone(lost.data), None
        return None if packet is None else self._codec.decode(*packet)

    def wait(self, seconds: float | None = None) -> bool:
        """Block until a message or the end can be received; False when `seconds` have passed first."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        return bool(poll.poll(None if seconds is None else max(0, round(seconds * 1000))))

    def close(self) -> None:
        """Close the socket; the other end sees the end of the stream."""
        self._outbox.close()
        self._sock.close()
