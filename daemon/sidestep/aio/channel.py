"""The daemon's end of a control channel: requests and answers over a SEQPACKET socket, on the asyncio event loop.

`request()` numbers a message, sends it and waits for the answer with the same number. Messages that the peer sends on
its own go to `on_message`. That function must return at once (long work belongs in a task of the owner). The channel
acknowledges the message when it returns; a `SidestepError` it raises is sent back as the error. It owns the descriptor
that it is given.

The peer may be hostile:

- A packet that cannot be decoded closes the channel.
- One turn of the event loop reads at most `_BURST` packets, stops after `_TURN` seconds of processor time, and stops
  after a packet that carries a descriptor, so that one busy proxy does not starve the others.
- A peer that has used up its `Share` of processor time is not read until the share has grown again. When that lasts
  longer than the share's patience, the channel closes.
- While the peer does not read its acknowledgements, nothing is read from it.

The channel closes exactly once. `on_closed` gets the reason, and every pending request raises `ChannelClosed`.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from sidestep.aio.packets import ChannelClosed, Outbox, receive_packet
from sidestep.aio.patience import patience
from sidestep.aio.share import Share
from sidestep.model.errors import PeerError, SidestepError

_BURST = 32
_TURN = 0.002
"""Seconds of processor time after which a burst ends."""


class Sequenced(Protocol):
    """A message with a sequence number."""

    seq: int


In = TypeVar("In", bound=Sequenced)
Out = TypeVar("Out", bound=Sequenced)


class MessageCodec(Protocol[In, Out]):
    """Encodes and decodes the messages of a channel, and tells requests from answers."""

    def encode(self, message: Out, fd: int | None = None, /) -> tuple[bytes, int | None]:
        """Return packet and memfd; see `proxy.control.channel.Codec`, which implements all of these."""

    def decode(self, data: bytes, fd: int | None, /) -> tuple[In, int | None]:
        """Return message and descriptor, or raise PeerError."""

    def acknowledge(self, seq: int, error: str, /) -> Out:
        """Make an acknowledgement."""

    def is_answer(self, message: In, /) -> bool:
        """Whether it answers a request of ours."""

    def wants_answer(self, message: In, /) -> bool:
        """Whether it must be acknowledged."""


class DeadlineError(SidestepError):
    """The other end did not answer in time."""

    def __init__(self, doing: str, seconds: float) -> None:
        self.doing = doing
        self.seconds = seconds
        super().__init__(f"{doing}: no answer within {seconds:g} s")


class AsyncChannel(Generic[In, Out]):
    """One end of a SOCK_SEQPACKET channel on the running event loop. Owns the socket."""

    def __init__(
        self,
        sock: socket.socket,
        *,
        codec: MessageCodec[In, Out],
        on_message: Callable[[In, int | None], None],
        on_closed: Callable[[SidestepError], None],
        share: Share | None = None,
    ) -> None:
        """`share` limits the processor time that the peer may use; None for a trusted peer."""
        sock.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._codec = codec
        self._on_message = on_message
        self._on_closed = on_closed
        self._outbox = Outbox(sock)
        self._seq = 0
        self._waiting: dict[int, asyncio.Future[tuple[In, int | None]]] = {}
        self._share = share
        self._pause: asyncio.TimerHandle | None = None
        """The timer that ends a pause in reading; None while there is no pause."""
        self._reading = False
        self._writing = False
        self._cause: SidestepError | None = None
        self.packets = 0
        """Packets received so far. A watchdog counts any increase as a sign of life."""
        self._watch()

    @property
    def closed(self) -> bool:
        """Whether the channel has ended."""
        return self._cause is not None

    async def request(self, message: Out, fd: int | None = None, *, deadline: float, process: int | None = None) -> In:
        """Send a message and return its answer. The caller keeps `fd`; a descriptor in the answer is closed.

        `deadline` is in seconds and is extended as `aio.patience` describes; `process` is the pid of the peer. Raises
        ChannelClosed, DeadlineError, KernelError.
        """
        answer, answer_fd = await self.exchange(message, fd, deadline=deadline, process=process)
        if answer_fd is not None:
            os.close(answer_fd)
        return answer

    async def exchange(
        self, message: Out, fd: int | None = None, *, deadline: float, process: int | None = None
    ) -> tuple[In, int | None]:
        """Like `request`, but return the answer with its descriptor, which the caller must close."""
        self._seq += 1
        message.seq = seq = self._seq
        answer: asyncio.Future[tuple[In, int | None]] = self._loop.create_future()
        self._waiting[seq] = answer
        try:
            self._send(message, fd)
            async with patience(deadline, of=process):
                return await answer
        except TimeoutError as error:
            _discard(answer)
            raise DeadlineError(type(message).__name__, deadline) from error
        except asyncio.CancelledError:
            _discard(answer)
            raise
        finally:
            self._waiting.pop(seq, None)

    def close(self, cause: SidestepError | None = None) -> None:
        """Close the channel and pass `cause` to `on_closed`. Closing again does nothing."""
        if self._cause is not None:
            return
        self._cause = cause = cause or ChannelClosed("the control channel was closed")
        if self._pause is not None:
            self._pause.cancel()
        self._watch()
        self._outbox.close()
        self._sock.close()
        waiting, self._waiting = self._waiting, {}
        for answer in waiting.values():
            if not answer.done():
                answer.set_exception(ChannelClosed(str(cause)))
                answer.exception()  # The waiter may have been cancelled meanwhile; nothing is lost unsaid.
        self._on_closed(cause)

    def _send(self, message: Out, fd: int | None = None) -> None:
        if self._cause is not None:
            raise ChannelClosed(str(self._cause))
        data, memfd = self._codec.encode(message, fd)
        try:
            self._outbox.send(data, fd if memfd is None else memfd)
        except ChannelClosed as error:
            self.close(error)
            raise
        finally:
            if memfd is not None:
                os.close(memfd)
        self._watch()

    def _watch(self) -> None:
        """Register for writing while packets are queued, else for reading unless reading is paused."""
        writing = self._cause is None and self._outbox.pending > 0
        reading = self._cause is None and not writing and self._pause is None
        if reading is not self._reading:
            self._reading = reading
            if reading:
                self._loop.add_reader(self._sock, self._readable)
            else:
                self._loop.remove_reader(self._sock)
        if writing is not self._writing:
            self._writing = writing
            if writing:
                self._loop.add_writer(self._sock, self._writable)
            else:
                self._loop.remove_writer(self._sock)

    def _writable(self) -> None:
        try:
            self._outbox.flush()
        except SidestepError as error:
            self.close(error)
        else:
            self._watch()

    def _readable(self) -> None:
        began = time.thread_time()
        try:
            self._burst(began + _TURN)
        finally:
            if self._share is not None and self._cause is None:
                self._charge(self._share, time.thread_time() - began)

    def _charge(self, share: Share, seconds: float) -> None:
        """Charge processor time to the peer's share; pause reading when it is used up, close when that lasts."""
        now = self._loop.time()
        share.spend(seconds, now)
        if share.is_exhausted(now):
            self.close(PeerError("it sends more than anybody could listen to"))
        elif pause := share.wait():
            self._pause = self._loop.call_later(pause, self._resume)
            self._watch()

    def _resume(self) -> None:
        self._pause = None
        self._watch()

    def _burst(self, until: float) -> None:
        for _ in range(_BURST):
            try:
                packet = receive_packet(self._sock)
                if packet is None:
                    return
                self.packets += 1
                data, carried = packet
                message, fd = self._codec.decode(data, carried)
                self._dispatch(message, fd)
            except SidestepError as error:
                self.close(error)
            except BaseException:
                # A bug in a callback: end the channel, so that the owner notices, and let the loop report it.
                self.close()
                raise
            # What wants no answer (a heartbeat) seldom has company; the loop calls again if it does.
            if not self._reading or not self._codec.wants_answer(message) or carried is not None:
                return
            if time.thread_time() >= until:
                return

    def _dispatch(self, message: In, fd: int | None) -> None:
        if self._codec.is_answer(message):
            answer = self._waiting.pop(message.seq, None)
            if answer is not None and not answer.done():
                answer.set_result((message, fd))
            elif fd is not None:
                os.close(fd)  # It came after its deadline.
            return
        error = ""
        try:
            self._on_message(message, fd)
        except PeerError:
            raise
        except SidestepError as refusal:
            error = str(refusal)
        if self._codec.wants_answer(message) and self._cause is None:
            self._send(self._codec.acknowledge(message.seq, error))


def _discard(answer: asyncio.Future[tuple[In, int | None]]) -> None:
    """Close the descriptor of an answer that arrived as its waiter gave up."""
    if answer.done() and not answer.cancelled() and answer.exception() is None:
        _, fd = answer.result()
        if fd is not None:
            os.close(fd)
