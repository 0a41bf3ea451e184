"""Built-in patterns: each finds every form of what it is for, its guard tells look-alikes apart, and ordinary data
holds nothing."""

import itertools
import random
import re

import pytest
import re2

from sidestep.model.inspection import Builtin, Pattern
from sidestep.policy import data_loss
from sidestep.policy.data_loss import LOOK_BEHIND, MAX_REACH, PATTERNS, is_card_number, is_iban
from sidestep.policy.pattern_set import PatternSet
from tests.unit.policy import secrets_made

ALL = [Pattern(each) for each in Builtin]
SET = PatternSet(ALL)


def found(text, patterns=SET):
    return {patterns.patterns[number].builtin for number in patterns.search(text).found}


def test_every_pattern_has_a_definition_and_examples():
    assert set(PATTERNS) == set(Builtin)
    assert {pattern for pattern, _ in secrets_made.true_ones()} == set(Builtin)
    assert {pattern for pattern, _ in secrets_made.near_misses()} == set(Builtin)


@pytest.mark.parametrize("around", ["{}", '{{"a":"{}"}}', "a=1, {} and more", "<p>{}</p>", "x\n{}\n"])
def test_what_is_looked_for_is_found(around):
    for pattern, text in itertools.chain(secrets_made.true_ones(), secrets_made.true_ones(70)):
        assert pattern in found(around.format(text).encode()), text


def test_nothing_else_is_found_in_it():
    for pattern, text in secrets_made.true_ones():
        # The groups of an IBAN can look like those of a card, and one of ten then has the right check digit.
        also = {Builtin.CARD_NUMBER} if pattern is Builtin.IBAN and " " in text else set()
        assert found(text.encode()) - also == {pattern}, text


def test_look_alikes_are_not_found():
    for pattern, text in secrets_made.near_misses():
        assert found(text.encode()) == set(), (pattern, text)


def test_ordinary_data_holds_nothing():
    for name, text in secrets_made.innocent():
        findings = SET.search(text)
        assert {str(ALL[number]) for number in findings.found} == set(), name
        assert not findings.incomplete, name


def test_a_guard_reads_no_further_than_it_says():
    for pattern, text in itertools.chain(secrets_made.true_ones(), secrets_made.near_misses()):
        builtin = PATTERNS[pattern]
        assert builtin.reach <= MAX_REACH
        encoded = b"  " + text.encode() + b" " * MAX_REACH
        for needle in re.finditer(re.sub(rb"\(\?i:", rb"(?:", builtin.needle), encoded):
            at = needle.start(min(needle.re.groups, 1))
            decided = builtin.guard(encoded, at)
            assert builtin.guard(encoded[: at + builtin.reach], at) is decided
            assert builtin.guard(b"\x00" * (at - LOOK_BEHIND) + encoded[at - LOOK_BEHIND :], at) is decided


def test_needles_are_of_re2():
    for builtin in PATTERNS.values():
        options = re2.Options()
        options.encoding = re2.Options.Encoding.LATIN1
        assert re2.compile(builtin.needle, options).programsize < 400


@pytest.mark.parametrize(
    ("digits", "expected"),
    [
        (b"4111111111111111", True),
        (b"4111111111111112", False),
        (b"5555555555554444", True),
        (b"378282246310005", True),
        (b"6011111111111117", True),
        (b"3530111333300000", True),
        (b"30569309025904", True),
        (b"2223003122003222", True),
        (b"2720992718299096", False),
        (b"2221000000000009", True),
        (b"2220999999999998", False),
        (b"9111111111111111", False),
        (b"411111111111111", False),
    ],
)
def test_card_numbers(digits, expected):
    # The numbers that payment networks publish for tests, and neighbours of them.
    assert is_card_number(digits) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Examples of the SWIFT IBAN registry.
        (b"DE89370400440532013000", True),
        (b"GB29NWBK60161331926819", True),
        (b"FR1420041010050500013M02606", True),
        (b"NO9386011117947", True),
        (b"MT84MALT011000012345MTLCAST001S", True),
        (b"DE89370400440532013001", False),
        (b"DE8937040044053201300", False),
        (b"XX89370400440532013000", False),
        (b"GB29NWBK6016133192681A", False),
    ],
)
def test_ibans(text, expected):
    assert is_iban(text) is expected


def test_the_checksum_of_github():
    # From "Behind GitHub's new authentication token formats".
    assert data_loss.checksum62(b"zQWBuTSOoRi4A9spHcVY5ncnsDkxkJ") == b"0mLq17"


def test_words_after_an_iban_in_groups_do_not_hide_it():
    rng = random.Random(3)
    for country in sorted(data_loss._BBANS):
        text = secrets_made.iban(rng, country, " ")
        assert Builtin.IBAN in found(f"{text} BIC".encode()), text


def test_more_candidates_than_are_looked_at_are_told():
    text = b" ".join(b"4000 0000 0000 0000" for _ in range(200))
    findings = PatternSet([Pattern(Builtin.CARD_NUMBER)]).search(text)
    assert (findings.found, findings.incomplete) == (set(), True)
    few = PatternSet([Pattern(Builtin.CARD_NUMBER)]).search(text[:100])
    assert (few.found, few.incomplete) == (set(), False)
