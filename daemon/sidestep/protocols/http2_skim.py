"""Recognises sound HTTP/2 request heads that nobody wants to look at, without reading their fields one by one.

As `http1_skim`, with one pass of one RE2 automaton over a text of the head: its fields in lines, with NUL between name
and value. No name and no value of a sound head has NUL or LF, so the text has one meaning if there are as many of both
as fields. Measured for six fields: 1.5 µs, instead of 6 for the same questions to names and values one by one.

`skim` may be False for any head. It is never True for a head that `engine.http2.head` does not find valid, or that one
of `others` describes. A test compares them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import re2

MEMORY: Final = 512 * 1024
"""Bytes of one automaton with the states it has met; when they are used up it begins anew."""
PSEUDO: Final = 4
"""Pseudo-fields of a plain request."""

_FIELD: Final = b"\0".join
_ONE: Final = (
    rb"(?::method\x00[A-Z]{1,16}|:scheme\x00https?|:authority\x00[0-9A-Za-z.:\-_\[\]]{1,255}|:path\x00/[!\"$-~]*)"
)
_LINE: Final = rb"\n[!#$%&'*+\-.^_`|~0-9a-z]+\x00[^\x00\r\n]*"
_GRAMMAR: Final = _ONE + rb"(?:\n" + _ONE + rb"){3}(?:" + _LINE + rb")*"
_SUSPICIOUS: Final = (
    rb".*:method\x00CONNECT(?:\n.*)?",
    rb".*(?:\x00[ \t]|[ \t]\n).*",
    rb".*[ \t]",
    rb".*\n(?:connection|proxy-connection|keep-alive|transfer-encoding|upgrade|te|content-length|host)\x00.*",
)
_PLAIN: Final = [0]
"""Grammar, nothing else."""


class Http2Skimmer:
    """`others` are RE2 regexes for whole texts of heads that somebody has to look at."""

    __slots__ = ("_match",)

    def __init__(self, others: Sequence[bytes]) -> None:
        options = re2.Options()
        options.encoding = re2.Options.Encoding.LATIN1
        options.dot_nl = True
        options.log_errors = False
        options.max_mem = MEMORY
        patterns = re2.Set.FullMatchSet(options)
        for pattern in (_GRAMMAR, b"|".join((*_SUSPICIOUS, *others))):
            patterns.Add(pattern)
        patterns.Compile()
        self._match = patterns.Match

    def skim(self, fields: Sequence[tuple[bytes, bytes]]) -> bool:
        """Whether these fields, pseudo-fields first and none of those twice, are sound and wanted by nobody."""
        text = b"\n".join(map(_FIELD, fields))
        count = len(fields)
        return text.count(b"\0") == count and text.count(b"\n") == count - 1 and self._match(text) == _PLAIN
