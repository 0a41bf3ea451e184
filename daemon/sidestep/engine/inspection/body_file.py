"""The hash of one body in which a rule has found something: what a `fileinfo` record tells of it, and all that it does.

A body is hashed as Suricata hashes files: what its Content-Encoding decodes to, from its first byte to its end. Whether
a rule will find anything is not known before, so its bytes are kept until one does, as far as the window reaches; then
they are hashed, and what follows is. Where no rule finds anything a body costs a copy. The bytes are kept in one piece,
because each object costs fifty bytes more, and a client chooses how it cuts its body.

    kept        no rule has applied; bytes wait, or were dropped: for more than the window, or where there is no room
    hashed      a rule has applied (`begin`): the body is read to its end although no rule may look at it any more
    over        `finish` was called, or the body is longer than the window: it is told without a hash, as truncated
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hashlib import _Hash


class BodyFile:
    """See the module. `most` are the bytes that are hashed, `size` those that were seen."""

    __slots__ = ("_hash", "_kept", "_most", "has_begun", "is_told", "size")

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: bytearray | None = bytearray()
        self._hash: _Hash | None = None
        self.size = 0
        self.has_begun = False
        """A rule has applied to the body."""
        self.is_told = False
        """Whoever drives this has told of it."""

    @property
    def held(self) -> int:
        """Bytes that are kept."""
        return self.size if self._kept is not None else 0

    @property
    def wants_more(self) -> bool:
        """Whether the rest of the body is wanted, whoever else wants it."""
        return self._hash is not None and not self.is_told

    def read(self, data: bytes) -> None:
        """Take the next bytes."""
        self.size += len(data)
        if self.size > self._most:
            self.give_up()
        elif self._hash is not None:
            self._hash.update(data)
        elif self._kept is not None:
            self._kept += data

    def begin(self) -> None:
        """A rule has applied."""
        self.has_begun = True
        kept, self._kept = self._kept, None
        if kept is not None:
            self._hash = hashlib.sha256(kept)

    def give_up(self) -> None:
        """Keep and hash nothing more."""
        self._kept = self._hash = None

    def finish(self, *, is_whole: bool) -> str | None:
        """The body's SHA-256 in hexadecimal digits; None if it is not whole, or was not hashed."""
        made = self._hash if is_whole else None
        self.give_up()
        self.is_told = True
        return None if made is None else made.hexdigest()
