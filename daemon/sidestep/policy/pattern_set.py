"""Searches texts and streams for the patterns of a policy's rules: regexes and built-in patterns.

A text of any length is searched in windows of WINDOW bytes that overlap by OVERLAP bytes, at fixed places of the text.
Whether a pattern is found in a window depends on nothing but the text, so the verdict on a stream does not depend on
how the stream was cut into reads:

- A pattern of at most OVERLAP - 2 bytes is found wherever it stands, because it lies within a window and the byte on
  either side of it does so too. A longer one is found if it lies within a window.
- What looks at its surroundings (`\\b`, `^`, `$`, a built-in pattern's guard) is only believed where its surroundings
  are known: not at the edge of a window that is not an end of the text.

A stream's last window is searched at each read although it is not full. All that is found there would be found in the
full window as well, so this makes no difference to the verdict; it only brings it forward.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import re2

from sidestep.model.inspection import Pattern
from sidestep.policy.data_loss import LOOK_BEHIND, MAX_REACH, PATTERNS, BuiltinPattern
from sidestep.policy.regex_set import MAX_MEMORY, RegexSet, compiled, depends_on_context

WINDOW = 4096
"""Bytes that are searched at once."""
OVERLAP = 1024
"""Bytes that two windows have in common. More than what a built-in pattern needs around its beginning."""
STEP = WINDOW - OVERLAP

assert OVERLAP > MAX_REACH + LOOK_BEHIND  # noqa: S101 - or a secret could lie in no window


@dataclass(slots=True)
class Findings:
    """What was found in a text so far: the numbers of patterns.

    `incomplete`: a window had more candidates for a built-in pattern than are looked at, and those were none.
    """

    found: set[int] = field(default_factory=set)
    incomplete: bool = False


class PatternSet:
    """Patterns, numbered in the order in which they are given.

    `needles` are searched for in the same pass, to be told by `search_head`; they are Latin-1 regexes. Raises
    ConfigurationError when a regex cannot be compiled, or all together need more memory than `room`.
    """

    def __init__(self, patterns: Sequence[Pattern], *, needles: Sequence[bytes] = (), room: int = MAX_MEMORY) -> None:
        self.patterns = tuple(patterns)
        regexes = [(number, each.regex) for number, each in enumerate(patterns) if each.builtin is None]
        builtins = [(number, PATTERNS[each.builtin]) for number, each in enumerate(patterns) if each.builtin]
        # A needle has a negative number.
        self._numbers = [*(number for number, _ in regexes), *(~place for place in range(len(needles)))]
        self._numbers += [number for number, _ in builtins]
        self.regexes = tuple(regex for _, regex in regexes)
        self._set = RegexSet(self.regexes, raw=[*needles, *(each.needle for _, each in builtins)], room=room)
        self._in_context = {number: compiled(regex) for number, regex in regexes if depends_on_context(regex)}
        self._guarded = {number: _Needles(each) for number, each in builtins}

    def find(self, text: bytes) -> Sequence[int]:
        """The places of patterns that may be in a text: what the first pass over it says, and what is measured."""
        return self._set.found(text)

    def search(self, text: bytes) -> Findings:
        """Search a whole text."""
        findings = Findings()
        scan = Scan(self, findings)
        scan.feed(text)
        scan.finish()
        return findings

    def clears(self, text: bytes) -> bool:
        """Whether `search` finds nothing in a whole text, and has looked at everything."""
        if len(text) <= WINDOW and not self.find(text):
            return True
        findings = self.search(text)
        return not (findings.found or findings.incomplete)

    def search_head(self, text: bytes, findings: Findings) -> list[int]:
        """Search a text at once, whatever its length. Returns the places of the needles that are in it."""
        return self.judge_head(self.find(text), text, findings)

    def judge_head(self, places: Sequence[int], text: bytes, findings: Findings) -> list[int]:
        """The second half of `search_head`, after `find`."""
        self.judge(places, text, findings, begins=True, ends=True)
        return [~number for place in places if (number := self._numbers[place]) < 0]

    def judge(self, places: Sequence[int], text: bytes, findings: Findings, *, begins: bool, ends: bool) -> None:
        """Judge what `find` said of a window. `begins` and `ends` say whether its edges are those of the whole text."""
        for place in places:
            number = self._numbers[place]
            if number < 0 or number in findings.found:
                continue
            if number in self._guarded:
                known, complete = self._guarded[number].secret(text, begins=begins, ends=ends)
                findings.incomplete |= not complete
            elif number in self._in_context:
                begin, end = (0 if begins else 1), (len(text) if ends else len(text) - 1)
                known = self._in_context[number].search(text, begin, end) is not None
            else:
                known = True
            if known:
                findings.found.add(number)


class _Needles:
    """Goes through the needles of a built-in pattern in a window and asks its guard about each."""

    def __init__(self, builtin: BuiltinPattern) -> None:
        options = re2.Options()
        options.log_errors = False
        options.encoding = re2.Options.Encoding.LATIN1
        needle = re2.compile(builtin.needle, options)
        self._search = needle.search
        self._group = min(needle.groups, 1)
        self._builtin = builtin

    def secret(self, text: bytes, *, begins: bool, ends: bool) -> tuple[bool, bool]:
        """Whether there is a secret, and whether every needle was looked at.

        A needle too near an edge that is not one of the whole text lies in another window, with what is around it.
        """
        at = 0 if begins else LOOK_BEHIND
        last = len(text) if ends else len(text) - self._builtin.reach
        for _ in range(self._builtin.most):
            found = self._search(text, at)
            if found is None:
                return False, True
            begin = found.start(self._group)
            if begin > last:
                return False, True
            if self._builtin.guard(text, begin):
                return True, True
            at = begin + 1
        return False, False


class Scan:
    """Searches one stream, fed in pieces of any size; holds at most WINDOW bytes of it.

    `findings` accumulates. After `finish` it can be fed the next text of the same kind (the next message of a WebSocket
    or of gRPC).
    """

    __slots__ = ("_begins", "_places", "_text", "_unsearched", "findings", "patterns")

    LITTLE = 64
    """New bytes below which the last window is not searched again: it costs as much as a full one."""

    def __init__(self, patterns: PatternSet, findings: Findings | None = None) -> None:
        self.patterns = patterns
        self.findings = Findings() if findings is None else findings
        self._text = b""
        self._places: Sequence[int] | None = ()
        """What `find` says of the text; None if it was not asked."""
        self._begins = True
        self._unsearched = 0

    @property
    def done(self) -> bool:
        """Whether everything is found, so that nothing more needs to be read."""
        return len(self.findings.found) == len(self.patterns.patterns)

    @property
    def held(self) -> int:
        """Bytes of the stream that are in memory."""
        return len(self._text)

    def feed(self, data: bytes) -> None:
        """Search the next bytes."""
        for _ in self.windows(data):
            pass

    def windows(self, data: bytes) -> Iterator[None]:
        """Search the next bytes; yields after each full window. Whoever stops before the end feeds no more."""
        if self.done or not data:
            return
        text = self._text + data
        at = 0
        while len(text) - at > WINDOW:
            window = text[at : at + WINDOW]
            if places := self.patterns.find(window):
                self.patterns.judge(places, window, self.findings, begins=self._begins, ends=False)
            self._begins = False
            self._unsearched = 0
            at += STEP
            yield
        self._text = text[at:] if at else text
        self._places = None
        self._unsearched += len(data)
        if self._unsearched >= self.LITTLE and (self._begins or len(self._text) > OVERLAP):
            self._search(ends=False)
            self._unsearched = 0

    def look(self) -> None:
        """Search what has come, of which little may not have been searched yet; more may follow."""
        if not self.done and self._unsearched:
            self._search(ends=False)
            self._unsearched = 0

    def finish(self) -> None:
        """Search what is left, at the end of the text."""
        if not self.done:
            self._search(ends=True)
        self._text = b""
        self._places = ()
        self._begins = True
        self._unsearched = 0

    def _search(self, *, ends: bool) -> None:
        if self._places is None:
            self._places = self.patterns.find(self._text)
        if self._places:
            self.patterns.judge(self._places, self._text, self.findings, begins=self._begins, ends=ends)
