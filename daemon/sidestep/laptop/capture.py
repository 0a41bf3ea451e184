"""Receives a capture: makes packets of the frames that pod proxies send, and writes a pcapng file.

One stream of the tunnel for each captured connection (`CaptureChannel`). Its frames (`protocols.capture_frames`) become
TCP packets (`protocols.tcp_synthesis`) on the interface of their pod, in the order in which they arrive. A stream is
read only as fast as its packets are written, so a reader of the file that is slow (a pipe into tshark) slows the tunnel
down and nothing else: the pod proxy drops what finds no room, and counts it.

States of a connection in the file

    waiting   its START has not come
    open      its handshake is written
    over      both sides have finished, or one has reset it; what comes after that is ignored

Invariants: a file that ends after any block can be read; every lost byte that a pod told is a gap in the sequence
numbers of its connection; no stream raises an error of its content into the tunnel, it only ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import stat
from collections import Counter
from typing import TYPE_CHECKING, Final

from sidestep import __version__
from sidestep.aio.daemon_thread import in_daemon_thread
from sidestep.aio.time_limit import time_limit
from sidestep.laptop.handler import NoHandler
from sidestep.model.errors import BugError, PeerError
from sidestep.protocols import pcapng
from sidestep.protocols.capture_frames import Frame, FrameKind, FrameReader
from sidestep.protocols.tcp_synthesis import Conversation, Endpoint
from sidestep.tunnel.errors import ChannelBrokenError

if TYPE_CHECKING:
    from sidestep.laptop.capture_target import CaptureTarget
    from sidestep.tunnel.channel import Channel
    from sidestep.tunnel.opening import StreamOpening

SEGMENT: Final = 16 * 1024
"""Bytes of data in one packet at most."""
FILE_CHUNK: Final = 1024 * 1024
"""Bytes of one write to a file."""
PIPE_CHUNK: Final = getattr(select, "PIPE_BUF", 4096)
"""Bytes of one write to a pipe: what it takes without blocking once it is writable, on systems that tell."""
FAREWELL: Final = 5.0
"""Seconds for a slow reader to take the last packets."""
_TICK: Final = 4000
"""Nanoseconds per initial sequence number, as RFC 9293 section 3.4.1 has it, so that ports can be used again."""


class CaptureFile:
    """The pcapng file that all streams of a session write to. Nothing is written before `begin`.

    `max_bytes` bounds the file. `full` is set when it is reached, or when nobody reads any more; then nothing more is
    written.
    """

    def __init__(self, target: CaptureTarget, *, max_bytes: int, comment: str = "") -> None:
        self._target = target
        self._descriptor = -1
        self._is_file = False
        self._begun = asyncio.Event()
        self._max_bytes = max_bytes
        self._waiting = bytearray(pcapng.section(application=f"sidestep {__version__}", comment=comment))
        self._writing = asyncio.Lock()
        self._interfaces: dict[str, int] = {}
        self._last = 0
        self.full = asyncio.Event()
        self.reason = ""
        """Why nothing more is written."""
        self.size = len(self._waiting)
        """Bytes of the file."""
        self.connections = 0
        self.packets: Counter[str] = Counter()
        """Pod to its number of packets."""
        self.lost_bytes = 0
        self.lost: Counter[str] = Counter()
        """Pod to its number of requests or connections that are not captured, or not to their end."""

    @property
    def has_begun(self) -> bool:
        """Whether there is a file."""
        return self._begun.is_set()

    async def begin(self) -> None:
        """Open the file and write its head. Raises ConfigurationError when that is not possible, and
        ChannelBrokenError when nobody reads.
        """
        self._descriptor = self._target.open()
        self._is_file = stat.S_ISREG(os.fstat(self._descriptor).st_mode)
        self._begun.set()
        await self.drain()

    def interface(self, pod: str) -> int:
        """The number of a pod's interface."""
        number = self._interfaces.get(pod)
        if number is None:
            number = self._interfaces[pod] = len(self._interfaces)
            self._put(pcapng.interface(pod, description="decrypted by Sidestep"))
        return number

    def packet(self, pod: str, at: int, data: bytes, comments: tuple[str, ...] = ()) -> None:
        """Add a packet of a pod."""
        if self.full.is_set():
            return
        self._last = max(self._last, at)
        if self._put(pcapng.packet(self.interface(pod), at, data, comments=comments)):
            self.packets[pod] += 1

    def _put(self, block: bytes) -> bool:
        if self.size + len(block) > self._max_bytes:
            self._stop(f"the capture has reached {self._max_bytes} bytes")
            return False
        self._waiting += block
        self.size += len(block)
        return True

    def _stop(self, reason: str) -> None:
        if not self.full.is_set():
            self.reason = reason
            self.full.set()

    def _conclude(self) -> None:
        """Add the statistics of each interface, beyond `max_bytes` if it must be."""
        for pod in self.lost:
            self.interface(pod)
        for pod, number in self._interfaces.items():
            lost = self.lost[pod]
            self._waiting += pcapng.statistics(
                number,
                self._last,
                received=self.packets[pod] + lost,
                dropped=lost,
                comment=f"{lost} requests, connections or their rest found no room and are missing" if lost else "",
            )

    async def aclose(self) -> None:
        """Add the statistics and write what waits, within FAREWELL seconds. A file that was not begun is not made."""
        if not self._begun.is_set():
            return
        self._conclude()
        with contextlib.suppress(ChannelBrokenError, TimeoutError):
            async with time_limit(FAREWELL):
                await self.drain()
        os.close(self._descriptor)

    async def drain(self) -> None:
        """Write what waits. Waits for `begin` and a slow reader. Raises ChannelBrokenError when there is none."""
        await self._begun.wait()
        async with self._writing:
            while self._waiting:
                block = bytes(self._waiting[: FILE_CHUNK if self._is_file else PIPE_CHUNK])
                try:
                    count = await self._write(block)
                except BlockingIOError:
                    continue
                except OSError as error:
                    self._waiting.clear()
                    self._stop(f"the capture cannot be written: {os.strerror(error.errno or 0).lower()}")
                    raise ChannelBrokenError(self.reason) from error
                del self._waiting[:count]

    async def _write(self, block: bytes) -> int:
        """Write to the file, or once it has room to the pipe; returns the number of bytes written."""
        if not self._is_file:
            try:
                await self._writable()
            except NotImplementedError:  # the loop of Windows watches sockets only
                return await in_daemon_thread(lambda: os.write(self._descriptor, block), name="capture")
        return os.write(self._descriptor, block)

    async def _writable(self) -> None:
        """Wait until a pipe takes PIPE_CHUNK bytes without blocking (poll(2), pipe(7))."""
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        try:
            loop.add_writer(self._descriptor, ready.set)
        except PermissionError:
            return  # epoll takes no regular file or directory, and such a write does not wait
        try:
            await ready.wait()
        finally:
            loop.remove_writer(self._descriptor)


class CaptureHandler(NoHandler):
    """The "handler" of a capture: each connection is a stream of frames for the file."""

    def __init__(self, file: CaptureFile) -> None:
        super().__init__()
        self._file = file

    async def dial(self, opening: StreamOpening) -> Channel:
        """Take a captured connection. Raises RefusedError for any other."""
        if not opening.capture:
            return await super().dial(opening)
        return CaptureChannel(self._file, opening)


class CaptureChannel:
    """Takes the frames of one connection; see the module. A `tunnel.channel.Channel`."""

    def __init__(self, file: CaptureFile, opening: StreamOpening) -> None:
        self._file = file
        self._opening = opening
        self._reader = FrameReader()
        self._conversation: Conversation | None = None
        self._finished = {True: False, False: False}
        self._over = False
        self._comments: tuple[str, ...] = ()
        self._last = 0
        self._ended = asyncio.Event()

    async def read(self) -> bytes:
        """Return the end, once the stream has ended: nothing is said to who is captured."""
        await self._ended.wait()
        return b""

    async def write(self, data: bytes) -> None:
        """Take bytes of frames. Raises ChannelBrokenError for what is none, and when the file cannot be written."""
        try:
            for frame in self._reader.feed(data):
                self._take(frame)
        except PeerError as error:
            raise ChannelBrokenError(str(error)) from error
        await self._file.drain()

    async def write_eof(self) -> None:
        """The stream has ended: nothing more is known of the connection."""
        self._conclude()
        await self._file.drain()
        self._ended.set()

    def hung_up(self) -> bool:
        """As Channel.hung_up."""
        return self._file.full.is_set()

    def close(self) -> None:
        """As Channel.close."""
        self._conclude()

    def abort(self) -> None:
        """As Channel.abort."""
        self._conclude()

    def _conclude(self) -> None:
        """Whatever ended the stream, the connection is not shown as open any more."""
        if self._conversation is not None and not self._over:
            self._comments = (*self._comments, "the capture of this connection ended here")
            self._put(self._conversation.reset(from_client=False))
        self._over = True

    def _take(self, frame: Frame) -> None:
        if self._over:
            return
        self._last = max(self._last, frame.at)
        conversation = self._conversation
        if conversation is None:
            if frame.kind is not FrameKind.START:
                raise PeerError("a capture's stream does not begin with its start")
            self._start(frame)
            return
        sender = frame.from_client
        if frame.kind is FrameKind.COMMENT:
            self._comments = (*self._comments, frame.text)[-8:]
        elif frame.kind is FrameKind.RESET:
            self._put(conversation.reset(from_client=sender))
            self._over = True
        elif self._finished[sender]:
            return
        elif frame.kind is FrameKind.DATA:
            self._put(conversation.data(frame.data, from_client=sender))
        elif frame.kind is FrameKind.LOST:
            conversation.lost(frame.count, from_client=sender)
            self._file.lost_bytes += frame.count
            self._comments = (*self._comments, f"{frame.count} bytes before this were not captured")[-8:]
        elif frame.kind is FrameKind.FINISHED:
            self._finished[sender] = True
            self._put(conversation.finish(from_client=sender))
            self._over = all(self._finished.values())

    def _start(self, frame: Frame) -> None:
        opening = self._opening
        address, _, port = frame.text.partition(" ")
        try:
            if not 0 < int(port) <= 0xFFFF:
                raise ValueError(port)
            self._conversation = conversation = Conversation(
                Endpoint(opening.client, opening.client_port),
                Endpoint(address, int(port)),
                segment_size=SEGMENT,
                client_number=frame.at // _TICK,
                server_number=frame.at // _TICK + 1,
            )
        except (ValueError, BugError) as error:
            raise PeerError("a capture's stream begins with no address") from error
        self._file.connections += 1
        self._put(conversation.opening())

    def _put(self, packets: list[bytes]) -> None:
        comments, self._comments = self._comments, ()
        for packet in packets:
            self._file.packet(self._opening.pod, self._last, packet, comments)
            comments = ()
