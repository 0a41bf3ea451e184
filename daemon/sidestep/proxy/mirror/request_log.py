"""The log lines of diverted and copied requests, which sessions show: collected for a moment, then sent to the daemon.

A message holds what fits in a packet; more lines make more messages. The log is lossy and bounded: lines above
`messages.MAX_LINES` or RATE, and all of them while the daemon is behind, are only counted. The wait of MOMENT seconds
also keeps the daemon and the developer's machine from waking up while the app works on the request. A line is encoded
when it is made: its size is known then, and the message takes the bytes as they are.

Invariant: each line is sent once, or counted in `Requests.dropped`, unless its session does not want requests that were
answered so (`model.shown`); each lost copy is counted once in `Requests.losses`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import islice
from typing import Any, Final, Protocol

import msgspec

from sidestep.aio.token_bucket import TokenBucket
from sidestep.engine.mirror.gate import Loss
from sidestep.engine.mirror.notes import Answer, Lost, Note
from sidestep.engine.relay import Relay
from sidestep.model.shown import is_wanted
from sidestep.policy.route import SteeredPort
from sidestep.proxy.control import messages
from sidestep.proxy.control.daemon_link import DaemonLink
from sidestep.proxy.io.loop import Loop
from sidestep.proxy.mirror.recent_requests import KEEPER, RecentRequests

MOMENT: Final = 0.01
"""Seconds for which lines are collected."""
ROOM: Final = messages.MAX_INLINE - 4096
"""Bytes of the lines of one message."""
RATE: Final = 2 * 1024 * 1024
"""Bytes of lines a second: part of what the daemon lets a proxy cost it (`node.proxies.proxy_process.TALK`)."""
BURST: Final = 1024 * 1024
"""Bytes of lines at once."""
encode: Final = msgspec.msgpack.Encoder().encode
"""Encodes a line as messages have it."""
_LOSS: Final = 128
"""Bytes of an encoded `LostCopies`, at most."""
_LOST: Final = {Lost.NOTHING: "", Lost.ALL: "dropped", Lost.REST: "truncated"}


class LoggedPort(Protocol):
    """The port of a connection."""

    @property
    def counters(self) -> Counter[str]:
        """What is counted for it."""

    @property
    def steered(self) -> SteeredPort:
        """Its number is told."""

    @property
    def outward(self) -> object | None:
        """Something of a connection that the pod makes: its server is told."""

    @property
    def recent(self) -> RecentRequests:
        """What is kept of its requests."""


class Client(Protocol):
    """The ends of a connection."""

    @property
    def host(self) -> str:
        """The server's address ..."""

    @property
    def port(self) -> int:
        """... and port."""

    @property
    def client(self) -> str:
        """The client's address ..."""

    @property
    def client_port(self) -> int:
        """... and port."""


class LoggedConnection(Protocol):
    """A connection whose mirror has notes."""

    @property
    def relay(self) -> Relay:
        """Its relay, with the mirror."""

    @property
    def port(self) -> LoggedPort:
        """The port that it came to."""

    @property
    def tls(self) -> bool:
        """Whether the client came over TLS."""

    @property
    def tls_facts(self) -> messages.LoggedTls | None:
        """More of such a client."""

    @property
    def endpoints(self) -> Client:
        """Who it is from."""


class RequestLog:
    """The lines and losses that wait to be sent."""

    def __init__(self, loop: Loop, link: DaemonLink) -> None:
        self._loop = loop
        self._link = link
        self._lines: list[bytes] = []
        """Encoded."""
        self._losses: Counter[Loss] = Counter()
        self._dropped = 0
        self._bucket = TokenBucket(rate=RATE, burst=BURST, now=0.0)

    def limit(self, part: float) -> None:
        """Keep to this part of RATE."""
        self._bucket.change_rate(RATE * part)

    def lose(self, losses: Mapping[Loss, int]) -> None:
        """Add numbers of copies that were not made; they wait while the daemon is behind."""
        self._losses.update({loss: count for loss, count in losses.items() if loss.uid != KEEPER.uid})

    def add(self, connection: LoggedConnection) -> None:
        """Take the notes of a connection's mirror: count them, and keep those that the port's ring is fed with."""
        endpoints, is_outward = connection.endpoints, connection.port.outward is not None
        recent = connection.port.recent
        tls_facts = connection.tls_facts
        for request in connection.relay.mirror.notes:
            uid = request.rule.uid
            if not request.is_answer and uid != KEEPER.uid:
                connection.port.counters[_counter(request)] += 1
            line = messages.LoggedRequest(
                uid,
                endpoints.port if is_outward else connection.port.steered.number,
                endpoints.client,
                endpoints.client_port,
                _text(request.method),
                _text(request.path),
                _text(request.authority),
                request.copied,
                _LOST[request.lost],
                tuple((_text(name), _text(value)) for name, value in request.fields),
                endpoints.host if is_outward else "",
                request.protocol,
                max(0.0, self._loop.now - request.at) if request.at else 0.0,
                connection.tls,
                request.trace.decode("ascii"),
                request.number,
                None if request.answer is None else _answer(request.answer),
                request.is_answer,
                tls_facts=None if request.is_answer else tls_facts,
            )
            if uid == recent.source:
                recent.keep(line, self._loop.now)
            if uid != KEEPER.uid and _is_shown(request):
                self.add_line(line)
        connection.relay.mirror.notes.clear()

    def add_line(self, line: messages.LoggedRequest) -> None:
        """Take a line."""
        if len(self._lines) >= messages.MAX_LINES:
            self._dropped += 1
            return
        encoded = encode(line)
        if not self._bucket.take(self._loop.now, len(encoded)):
            self._dropped += 1
            return
        if not self._lines:
            self._loop.later(MOMENT, self.flush)
        self._lines.append(encoded)

    def flush(self) -> None:
        """Send what there is."""
        if not self._lines and not self._losses:
            return
        lines, self._lines = self._lines, []
        losses = dict(islice(self._losses.items(), messages.MAX_LINES))
        lost = tuple(messages.LostCopies(loss.uid, loss.port, loss.why.value, losses[loss]) for loss in losses)
        at, room = 0, ROOM - len(lost) * _LOSS
        while at < len(lines) or lost:
            end = at
            while end < len(lines):
                size = len(lines[end])
                if room < size and (end > at or lost):
                    break
                room -= size
                end += 1
            raw: Any = tuple([msgspec.Raw(line) for line in lines[at:end]])
            message = messages.Requests(self._link.next_seq(), raw, self._dropped, lost)
            if self._link.send(message, droppable=True):
                self._dropped = 0
                if lost:
                    for loss in losses:
                        del self._losses[loss]
            else:
                self._dropped += end - at
            at, room, lost = end, ROOM, ()


def _is_shown(request: Note) -> bool:
    """Whether the session wants requests that were answered so."""
    statuses = request.rule.shown.statuses
    return not statuses or is_wanted(request.answer.status if request.answer is not None else 0, statuses)


def _counter(request: Note) -> str:
    if not request.copied:
        return "diverted"
    if request.lost:
        return "copies_" + _LOST[request.lost]
    return "flows" if request.rule.heads_only else "copied"


def _text(value: bytes) -> str:
    """Text for people; see `messages.LoggedRequest`."""
    return value[: messages.MAX_TEXT].decode("utf-8", "replace")


def _answer(answer: Answer) -> messages.LoggedAnswer:
    return messages.LoggedAnswer(
        answer.status,
        answer.by,
        answer.handler,
        answer.seconds,
        answer.sent,
        answer.received,
        answer.is_whole,
        answer.head.decode("utf-8", "replace"),
    )
