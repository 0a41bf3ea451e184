"""What waits is done in order, is counted, and can be given up."""

import pytest

from sidestep.engine.mirror.deferred import CALL, FULL, Deferred


def test_calls_are_made_in_order_some_at_a_time():
    deferred, done = Deferred(), []
    for number in range(5):
        deferred.put(10, done.append, number)
    assert deferred.size == 5 * (CALL + 10)
    deferred.run(2)
    assert done == [0, 1]
    assert deferred.size == 3 * (CALL + 10)
    deferred.run()
    assert done == [0, 1, 2, 3, 4]
    assert (deferred.size, len(deferred.calls)) == (0, 0)


def test_what_a_call_defers_follows():
    deferred, done = Deferred(), []
    deferred.put(0, deferred.put, 0, done.append, "second")
    deferred.put(0, done.append, "first")
    deferred.run()
    assert done == ["first", "second"]


def test_nothing_is_done_once_it_is_closed():
    deferred, done = Deferred(), []
    deferred.put(5, done.append, 1)
    deferred.close()
    deferred.put(5, done.append, 2)
    deferred.run()
    assert not done
    assert (deferred.size, len(deferred.calls)) == (0, 0)


def test_what_waits_is_bounded():
    deferred, done = Deferred(), []
    for number in range(10_000):
        deferred.put(1, done.append, number)
        assert deferred.size <= FULL + CALL + 1
    deferred.run()
    assert done == list(range(10_000))


def test_a_bug_met_in_the_middle_of_serving_a_client_is_raised_by_the_next_run():
    deferred, done = Deferred(), []
    deferred.put(0, done.append, 1)
    deferred.put(0, int, "a bug")
    deferred.put(0, done.append, 2)
    deferred.catch_up()
    deferred.put(0, done.append, 3)
    with pytest.raises(ValueError, match="a bug"):
        deferred.run()
    assert done == [1]
    assert not deferred.calls
