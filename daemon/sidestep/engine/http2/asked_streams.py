"""Relayed streams to whose requests no rule applies, but whose answers are searched for patterns.

Reading an answer as rules demand costs 50 µs, most of them for finding out that nothing is in it. So such a stream has
no exchange at first: the answer's head, and its body as far as it is here, are searched for the patterns of all rules
at once, and nothing else is done while none can be in them.

    asked     nothing of the answer has come
    headed    its final head, and nothing is in that
    judged    it has become an exchange (`Judged`), which is given the answer from its beginning: something may be in
              it, it is encoded or consists of messages, its body is longer than WINDOW, or the head is not the first
              and only one

What rules say does not depend on that: an answer that is not judged is one in which judging finds nothing. Only
connections whose rules cannot have an answer blocked have such streams.

Bounds: STREAMS streams of a connection, whose heads and bodies are charged to its account as those of exchanges are;
others are judged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sidestep.engine.http2.head import status_of
from sidestep.engine.inspection.body import is_plain
from sidestep.engine.inspection.judged import FIELD
from sidestep.engine.memory_budget import Share
from sidestep.policy.inspection_match import text_of

if TYPE_CHECKING:
    from sidestep.engine.http2.head import Head
    from sidestep.engine.inspection.gate import Gate
    from sidestep.policy.inspection import InspectedConnection
    from sidestep.protocols.hpack import Block

STREAMS: Final = 256
WINDOW: Final = 4096
"""Bytes of a body that are kept: what patterns are searched for in at once (`policy.pattern_set`)."""


class Asked:
    """One such stream. `connection` has the policies that applied when it was opened."""

    __slots__ = ("block", "body", "connection", "head", "size")

    def __init__(self, head: Head, connection: InspectedConnection, size: int) -> None:
        self.head = head
        self.connection = connection
        self.size = size
        """Bytes that are kept."""
        self.block: Block | None = None
        """The head of the answer."""
        self.body = b""
        """What has come of its body; all of it was searched."""


class AskedStreams:
    """See the module. `streams` are read by whoever knows of which streams something has come."""

    __slots__ = ("_gate", "_kept", "_share", "streams")

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self.streams: dict[int, Asked] = {}
        self._share = Share(gate.memory)
        self._kept = 0

    @property
    def token(self) -> object:
        """The same object for all connections on which answers to the same heads are searched for the same; None:
        nothing is remembered.
        """
        return self._gate.connection.asked

    def add(self, stream: int, head: Head) -> bool:
        """Take a stream; False, and nothing has changed, if there is no room for it."""
        if len(self.streams) >= STREAMS:
            return False
        size = sum(len(name) + len(value) for name, value in head.listed) + FIELD * len(head.listed)
        self._keep(size)
        if self._gate.memory.is_over:
            self._keep(-size)
            return False
        self.streams[stream] = Asked(head, self._gate.connection, size)
        return True

    def remove(self, stream: int) -> Asked:
        """Forget a stream: its answer is over, or it is judged from now on."""
        asked = self.streams.pop(stream)
        self._keep(-asked.size)
        return asked

    def _keep(self, size: int) -> None:
        self._kept += size
        self._share.set(self._kept)

    def clears_head(self, stream: int, block: Block, *, ends: bool) -> bool:
        """Take a header block of an answer; False if the stream has to be judged."""
        asked = self.streams[stream]
        if asked.block is not None or status_of(block) < 200:
            return False
        token = asked.connection.asked
        if block.cleared is None or block.cleared is not token:
            fields = block.fields[1:]
            text = text_of(fields)
            if not is_plain(fields) or any(each.find(text) for each in asked.connection.answer_sets):
                return False
            block.cleared = token
        if ends:
            self.remove(stream)
        else:
            asked.block = block
        return True

    def clears_data(self, stream: int, data: bytes, *, ends: bool) -> bool:
        """Take data of an answer; False, and nothing has changed, if the stream has to be judged."""
        asked = self.streams[stream]
        body = asked.body + data if asked.body else data
        if asked.block is None or len(body) > WINDOW:
            return False
        if data and any(each.find(body) for each in asked.connection.answer_sets):
            return False
        if ends:
            self.remove(stream)
        else:
            asked.body = body
            asked.size += len(data)
            self._keep(len(data))
        return True
