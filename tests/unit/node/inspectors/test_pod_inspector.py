"""How long verdicts took, from counters of ranges."""

import pytest

from sidestep.node.inspectors.pod_inspector import verdict_times


@pytest.mark.parametrize(
    ("counters", "expected"),
    [
        ({}, {"judged": 0, "p50": 0, "p99": 0}),
        ({"4ms": 1}, {"judged": 1, "p50": 4, "p99": 4}),
        ({"1ms": 50, "2ms": 49, "64ms": 1}, {"judged": 100, "p50": 1, "p99": 2}),
        ({"16ms": 2, "2ms": 1}, {"judged": 3, "p50": 16, "p99": 16}),
        ({"2ms": 90, "longer": 10}, {"judged": 100, "p50": 2, "p99": 0}),
        ({"nonsense": 7, "2ms": 1}, {"judged": 1, "p50": 2, "p99": 2}),
    ],
)
def test_times_of_verdicts(counters, expected):
    assert verdict_times(counters) == expected
