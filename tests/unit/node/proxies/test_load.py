"""How many processes a load wants."""

import os

import pytest

from sidestep.node.proxies.load import GROW, SHRINK, Load
from sidestep.node.proxies.processor_time import ProcessorUse, processor_seconds


def seconds(load, used, elapsed=1.0, *, most=1000):
    """After how many seconds of this use another number is wanted; None if it never is."""
    for turn in range(most):
        if load.observe(used, elapsed):
            return (turn + 1) * elapsed
    return None


def test_one_more_serves_after_two_busy_seconds_and_one_fewer_after_a_calm_minute():
    load = Load(4)
    assert seconds(load, [0.9]) == GROW
    assert load.wanted == 2
    assert seconds(load, [0.2, 0.2]) == SHRINK
    assert load.wanted == 1
    assert seconds(load, [0.2]) is None


@pytest.mark.parametrize("used", [[0.0], [0.79]])
def test_one_that_is_not_busy_stays_alone(used):
    assert seconds(Load(4), used) is None


def test_the_work_of_a_busy_one_is_enough_for_two():
    load = Load(4)
    seconds(load, [1.0])
    assert seconds(load, [0.5, 0.5]) is None  # what one did: no reason to take the other away


def test_one_busy_connection_is_no_reason_for_a_third():
    load = Load(4)
    seconds(load, [1.0])
    assert seconds(load, [1.0, 0.1]) is None
    assert seconds(load, [1.0, 0.9]) == GROW
    assert load.wanted == 3


def test_a_moment_counts_from_anew():
    load = Load(4)
    for _ in range(20):
        assert not load.observe([0.9], 1.5)
        assert not load.observe([0.5], 0.5)
    seconds(load, [0.9])
    for _ in range(20):
        assert not load.observe([0.1, 0.1], SHRINK - 1)
        assert not load.observe([0.9, 0.1], 0.5)


def test_nothing_is_concluded_while_others_serve_than_are_wanted():
    load = Load(4)
    seconds(load, [1.0])
    assert seconds(load, [1.0]) is None  # the second one has not started yet
    assert seconds(load, []) is None
    assert seconds(load, [1.0, 1.0]) == GROW


def test_there_are_never_more_than_there_may_be():
    load = Load(2)
    assert seconds(load, [1.0]) == GROW
    assert seconds(load, [1.0, 1.0]) is None
    load.limit(1)
    assert load.wanted == 1
    load.limit(3)
    assert load.wanted == 1
    assert seconds(load, [0.1]) is None
    assert seconds(load, [1.0]) == GROW


def test_those_that_leave_are_among_those_that_there_may_be():
    load = Load(2)
    for _ in range(10):
        assert not load.observe([1.0], 1.0, leaving=1)
    assert load.observe([1.0], 1.0)


def test_what_a_process_uses():
    use = ProcessorUse()
    mine = os.getpid()
    assert use.since_last((mine, 2**22 + 1)) == [0.0]  # what it used before does not count; the other is none
    before = processor_seconds(mine)
    while processor_seconds(mine) - before < 0.05:
        pass
    [used] = use.since_last((mine,))
    assert 0.0 < used < 1.5
    assert processor_seconds(2**22 + 1) is None
