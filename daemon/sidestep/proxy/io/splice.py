"""Moves bytes between two plaintext sockets through kernel pipes (splice(2)), without copying them to this process.

Per direction:

    flowing   the source is read; its pipe, if it has one, is empty
    blocked   the pipe holds bytes that the sink does not take; the source is not read, the sink is watched for room
    finished  the source ended, the pipe is empty, the sink has been half-closed

Invariants

  * A direction has at most one pipe, and only while it has bytes: idle connections have none.
  * The pipe's capacity is the only buffer, so an app that never reads costs a pipe and two socket buffers. Without
    descriptors for a pipe, COPY bytes are held in memory instead.
  * An end is passed on as an end (half-close), a reset as a reset, in both directions.
  * When both directions are finished, both sockets are closed.

Hot path: an event moves the direction that it is about, and a splice that takes less than was asked for is the last one
of its event. epoll is level-triggered, so what came meanwhile is told by the next event (measured: 18 splices became 8
for an HTTPS request on a new connection).
"""

from __future__ import annotations

import fcntl
import os
import select
from collections.abc import Callable
from typing import Final

from sidestep.proxy.io.loop import BROKEN, READ, WRITE, Loop
from sidestep.proxy.io.stream import PlainStream

CHUNK: Final = 1024 * 1024
"""Bytes asked for in one splice, and the capacity asked for a pipe; the kernel may give less (pipe(7))."""
COPY: Final = 64 * 1024
"""Bytes of a read when there is no descriptor for a pipe."""
ROUNDS: Final = 8
"""Splices per event before other connections get a turn."""
UNBOUNDED: Final = 1024
"""Rounds for a socket whose peer is gone: it holds at most a receive buffer."""
POOL: Final = 32
"""Empty pipes kept for reuse."""
BOTH: Final = (0, 1)
"""The directions: from the first socket, and from the second."""
_FLAGS: Final = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


class Pipes:
    """Empty pipes, reused. One pool per process. `may_open` says whether descriptors can be spared for another one."""

    def __init__(self, may_open: Callable[[], bool] = lambda: True) -> None:
        self._free: list[tuple[int, int]] = []
        self._may_open = may_open
        self.open = 0
        """Pipes that exist, free ones included."""

    def take(self) -> tuple[int, int] | None:
        """Return an empty pipe (read end, write end); None when there are no descriptors for one."""
        if self._free:
            return self._free.pop()
        if not self._may_open():
            return None
        try:
            pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        self.open += 1
        try:
            fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, CHUNK)
        except OSError:
            pass  # over this user's share of pipe memory: the default size works too
        return pipe

    def give_back(self, pipe: tuple[int, int]) -> None:
        """Take back an empty pipe."""
        if len(self._free) < POOL:
            self._free.append(pipe)
        else:
            self.destroy(pipe)

    def destroy(self, pipe: tuple[int, int]) -> None:
        """Close a pipe and what is in it."""
        os.close(pipe[0])
        os.close(pipe[1])
        self.open -= 1


class _Direction:
    """Bytes from `source` to `sink`."""

    __slots__ = ("_pipes", "ended", "filled", "finished", "held", "moved", "pipe", "sink", "source")

    def __init__(self, source: PlainStream, sink: PlainStream, pipes: Pipes, *, ended: bool, finished: bool) -> None:
        self.source = source
        self.sink = sink
        self.ended = ended
        self.finished = finished
        self.pipe: tuple[int, int] | None = None
        self.filled = 0
        self.held = b""
        """Bytes that were read without a pipe and that the sink has not taken."""
        self.moved = 0
        self._pipes = pipes

    def move(self, rounds: int, *, whole: bool) -> None:
        """Move what can be moved now, in at most so many rounds. Raises OSError when either socket broke.

        `whole`: we have not half-closed the source. Then a peer that closes both directions has broken off: handlers
        are reached through unix sockets, which have no other reset.
        """
        self.move_bytes(rounds)
        if self.ended and not self.filled and not self.finished:
            if whole and _is_hung_up(self.source.fd):
                raise ConnectionResetError("the peer closed both directions")
            self.finished = True
            self.sink.finish(notify=False)

    def move_bytes(self, rounds: int) -> None:
        """Move what can be moved now, but do not pass an end on. Raises OSError when either socket broke."""
        for _ in range(rounds):
            if (self.filled and not self._empty()) or self.ended or not self._fill():
                return
            if self.filled < COPY and rounds == ROUNDS:
                self._empty()
                return

    def _fill(self) -> bool:
        if self.pipe is None:
            self.pipe = self._pipes.take()
            if self.pipe is None:
                return self._copy()
        try:
            count = os.splice(self.source.fd, self.pipe[1], CHUNK, flags=_FLAGS)
        except BlockingIOError:
            self.release()
            return False
        if count == 0:
            self.ended = True
            self.release()
            return False
        self.filled = count
        self.moved += count
        return True

    def _copy(self) -> bool:
        """Read as if into a pipe."""
        try:
            self.held = self.source.sock.recv(COPY)
        except BlockingIOError:
            return False
        self.ended = not self.held
        self.filled = len(self.held)
        self.moved += self.filled
        return bool(self.held)

    def _push(self) -> bool:
        """Push what is held into the sink; return whether nothing is left."""
        try:
            while self.held:
                self.held = self.held[self.sink.sock.send(self.held) :]
        except BlockingIOError:
            return False
        finally:
            self.filled = len(self.held)
        return True

    def _empty(self) -> bool:
        """Push the pipe's bytes into the sink; return whether the pipe is empty."""
        if self.held:
            return self._push()
        pipe = self.pipe
        while pipe is not None and self.filled:
            try:
                self.filled -= os.splice(pipe[0], self.sink.fd, self.filled, flags=_FLAGS)
            except BlockingIOError:
                return False
        self.release()
        return True

    def release(self) -> None:
        """Return the pipe, or destroy it when something is left inside."""
        pipe, self.pipe = self.pipe, None
        if pipe is not None:
            if self.filled:
                self._pipes.destroy(pipe)
            else:
                self._pipes.give_back(pipe)


def _is_hung_up(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, 0)
    return any(mask & select.POLLHUP for _, mask in poll.poll(0))


class Splicer:
    """Both directions between two registered sockets. Calls `done()` once both are closed."""

    def __init__(
        self,
        loop: Loop,
        pipes: Pipes,
        one: PlainStream,
        other: PlainStream,
        *,
        ended: tuple[bool, bool],
        finished: tuple[bool, bool],
        done: Callable[[], None],
    ) -> None:
        """`ended[i]`: that socket's peer has finished sending; `finished[i]`: we have half-closed that socket."""
        self._loop = loop
        self._done = done
        self._streams = (one, other)
        self._masks = [READ, READ]
        self._hung_up = [False, False]
        self._directions = (
            _Direction(one, other, pipes, ended=ended[0], finished=finished[1]),
            _Direction(other, one, pipes, ended=ended[1], finished=finished[0]),
        )
        self._open = True
        loop.rebind(one.fd, self._one_ready, READ)
        loop.rebind(other.fd, self._other_ready, READ)
        if any(ended) or any(finished):
            self._move(BOTH)

    def _one_ready(self, mask: int) -> None:
        self._ready(0, mask)

    def _other_ready(self, mask: int) -> None:
        self._ready(1, mask)

    def _ready(self, index: int, mask: int) -> None:
        if not self._open:
            return
        if mask & BROKEN:
            outward, inward = self._directions[index], self._directions[1 - index]
            if not inward.finished and (outward.ended or outward.filled):
                self.abandon()  # reset by this peer while its bytes are not being read
                return
            if inward.finished and not self._hung_up[index]:
                # Both directions of this socket are shut. What it still holds is moved as the other socket takes it.
                # Level-triggered epoll would report the hang-up without end, so it is not watched any more.
                self._hung_up[index] = True
                self._loop.remove(self._streams[index].fd)
            self._move(BOTH)
        elif mask == READ:
            self._move((index,))
        else:
            self._move(BOTH)

    def _move(self, which: tuple[int, ...]) -> None:
        """Move what these directions can move now."""
        try:
            for index in which:
                direction = self._directions[index]
                whole = not self._directions[1 - index].finished
                direction.move(UNBOUNDED if self._hung_up[index] else ROUNDS, whole=whole)
        except OSError:
            self._move_last()
            self.abandon()
            return
        if all(direction.finished for direction in self._directions):
            self._close(reset=False)
            return
        self._watch()

    def _move_last(self) -> None:
        """One socket broke: pass on what arrived on it before the reset."""
        for direction in self._directions:
            try:
                direction.move_bytes(UNBOUNDED)
            except OSError:
                pass

    def _watch(self) -> None:
        for index, stream in enumerate(self._streams):
            if self._hung_up[index]:
                continue
            outward, inward = self._directions[index], self._directions[1 - index]
            mask = (0 if outward.ended or outward.filled else READ) | (WRITE if inward.filled else 0)
            if mask != self._masks[index]:
                self._masks[index] = mask
                self._loop.modify(stream.fd, mask)

    def _close(self, *, reset: bool) -> None:
        if not self._open:
            return
        self._open = False
        for direction in self._directions:
            direction.release()
        for stream in self._streams:
            self._loop.remove(stream.fd)
            if reset:
                stream.reset()
            else:
                stream.close()
        self._done()

    def abandon(self) -> None:
        """Reset both sockets."""
        self._close(reset=True)

    @property
    def moved(self) -> tuple[int, int]:
        """Bytes moved from the first to the second socket, and back."""
        return (self._directions[0].moved, self._directions[1].moved)
