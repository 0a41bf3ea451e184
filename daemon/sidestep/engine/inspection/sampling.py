"""Which requests are told although no rule applies to them: a share of all requests of a port.

Whether a request is chosen follows from the number of its connection (`flow`, random) and from its own number on that
connection, and from nothing else: whoever has both, and every record tells both, can work it out again. Numbers that
follow each other are spread evenly, because they are multiplied with the golden ratio (Fibonacci hashing): of any 100
requests in a row on one connection 5 % are 4 to 6.

    HTTP/1   requests are counted here: `advance` is called once for each, and `is_due` is about the next one
    HTTP/2   the number of a stream follows from its id
"""

from __future__ import annotations

from typing import Final

_SPACE: Final = 1 << 32
_MASK: Final = (1 << 64) - 1
_GOLDEN: Final = 0x9E3779B97F4A7C15
"""2^64 divided by the golden ratio."""


def number_of(stream: int) -> int:
    """The number of a client's HTTP/2 stream among all that it can open, from 0."""
    return stream >> 1


class Sampling:
    """The choice on one connection; `percent` is 0 to 100, `flow` a number below 2^64."""

    __slots__ = ("_flow", "_limit", "chooses_all", "chooses_any", "is_due", "number")

    def __init__(self, percent: float, flow: int) -> None:
        self._flow = flow
        self.number = 0
        """Of the next HTTP/1 request."""
        self.change(percent)

    def change(self, percent: float) -> None:
        """Choose another share from now on."""
        self._limit = round(_SPACE * percent / 100)
        self.chooses_any = self._limit > 0
        """Whether any request is ever chosen ..."""
        self.chooses_all = self._limit == _SPACE
        """... and whether each one is."""
        self.is_due = self.chooses(self.number)
        """Whether the next HTTP/1 request is told."""

    def chooses(self, number: int) -> bool:
        """Whether the request with this number is told."""
        return self.chooses_all or ((self._flow + number) * _GOLDEN & _MASK) >> 32 < self._limit

    def advance(self) -> None:
        """Count an HTTP/1 request."""
        self.number += 1
        if self.chooses_all:
            return
        self.is_due = self._limit > 0 and self.chooses(self.number)
