"""Events are counted against a burst, and leak away with ticks."""

from __future__ import annotations

from sidestep.engine.http2.leaky_bucket import LeakyBucket


def test_more_than_the_burst_is_too_many() -> None:
    bucket = LeakyBucket(3, 2)
    assert [bucket.count() for _ in range(5)] == [False, False, False, True, True]


def test_ticks_are_wanted_above_a_quarter_and_empty_the_bucket() -> None:
    bucket = LeakyBucket(4, 2)
    bucket.count()
    assert not bucket.wants_time
    bucket.count()
    assert bucket.wants_time
    bucket.count()
    levels = []
    for _ in range(3):
        bucket.tick()
        levels.append(bucket.level)
    assert levels == [1, 0, 0]
    assert not bucket.wants_time
