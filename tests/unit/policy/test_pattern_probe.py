"""What patterns cost on hostile text: usual ones are accepted, those that drive RE2 out of its memory are not."""

import time

import pytest

from sidestep.model.errors import ConfigurationError
from sidestep.model.inspection import Builtin, Pattern
from sidestep.policy import pattern_probe
from sidestep.policy.pattern_probe import MAX_COST, check_cost
from sidestep.policy.pattern_set import PatternSet


def cost(*regexes):
    return check_cost(PatternSet([Pattern(regex=regex) for regex in regexes]), time.thread_time)


@pytest.mark.parametrize(
    "regexes",
    [
        pattern_probe._USUAL,
        [r"[a-zA-Z0-9._%+-]+@[a-zA-Z0-9.-]+\.[a-zA-Z]{2,}"],
        [r"\b\d{3}-\d{2}-\d{4}\b", r"\b[0-9a-f]{32}\b"],
        [r"(?i)straße\s+\pL+", "abc"],
    ],
)
def test_usual_patterns_are_accepted(regexes):
    assert 0 < cost(*regexes) <= MAX_COST


def test_all_built_in_patterns_together_are_accepted():
    assert 0 < check_cost(PatternSet([Pattern(each) for each in Builtin]), time.thread_time) <= MAX_COST


@pytest.mark.parametrize(
    "regexes",
    [
        [r"[ab]*a[ab]{400}c"],
        [r"a[ab]{30}c"],
        [r"x.{300}y"],
        [f"(?i)w{each}.*k{each}.*e{each}" for each in range(32)],
    ],
)
def test_patterns_without_room_for_their_automaton_are_refused(regexes):
    with pytest.raises(ConfigurationError, match=r"microseconds per KiB of hostile text, at most 10") as caught:
        cost(*regexes)
    assert regexes[0][:10] in str(caught.value)


def test_nothing_costs_nothing():
    assert check_cost(PatternSet([]), time.thread_time) == 0


def test_a_disturbed_measurement_refuses_nothing():
    disturbed = iter(range(10**9))

    def clock():
        # Two readings of three come late, by a second each time.
        return time.thread_time() + next(disturbed) // 3

    assert check_cost(PatternSet([Pattern(regex="abc")]), clock) < MAX_COST * 5


def test_what_is_very_slow_is_not_searched_for_long():
    began = time.thread_time()
    regexes = [f"[a-z]{{{900 + number}}}x" for number in range(34)]
    with pytest.raises(ConfigurationError, match="per KiB of hostile text"):
        check_cost(PatternSet([Pattern(regex=regex) for regex in regexes]), time.thread_time)
    assert time.thread_time() - began < 8  # some twenty without a bound
