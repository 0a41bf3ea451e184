"""Patterns are found whole or in a stream, and how a stream is cut makes no difference."""

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidestep.model.errors import ConfigurationError
from sidestep.model.inspection import Builtin, Pattern
from sidestep.policy.pattern_set import OVERLAP, STEP, WINDOW, Findings, PatternSet, Scan
from sidestep.policy.regex_set import (
    MAX_INSTRUCTIONS,
    RegexError,
    RegexSet,
    compiled,
    depends_on_context,
    is_unicode,
)
from tests.effort import examples
from tests.unit.policy import secrets_made


def regexes(*each, **options):
    return PatternSet([Pattern(regex=regex) for regex in each], **options)


def found(patterns, text):
    return patterns.search(text).found


@pytest.mark.parametrize(
    ("regex", "text", "expected"),
    [
        ("abc", b"xabcx", True),
        ("abc", b"xab", False),
        ("^abc$", b"abc", True),
        ("^abc$", b"x\nabc\ny", True),
        ("^abc$", b"xabc", False),
        (r"\babc\b", b"x abc.", True),
        (r"\babc\b", b"xabc", False),
        (r"\Babc", b"xabc", True),
        (r"\Babc", b"abc", False),
        (r"\Aabc", b"abc", True),
        (r"\Aabc", b"\nabc", False),
        (r"abc\z", b"abc\n", False),
        (r"abc\z", b"xabc", True),
        ("a.c", b"a\xffc", True),
        ("a[^x]c", b"a\xffc", True),
        ("é.c", "éxc".encode(), True),
        ("[é]c", "éc".encode(), True),
        (r"\pLc", "éc".encode(), True),
        (r"\x{e9}c", "éc".encode(), True),
        ("é", b"\xe9", False),
        ("(?i)ABC", b"abc", True),
        ("a|b", b"b", True),
        (r"\[^a", b"[\na", False),
        (r"a\$", b"a$", True),
    ],
)
def test_regexes(regex, text, expected):
    assert bool(found(regexes(regex), text)) is expected
    assert bool(found(regexes(regex), b"\n" * 9000 + text + b"\n" * 9000)) is (
        bool(re.search(rb"\\[Az]", regex.encode())) is False and expected
    )


def test_numbers_are_those_of_the_patterns():
    patterns = PatternSet(
        [
            Pattern(Builtin.JWT),
            Pattern(regex="é"),
            Pattern(regex="abc"),
            Pattern(Builtin.CARD_NUMBER),
            Pattern(regex=r"\bz\b"),
        ]
    )
    for number, text in enumerate(
        [secrets_made.jwt(random.Random(1)), "é", "abc", secrets_made.card(random.Random(1)), "z"]
    ):
        assert found(patterns, text.encode()) == {number}
    everything = " ".join([secrets_made.jwt(random.Random(1)), "é", "abc", "4111111111111111", "z"])
    assert found(patterns, everything.encode()) == {0, 1, 2, 3, 4}
    assert found(PatternSet([]), b"abc") == set()


@pytest.mark.parametrize("regex", ["(", "a{1001}", "(?=a)", "[z-a]", "**", r"\1", "a)|(b"])
def test_an_invalid_regex_is_named(regex, capfd):
    with pytest.raises(RegexError, match="invalid regex") as caught:
        regexes("a", regex)
    assert (caught.value.index, caught.value.value) == (1, regex)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("regex", [r"\pL{129}x", r"\pL{60}", r"(\pL|\pN){3,100}"])
def test_a_regex_whose_program_is_large_is_refused_before_it_is_compiled_whole(regex, capfd):
    with pytest.raises(RegexError, match=f"more than {MAX_INSTRUCTIONS} instructions"):
        compiled(regex)
    assert compiled(r"\pL{25}").programsize < MAX_INSTRUCTIONS
    assert capfd.readouterr().err == ""


def test_what_needs_too_much_memory_is_refused(capfd):
    with pytest.raises(ConfigurationError, match="need more than 1 MiB of memory"):
        regexes(*[f"(a?){{500}}a{{500}}{number}" for number in range(100)], room=1024 * 1024)
    assert capfd.readouterr().err == ""


def test_a_set_that_could_not_search_is_not_taken_for_one_that_finds_nothing(capfd):
    # The program fits, its automaton does not: RE2 then reports no match for any text.
    refused = 0
    for room in range(20, 200, 4):
        try:
            made = RegexSet(["(a?){100}a{100}", "b"], room=room * 1024)
        except ConfigurationError:
            refused += 1
        else:
            assert made.found(b"a" * 100 + b"b")
    assert refused
    assert capfd.readouterr().err == ""


def test_a_set_short_of_memory_is_slow_and_never_wrong(capfd):
    regexes_ = ["a[ab]{24}c", "[ab]{300}d", "needle"]
    made = None
    for room in range(16, 512, 8):
        try:
            made = RegexSet(regexes_, room=room * 1024)
        except ConfigurationError:
            continue
        break
    rng = random.Random(1)
    for _ in range(4):
        # A new state for nearly each byte, of which a few hundred fit at a time.
        text = bytes(rng.choices(b"ab", k=2048))
        assert not made.found(text)
        assert set(made.found(text + b"needle")) == {2}
        text = text[:1000] + b"a" + text[1000:1024] + b"c" + text[1024:] + b"d"
        assert set(made.found(text)) == {0, 1}
    assert capfd.readouterr().err == ""


def test_context():
    for regex in ("^a", "a$", r"\ba", r"a\B", r"\Aa", r"a\z", r"\\^", r"[a^]"):
        assert depends_on_context(regex), regex
    for regex in ("a", "[^a]", r"\\[^a]", r"a.b", r"\d\w\s"):
        assert not depends_on_context(regex), regex
    assert is_unicode(r"\pL")
    assert is_unicode("ü")
    assert not is_unicode(r"\d")


PATTERNS = PatternSet(
    [
        Pattern(regex="needle"),
        Pattern(regex=r"\bword\b"),
        Pattern(regex="^line$"),
        Pattern(regex=r"\Abegin"),
        Pattern(regex=r"end\z"),
        Pattern(regex=r"b[^e]{1,900}e"),
        Pattern(regex=r"\Bx{3,}\B"),
        Pattern(regex="é+"),
        *[Pattern(each) for each in Builtin],
    ]
)
PIECES = [
    *[text for _, text in secrets_made.true_ones()][::5],
    *[text for _, text in secrets_made.near_misses()][::4],
    *["needle", "word", "swords", "line", "\nline\n", "begin", "end", "b"],
    "é",
    "xxxxx",
    "4000 0000 0000 0000 " * 30,
    " ",
    "\n",
    "b" + "a" * 850 + "e",
]


@st.composite
def streams(draw):
    """A text of pieces, some of them around the edges of windows, and the places where it is cut."""
    text = b""
    for piece in draw(st.lists(st.sampled_from(PIECES), max_size=6)):
        if draw(st.booleans()):
            edge = draw(st.sampled_from([STEP, WINDOW, STEP + WINDOW, 2 * STEP]))
            text += draw(st.sampled_from([b" ", b"x", b"\n", b"0"])) * (
                edge - len(text) - draw(st.integers(-3, len(piece) + 3))
            )
        text += piece.encode()
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
    return text, [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def scanned(parts):
    scan = Scan(PATTERNS, Findings())
    seen = [set()]
    for part in parts:
        scan.feed(part)
        assert len(scan._text) <= WINDOW
        assert seen[-1] <= scan.findings.found
        seen.append(set(scan.findings.found))
    scan.finish()
    assert seen[-1] <= scan.findings.found
    return scan.findings


@settings(max_examples=examples())
@given(streams())
def test_cuts_make_no_difference(stream):
    text, parts = stream
    assert scanned(parts) == scanned([text])


@settings(max_examples=examples())
@given(streams())
def test_single_bytes_and_small_reads_make_no_difference(stream):
    text, _ = stream
    whole = scanned([text])
    for size in (37, 64, 1000):
        assert scanned([text[at : at + size] for at in range(0, len(text), size)]) == whole
    assert scanned([text[:100][at : at + 1] for at in range(100)] + [text[100:]]) == whole


@settings(max_examples=examples())
@given(st.integers(0, 3 * WINDOW), st.sampled_from([text for _, text in secrets_made.true_ones()]))
def test_a_secret_is_found_wherever_it_stands(at, text):
    stream = b"\n" * at + text.encode() + b"\n" + b"." * 700
    assert scanned([stream]).found & set(range(8, len(PATTERNS.patterns)))


LONG = regexes(r"\bqw*r\b", "^qw*r$")


@settings(max_examples=examples())
@given(st.integers(0, 3 * WINDOW), st.integers(1, OVERLAP - 2), st.integers(0, WINDOW))
def test_what_is_shorter_than_the_overlap_is_found_wherever_it_stands(before, length, after):
    text = b"\n" * before + b"q" + b"w" * max(0, length - 2) + b"r" + b"\n" * after
    assert found(LONG, text) == {0, 1}


@pytest.mark.parametrize("edge", [STEP, WINDOW, 2 * STEP, STEP + WINDOW])
def test_the_edge_of_a_window_is_no_edge_of_a_word_a_line_or_a_secret(edge):
    guessed = [Pattern(regex=regex) for regex in (r"\bword", "^word", r"\Aword", r"swo\b", "swo$", r"swo\z")]
    patterns = PatternSet([*guessed, Pattern(Builtin.CARD_NUMBER), Pattern(Builtin.NPM_TOKEN)])
    card = secrets_made.card(random.Random(2))
    token = secrets_made.checked(random.Random(2), "npm_")
    for text, reach in (("swordx", 6), (f"x{card}", 18), (f"{card}7", 18), (f"{token}a", 42)):
        for before in range(edge - reach, edge + 2):
            # Letters before and after a word; blanks around a number, so that only its own digits tell.
            filler = b"s" if text == "swordx" else b" "
            stream = filler * before + text.encode() + filler * 2000
            assert not found(patterns, stream), (text, before)
            scan = Scan(patterns)
            scan.feed(stream[:edge])
            scan.feed(stream[edge:])
            scan.finish()
            assert not scan.findings.found


def test_it_is_found_as_soon_as_its_surroundings_are_known():
    scan = Scan(regexes(r"\bsecret\b", "needle"))
    scan.feed(b"." * 100 + b"secret needle")
    assert scan.findings.found == {0, 1}
    assert scan.done
    scan = Scan(regexes(r"\bsecret\b"))
    scan.feed(b"." * 100 + b"secret")
    assert not scan.findings.found
    scan.feed(b"ly" * 50)
    scan.finish()
    assert not scan.findings.found


def test_messages_are_texts_of_their_own():
    scan = Scan(regexes(r"\Aab\z"))
    for message in (b"a", b"b"):
        scan.feed(message)
        scan.finish()
    assert not scan.findings.found
    scan.feed(b"ab")
    scan.finish()
    assert scan.findings.found == {0}


@pytest.mark.alone
def test_the_cost_of_small_reads_is_bounded():
    import time

    text = b"abc 123 " * 4096
    scan = Scan(PATTERNS)
    began = time.process_time()
    scan.feed(text)
    at_once = time.process_time() - began
    scan = Scan(PATTERNS)
    began = time.process_time()
    for at in range(0, len(text), 16):
        scan.feed(text[at : at + 16])
    assert time.process_time() - began < 200 * at_once + 0.1
