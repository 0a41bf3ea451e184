"""Streams to handlers: a call `Open` to the daemon, answered by `Opened` (one end of a socketpair) or `Refused`.

Each call ends exactly once (`PendingCalls`): with the daemon's answer, by its deadline, or at once while the daemon is
gone or silent (`daemon_breaker`). All but the first count as a refusal. A stream that arrives after its caller has
cancelled is closed; its handler sees the end.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial
from typing import Final

from sidestep.proxy.control import messages
from sidestep.proxy.control.daemon_link import DaemonLink
from sidestep.proxy.control.pending_calls import PendingCalls
from sidestep.proxy.io.loop import Loop
from sidestep.proxy.io.stream import HandlerStream, PlainStream

OPEN_TIMEOUT: Final = 15.0
"""Seconds to wait for the daemon's answer to `Open`; the daemon's own deadline is shorter."""

Arrived = Callable[[PlainStream | None], None]
"""Called once with the stream, or with None when the handler was refused."""


class HandlerStreams:
    """The streams that were asked for and have not come."""

    def __init__(self, loop: Loop, link: DaemonLink, *, on_crash: Callable[[object, Exception], None]) -> None:
        self._link = link
        self._on_crash = on_crash
        self._calls: PendingCalls[Arrived] = PendingCalls(
            loop, link, patience=OPEN_TIMEOUT, unanswered=lambda stream: self.arrived(stream, None)
        )
        self._asked: dict[int, int] = {}
        self._last = 0

    def ask(
        self,
        done: Arrived,
        *,
        uid: str,
        port: int,
        protocol: str,
        client: tuple[str, int],
        tls: bool = False,
        server_name: str = "",
    ) -> Callable[[], None]:
        """Ask for a stream to the handler of the rule `uid`; returns a function that cancels."""
        self._last += 1
        stream = self._last
        seq = self._link.next_seq()
        call = messages.Open(seq, stream, uid, port, protocol, tls, server_name, *client)
        if self._calls.call(stream, call, done):
            self._asked[seq] = stream
        return partial(self._calls.cancel, stream)

    def __len__(self) -> int:
        """The number of streams that may still arrive."""
        return len(self._calls)

    def arrived(self, stream: int, sock: socket.socket | None) -> None:
        """Give a stream to its caller; None is a refusal."""
        done = self._calls.finish(stream)
        if done is None:
            if sock is not None:
                sock.close()
            return
        opened = None
        if sock is not None:
            sock.setblocking(False)
            opened = HandlerStream(sock, lambda: self._reset(stream))
        try:
            done(opened)
        except Exception as error:  # noqa: BLE001 - it ended its own connection; the daemon's message was sound
            self._on_crash(None, error)

    def acknowledged(self, ack: messages.Ack) -> None:
        """The daemon has read a call; an error is a refusal."""
        stream = self._asked.pop(ack.seq, None)
        if stream is not None and ack.error:
            self.arrived(stream, None)

    def refuse_all(self) -> None:
        """The daemon is gone."""
        for stream in self._calls.numbers():
            self.arrived(stream, None)

    def _reset(self, stream: int) -> None:
        self._link.send(messages.Reset(self._link.next_seq(), stream))
