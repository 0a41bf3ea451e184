"""Measures what a policy's patterns cost on hostile text, before the policy is accepted.

RE2 needs time that is linear in the text, but the factor differs by four orders of magnitude: a set whose automaton
does not fit into its memory builds it anew again and again. Whoever sends requests chooses the text, so the probe does
too: random bytes, and random texts made of what the patterns themselves consist of, which is what drives their automata
through the most states. Each text is new to the set, after some that warm it up.

The cost is compared with that of a fixed set of usual patterns, searched for in the same texts in turns. Both are
disturbed alike by a busy machine, and a slow machine refuses no policy that a fast one accepts. The least of several
turns counts, because a disturbance only ever adds, and what seems too slow is measured for longer. The clock is an
argument, because this package has none; it must be one of processor time (`time.thread_time`).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence

from sidestep.model.errors import ConfigurationError
from sidestep.model.inspection import Pattern
from sidestep.policy.pattern_set import PatternSet
from sidestep.policy.regex_set import RegexSet

MAX_COST = 10.0
"""Microseconds per KiB, on a machine on which the usual patterns cost USUAL_COST."""
USUAL_COST = 2.1
"""Microseconds per KiB that the usual patterns cost on the machine on which the bound was chosen."""

Clock = Callable[[], float]
"""Seconds of processor time."""

_USUAL = (
    r"(?i)union\s+select",
    r"/etc/passwd",
    r"(?i)<script[^>]*>",
    r"sk_live_[0-9a-z]{24}",
    r"\.\./",
    r"(?i)or\s+1=1",
    r"\$\{jndi:",
    r"/admin",
    r"(?i)xp_cmdshell",
    r"AKIA[0-9A-Z]{16}",
    r"(?i)sleep\([0-9]+\)",
    r"\bselect\b.+\bfrom\b",
)
_PIECE = 4096
"""Bytes that are searched at once."""
_WARMING = 8
_TURNS, _MOST_TURNS = 5, 40
_FAR = 5
"""Times the bound: what costs more is not measured again."""
_GIVE_UP = 0.5
"""Seconds of searching in texts of one kind. At the bound it is 2 ms."""
_SAMPLES = 8
"""Character classes, and pairs of characters, of which texts are made."""
_WORDS = re.compile(r"\w{2,}")
_CLASS = re.compile(r"\[\^?([^\]]+)\]")
_RANGE = re.compile(r"(.)-(.)")
_SYNTAX = re.compile(r"\\[a-zA-Z]|\(\?[^():]*[:)]|\{[0-9,]*\}|\[\^|[\\\[\](){}|*+?.^$]")
_ESCAPES = {r"\d": "09", r"\w": "az_9", r"\s": " \n", r"[[:": "aZ0 "}


def check_cost(patterns: PatternSet, clock: Clock) -> float:
    """Return the microseconds per KiB that the patterns cost on hostile text; about 20 ms of processor time.

    Raises ConfigurationError when that is more than MAX_COST.
    """
    if not patterns.patterns:
        return 0.0
    usual = RegexSet(_USUAL)
    worst = 0.0
    for make in _kinds(patterns.patterns):
        worst = max(worst, _ratio(patterns, usual, make, clock) * USUAL_COST)
        if worst > MAX_COST:
            shown = ", ".join(str(each)[:64] for each in patterns.patterns[:3])
            raise ConfigurationError(
                f"the patterns ({shown}{', …' if len(patterns.patterns) > 3 else ''}) need {worst:.0f} microseconds "
                f"per KiB of hostile text, at most {MAX_COST:.0f} are possible"
            )
    return worst


def _ratio(patterns: PatternSet, usual: RegexSet, make: Callable[[], bytes], clock: Clock) -> float:
    """How many times as much as the usual patterns these cost on texts of one kind."""
    ours = theirs = float("inf")
    spent = 0.0
    for turn in range(-_WARMING, _MOST_TURNS):
        if turn == 0:
            ours = theirs = float("inf")
        text = make()
        began = clock()
        usual.found(text)
        between = clock()
        patterns.find(text)
        cost = clock() - between
        ours, theirs, spent = min(ours, cost), min(theirs, between - began), spent + cost
        if spent > _GIVE_UP:
            break
        if turn + 1 >= _TURNS and not 1 < ours / max(theirs, 1e-9) * USUAL_COST / MAX_COST < _FAR:
            break
    return ours / max(theirs, 1e-9)


def _kinds(patterns: Sequence[Pattern]) -> Iterator[Callable[[], bytes]]:
    """Makers of hostile texts, each with its own seed: the same policy is always probed with the same texts."""
    regexes = [each.regex for each in patterns if each.builtin is None]
    letters = sorted({letter for regex in regexes for letter in _letters(regex)} | set("ax0 "))
    words = sorted({word.encode() for regex in regexes for word in _WORDS.findall(_plain(regex))} | {b"a"})
    classes = sorted({each for regex in regexes for each in _CLASS.findall(regex)})
    chosen = random.Random(0)  # noqa: S311 - reproducible on purpose
    alphabets = [[bytes([each]) for each in range(256)], [letter.encode() for letter in letters]]
    for members in chosen.sample(classes, min(len(classes), _SAMPLES)):
        alphabets += [[letter.encode() for letter in sorted(set(_letters(members)))] or [b"a"]]
    for _ in range(_SAMPLES):
        alphabets += [[letter.encode() for letter in chosen.sample(letters, 2)]]
    for seed, alphabet in enumerate(alphabets):
        yield _of_letters(seed, alphabet)
    yield _of_words(1, words, [b"", b" ", *(letter.encode() for letter in letters)])
    yield _of_words(2, words, [b""])


def _of_letters(seed: int, alphabet: Sequence[bytes]) -> Callable[[], bytes]:
    rng = random.Random(seed)  # noqa: S311 - reproducible on purpose
    if all(len(each) == 1 for each in alphabet):
        table = bytes(alphabet[number % len(alphabet)][0] for number in range(256))
        return lambda: rng.randbytes(_PIECE).translate(table)
    return lambda: b"".join(rng.choices(alphabet, k=_PIECE))[:_PIECE]


def _of_words(seed: int, words: Sequence[bytes], between: Sequence[bytes]) -> Callable[[], bytes]:
    rng = random.Random(seed)  # noqa: S311 - reproducible on purpose

    def make() -> bytes:
        pairs = zip(rng.choices(words, k=_PIECE), rng.choices(between, k=_PIECE), strict=True)
        return b"".join(map(b"".join, pairs))[:_PIECE]

    return make


def _plain(regex: str) -> str:
    """A regex without what is syntax: what is left is text that it may match."""
    return _SYNTAX.sub(" ", regex)


def _letters(regex: str) -> Iterator[str]:
    """The characters that a regex names, in both cases, and some from within its ranges and classes."""
    for letter in _plain(regex):
        for each in (letter, letter.swapcase()):
            if len(each) == 1:
                yield each
    for low, high in _RANGE.findall(regex):
        if ord(low) < ord(high) < 0x250:
            step = max(1, (ord(high) - ord(low)) // 4)
            yield from map(chr, range(ord(low), ord(high) + 1, step))
    for escape, members in _ESCAPES.items():
        if escape in regex:
            yield from members
