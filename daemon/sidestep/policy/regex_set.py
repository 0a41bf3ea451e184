"""Many RE2 regexes searched for in one pass over a text.

Regexes are compiled as given, with `^` and `$` standing for the ends of lines. Those of ASCII characters are matched
byte by byte (RE2's Latin-1), so that one byte that is not UTF-8 does not hide what surrounds it from `.`; a regex that
names other characters, or classes of Unicode, is matched as UTF-8. There is one RE2 set for each of the two.

A set without room for its automaton finds nothing and says so in no way that Python sees. `RegexSet` therefore searches
once, when it is made, with one more regex that matches everything. RE2 keeps a set's automaton within its room by
starting it anew; after it has started it does not fail.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import re2

from sidestep.model.errors import ConfigurationError

MAX_MEMORY = 8 * 1024 * 1024
"""Bytes of the compiled regexes and automata of one policy."""
MAX_INSTRUCTIONS = 32 * 1024
"""Instructions of RE2's program for one regex, and of those of all regexes of one policy together.

Each takes about a microsecond to compile, several times, in a pod proxy that serves nobody meanwhile."""
_INSTRUCTION = 16
"""Bytes of one (`sizeof(Prog::Inst)`); RE2 gives the program a quarter of its memory (re2/compile.cc, `max_ninst_`)."""
_TOO_LARGE = f"compiles to more than {MAX_INSTRUCTIONS} instructions (classes of Unicode that are repeated are large)"
_UNICODE = re.compile(r"[^\x00-\x7f]|\\[pPx]")
_NEGATED_CLASS = re.compile(r"(?<!\\)((?:\\\\)*)\[\^")
_ASSERTION = re.compile(r"[\^$]|\\[AbBz]")


class RegexError(ConfigurationError):
    """A regex that cannot be compiled. `index` is its position in the set."""

    def __init__(self, index: int, reason: str, regex: str) -> None:
        self.index = index
        super().__init__(reason, value=regex)


def compiled(regex: str, index: int = 0) -> re2._Regexp:
    """Compile one regex as `RegexSet` does; it has no groups. Raises RegexError.

    It has as much room as a set: what a set that it is part of can do within its room, it can do by itself. A program
    of more than MAX_INSTRUCTIONS is refused.
    """
    options = _options(MAX_MEMORY, is_unicode=is_unicode(regex))
    options.never_capture = True
    alone = _options(4 * _INSTRUCTION * MAX_INSTRUCTIONS, is_unicode=is_unicode(regex))
    try:
        # First by itself: what is put into a group must be a whole regex. Here RE2 gives up early on one that is large.
        if re2.compile(regex.encode(), alone).programsize > MAX_INSTRUCTIONS:
            raise RegexError(index, _TOO_LARGE, regex)
        return re2.compile(_lines(regex), options)
    except re2.error as error:
        told = error.args[0] if error.args else b""
        reason = told.decode(errors="replace") if isinstance(told, bytes) else str(told)
        if "too large" in reason:
            raise RegexError(index, _TOO_LARGE, regex) from None
        raise RegexError(index, f"invalid regex (RE2 syntax): {reason}", regex) from None
    finally:
        # The module's cache would keep the regexes of policies that are gone.
        re2.purge()


def is_unicode(regex: str) -> bool:
    """Whether a regex is matched as UTF-8, not byte by byte."""
    return _UNICODE.search(regex) is not None


def depends_on_context(regex: str) -> bool:
    """Whether a regex may look at what surrounds a match: ends of text, line or word. True when in doubt."""
    return _ASSERTION.search(_NEGATED_CLASS.sub(r"\1[", regex)) is not None


class RegexSet:
    """Regexes that are searched for together. Raises RegexError, or ConfigurationError when they are too large.

    `room`: bytes of memory. `raw` regexes follow the others in the numbering; they are byte by byte, and `^` and `$` in
    them stand for the ends of lines as well.
    """

    def __init__(self, regexes: Sequence[str], *, raw: Sequence[bytes] = (), room: int = MAX_MEMORY) -> None:
        parts: dict[bool, list[tuple[int, bytes]]] = {}
        for index, regex in enumerate(regexes):
            compiled(regex, index)
            parts.setdefault(is_unicode(regex), []).append((index, _lines(regex)))
        for index, needle in enumerate(raw, len(regexes)):
            parts.setdefault(False, []).append((index, b"(?m:" + needle + b")"))
        self._sets = [
            (_proved(members, room // len(parts), unicode), tuple(index for index, _ in members))
            for unicode, members in parts.items()
        ]
        self._only: re2.Set | None = self._sets[0][0] if len(self._sets) == 1 else None

    def found(self, text: bytes) -> Sequence[int]:
        """The numbers of the regexes that are found in a text, in no order."""
        if self._only is not None:
            matches: list[int] = self._only.Match(text)
            return matches or ()
        found: list[int] = []
        for each, numbers in self._sets:
            found += [numbers[index] for index in each.Match(text) or ()]
        return found


def _proved(members: Sequence[tuple[int, bytes]], room: int, unicode: bool) -> re2.Set:
    witness = _compiled_set([*(regex for _, regex in members), b""], room, unicode)
    if witness is None or witness.Match(b"") is None:
        raise ConfigurationError(f"the patterns together need more than {room // 2**20} MiB of memory")
    made = _compiled_set([regex for _, regex in members], room, unicode)
    assert made is not None  # noqa: S101 - smaller than the one before
    return made


def _compiled_set(regexes: Sequence[bytes], room: int, unicode: bool) -> re2.Set | None:
    made = re2.Set.SearchSet(_options(room, is_unicode=unicode))
    try:
        for regex in regexes:
            made.Add(regex)
        made.Compile()
    except re2.error:
        return None
    return made


def _lines(regex: str) -> bytes:
    return f"(?m:{regex})".encode()


def _options(room: int, *, is_unicode: bool) -> re2.Options:
    options = re2.Options()
    options.log_errors = False
    options.max_mem = room
    encoding = re2.Options.Encoding
    options.encoding = encoding.UTF8 if is_unicode else encoding.LATIN1
    return options
