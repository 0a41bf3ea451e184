"""The sampled streams of an HTTP/2 connection, from their heads to the ends of their answers (`inspection.samples`)."""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

from sidestep.engine.inspection.samples import NOTHING, RequestTexts, Sample

if TYPE_CHECKING:
    from sidestep.engine.http2.head import Head
    from sidestep.engine.inspection.judged import Judged
    from sidestep.protocols.hpack import Block

Told = tuple[RequestTexts, int]
"""What is told of a request, and the size of that."""
_FINAL: Final = b"200"
_DIGITS: Final = 3
_NO_ANSWER: Final = (None, NOTHING, 0)
_PROTOCOL: Final = ""
"""Stands among names of fields, of which none is empty or a text, for the protocol."""
_TOLD: Final[dict[Any, Any]] = {_PROTOCOL: "h2"} | dict.fromkeys(
    (b":method", b":path", b":authority", b"user-agent", b"x-forwarded-for", b"referer"), b""
)
"""What is told of a head without fields, in the order of `RequestTexts`."""
_texts: Final = itemgetter(*_TOLD)


class Http2Sample(Sample):
    """`length` counts from 0 on; whoever learns that the answer is not whole sets it to None."""

    __slots__ = ()
    asked: RequestTexts

    def __init__(self, number: int, stream: int, told: Told, judged: Judged | None) -> None:
        self.number = number
        self.stream = stream
        self.judged = judged
        self.status = None
        self.answer = NOTHING
        self.length = 0
        self.asked, self.size = told

    def request(self) -> RequestTexts:
        """See `Sample`."""
        return self.asked

    def answers(self, block: Block) -> None:
        """Note a header block of the answer; one that is none is not noted. The app is not asked to be strict here."""
        if self.status is None:
            shown = block.shown
            if shown is None:
                shown = block.shown = _shown(block)
            self.status, self.answer, size = shown
            self.size += size


def told_of(head: Head) -> Told:
    """What a sample tells of a request; made once."""
    if head.told is None:
        head.told = _told(head)
    return head.told


def told_of_plain(block: Block) -> Told:
    """The same of a head that `Http2Skimmer` has found plain: it has an authority, and no `host`."""
    told: Told | None = block.shown
    if told is None:
        found = _TOLD.copy()
        found.update(block.fields)
        texts = _texts(found)
        told = block.shown = texts, len(b"".join(texts[1:]))
    return told


def _told(head: Head) -> Told:
    host, agent, forwarded, referer = head.authority, b"", b"", b""
    for name, value in head.regular:
        if name == b"user-agent":
            agent = value
        elif name == b"x-forwarded-for":
            forwarded = value
        elif name == b"referer":
            referer = value
        elif name == b"host" and not host:
            host = value
    size = len(head.method) + len(head.path) + len(host) + len(agent) + len(forwarded) + len(referer)
    return ("h2", head.method, head.path, host, agent, forwarded, referer), size


def _shown(block: Block) -> tuple[int | None, tuple[bytes, bytes], int]:
    """Status, Content-Type and Location of a final head, and the size of those; None and nothing of any other block."""
    if not block.fields:
        return _NO_ANSWER
    name, value = block.fields[0]
    if name != b":status" or len(value) != _DIGITS or not value.isdigit() or value < _FINAL:
        return _NO_ANSWER
    told = dict(block.fields)
    kind, location = told.get(b"content-type", b""), told.get(b"location", b"")
    return int(value), (kind, location), len(kind) + len(location)
