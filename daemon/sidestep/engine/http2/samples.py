"""The sampled streams of an HTTP/2 connection, from their heads to the ends of their answers (`inspection.samples`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sidestep.engine.inspection.samples import Sample

if TYPE_CHECKING:
    from sidestep.engine.http2.head import Head
    from sidestep.engine.inspection.judged import Judged
    from sidestep.engine.inspection.samples import RequestTexts
    from sidestep.protocols.hpack import Block

_AGENT, _FORWARDED, _REFERER = b"user-agent", b"x-forwarded-for", b"referer"
_TOLD: Final = frozenset((_AGENT, _FORWARDED, _REFERER))
_FINAL: Final = b"200"
_DIGITS: Final = 3
_NOTHING: Final = (None, (b"", b""))


class Http2Sample(Sample):
    """`length` counts from 0 on; whoever learns that the answer is not whole sets it to None."""

    __slots__ = ("_answer", "_request", "_size")

    def __init__(self, number: int, stream: int, head: Head, judged: Judged | None) -> None:
        super().__init__(number, stream, judged)
        told = {name: value for name, value in head.regular if name in _TOLD}
        host = head.authority or next((value for name, value in head.regular if name == b"host"), b"")
        self._request = (
            "h2", head.method, head.path, host,
            told.get(_AGENT, b""), told.get(_FORWARDED, b""), told.get(_REFERER, b""),
        )  # fmt: skip
        self._answer = (b"", b"")
        self._size = sum(map(len, self._request))
        self.length = 0

    @property
    def size(self) -> int:
        """See `Sample`."""
        kind, location = self._answer
        return self._size + len(kind) + len(location)

    @property
    def asked(self) -> object:
        """See `Sample`."""
        return self._request

    def request(self) -> RequestTexts:
        """See `Sample`."""
        return self._request

    def answer(self) -> tuple[bytes, bytes]:
        """See `Sample`."""
        return self._answer

    def unanswered(self) -> None:
        """See `Sample`."""
        super().unanswered()
        self._answer = (b"", b"")

    def answers(self, block: Block) -> None:
        """Note a header block of the answer; one that is none is not noted. The app is not asked to be strict here."""
        if self.status is None:
            shown = block.shown
            if shown is None:
                shown = block.shown = _shown(block)
            self.status, self._answer = shown


def _shown(block: Block) -> tuple[int | None, tuple[bytes, bytes]]:
    """Status, Content-Type and Location of a final head; None and nothing of any other block."""
    if not block.fields:
        return _NOTHING
    name, value = block.fields[0]
    if name != b":status" or len(value) != _DIGITS or not value.isdigit() or value < _FINAL:
        return _NOTHING
    told = dict(block.fields)
    return int(value), (told.get(b"content-type", b""), told.get(b"location", b""))
