"""Counts within sliding periods, compared with a list of all events; memory is bounded."""

from hypothesis import given, settings
from hypothesis import strategies as st

from sidestep.policy.sliding_counts import SlidingCounts
from tests.effort import examples

EVENTS = st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 20)), max_size=60)


@settings(max_examples=examples())
@given(EVENTS, st.integers(1, 6), st.floats(1, 30))
def test_reaches(events, count, period):
    counts, seen, now = SlidingCounts(), [], 0.0
    for key, later in events:
        now += later
        seen.append((key, now))
        expected = sum(each == key and at > now - period for each, at in seen) >= count
        assert counts.reaches(key, count, period, now) is expected


@settings(max_examples=examples())
@given(EVENTS, st.integers(1, 6), st.floats(1, 30))
def test_admits(events, count, period):
    counts, admitted, now = SlidingCounts(), [], 0.0
    for key, later in events:
        now += later
        expected = sum(each == key and at > now - period for each, at in admitted) < count
        assert counts.admits(key, count, period, now) is expected
        if expected:
            admitted.append((key, now))


def test_the_fifth_within_a_minute():
    counts = SlidingCounts()
    assert [counts.reaches("a", 5, 60, now) for now in (0, 1, 2, 3, 4, 5)] == [False] * 4 + [True] * 2
    assert not counts.reaches("a", 5, 60, 64.5)
    assert [counts.reaches("b", 1, 60, now) for now in (0, 1000)] == [True, True]


def test_memory_is_bounded_and_the_most_recent_are_kept():
    counts = SlidingCounts(max_keys=10, max_times=30)
    for number in range(100):
        counts.reaches(f"client {number}", 5, 60, number * 0.01)
        counts.reaches("often", 5, 60, number * 0.01)
        assert len(counts) <= 10
    assert counts.reaches("often", 5, 60, 2.0)
    assert counts.forgotten == 91


def test_times_are_bounded_also_for_few_keys():
    counts = SlidingCounts(max_keys=100, max_times=30)
    for number in range(1000):
        counts.reaches(number % 7, 20, 1e9, number)
        assert counts._held == sum(len(times) for times in counts._times.values())
        assert counts._held <= 30
    assert counts.forgotten


def test_one_key_is_never_forgotten_while_it_is_counted():
    counts = SlidingCounts(max_keys=1, max_times=2)
    assert [counts.reaches("a", 5, 60, now) for now in range(6)] == [False] * 4 + [True] * 2
    assert counts.forgotten == 0
