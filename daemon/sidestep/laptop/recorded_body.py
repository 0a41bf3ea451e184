"""The body of a request that was copied by a wiretap, as files and pages keep it."""

from __future__ import annotations

import msgspec


class Body(msgspec.Struct, frozen=True):
    """What was recorded behind a request's head. `is_cut`: there was more."""

    data: bytes
    trailers: tuple[tuple[str, str], ...] = ()
    is_cut: bool = False

    @property
    def size(self) -> int:
        """Bytes of the body, and characters of its trailers."""
        return len(self.data) + sum(len(name) + len(value) for name, value in self.trailers)

    def beginning(self, most: int) -> Body:
        """The body with at most this many bytes."""
        if len(self.data) <= most:
            return self
        return Body(self.data[:most], self.trailers, is_cut=True)
