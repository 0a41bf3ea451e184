"""Recognises plain request heads that match no filter, without reading their fields.

Most requests of a steered port match no filter, and their heads differ from each other, so that a memo of whole heads
does not help. Reading such a head into fields costs more than all the rest of relaying it. A `Skimmer` makes one pass
of one RE2 automaton (`re2.Set`) over the head, which tells which of four patterns it matches, however many wanted
headers there are (measured for ten fields: 17 µs to read them, 5.5 for `re` and a dozen searches, 1.8 for this).

It may return None ("not known") for any head. It never calls a head plain that `parse_request` refuses, never returns
another length, and never overlooks a wanted header. A differential test compares it with `parse_request`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import re2

from sidestep.protocols.http1 import HOST_TEXT, TARGET_TEXT, TEXT, TOKEN, Http1Limits, read_length

MEMORY: Final = 512 * 1024
"""Bytes of one automaton with the states it has met; when they are used up it begins anew."""
SHORT: Final = 512
"""Bytes of a head that cannot hold too many fields: each takes at least four."""

_LENGTH: Final = b"\ncontent-length:"

_FIELDS: Final = rb"(?:" + TOKEN + rb"+:" + TEXT + rb"*\r\n)*"
_GRAMMAR: Final = TOKEN + rb"{1,32} /" + TARGET_TEXT + rb"* (?-i:HTTP)/1\.1\r\n" + _FIELDS + rb"\r\n"
_NAMED_HOST: Final = rb".*\nhost: ?" + HOST_TEXT + rb"+\r.*"
_HAS_LENGTH: Final = rb".*\ncontent[-_]length:.*"

_PLAIN: Final = [0, 1]
"""Grammar and host, nothing else."""
_WITH_LENGTH: Final = [0, 1, 2]

Tests = tuple[Callable[[bytes, bytes, tuple[()]], bool], ...]


class Skimmer:
    """Finds heads that are plain, contain none of `needles` (lower case) and match none of `tests`.

    `tests` get method, path and no fields. `others` are RE2 regexes for whole heads that somebody else has to read, in
    any letter case: they cost next to nothing, because all is found in one pass. Plain: HTTP/1.1, origin-form, any
    method but HEAD and CONNECT, one Host, no transfer coding, no upgrade, persistent, at most one length.
    """

    __slots__ = ("_fields", "_head", "_match", "_tests")

    def __init__(
        self, needles: tuple[bytes, ...], tests: Tests, limits: Http1Limits, others: Sequence[bytes] = ()
    ) -> None:
        options = re2.Options()
        options.encoding = re2.Options.Encoding.LATIN1
        options.case_sensitive = False
        options.dot_nl = True
        options.log_errors = False
        options.max_mem = MEMORY
        patterns = re2.Set.FullMatchSet(options)
        for pattern in (_GRAMMAR, _NAMED_HOST, _HAS_LENGTH, _suspicious(needles, others)):
            patterns.Add(pattern)
        patterns.Compile()
        self._match = patterns.Match
        self._tests = tests
        self._head = limits.head
        self._fields = limits.fields

    def skim(self, head: bytes) -> int | None:
        """Return the bytes of the body of a head that is plain and wanted by nobody, else None. Never raises."""
        found = self._match(head)
        length: int | None = 0
        if found != _PLAIN:
            found = sorted(found or ())  # the order is not promised
            if found == _WITH_LENGTH:
                length = _length(head.lower())
            elif found != _PLAIN:
                return None
        if len(head) > SHORT and (len(head) > self._head or head.count(b"\n") > self._fields + 2):
            return None
        if self._tests:
            method, target, _ = head.split(b" ", 2)
            path = target.partition(b"?")[0]
            for test in self._tests:
                if test(method, path, ()):
                    return None
        return length


def _suspicious(needles: tuple[bytes, ...], others: Sequence[bytes]) -> bytes:
    """A pattern for heads that somebody else has to read. Some words send a head there in any spelling and place."""
    words = [
        rb"transfer",
        rb"\t",
        rb"\n(?:upgrade|expect|te|trailer):",
        rb"\nhost:.*\nhost:",
        rb"[^\n]connection",
        rb"\nconnection" + _other_than(b": keep-alive\r"),
        *(re2.escape(needle) for needle in needles),
    ]
    return b"|".join((rb"(?:head|connect) .*", rb".*(?:" + b"|".join(words) + rb").*", *others))


def _other_than(text: bytes) -> bytes:
    """A pattern for what begins in another way than with `text`, but is not merely the beginning of it."""
    pattern = b""
    for letter in reversed(text):
        one = re2.escape(bytes((letter,)))
        pattern = b"(?:[^" + one + b"]|" + one + pattern + b")" if pattern else b"[^" + one + b"]"
    return pattern


def _length(low: bytes) -> int | None:
    if b"content_length" in low:
        return None
    at = low.index(_LENGTH) + len(_LENGTH)
    if _LENGTH in low[at:]:
        return None
    body = read_length(low[at : low.index(b"\r", at)].removeprefix(b" "))
    return body if isinstance(body, int) else None
