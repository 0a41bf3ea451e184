"""Events that wait are consumed in order, bounded, and can be given up; what finds no room is counted in a gap."""

import pytest

from sidestep.engine.mirror.events import Gap
from sidestep.engine.mirror.queue import EVENT, FULL, EventQueue


def recorded(**options):
    done = []
    return EventQueue(done.append, **options), done


def test_events_are_consumed_in_order_some_at_a_time():
    queue, done = recorded()
    for number in range(5):
        queue.put(number, 10)
    assert queue.size == 5 * (EVENT + 10)
    queue.run(2)
    assert done == [0, 1]
    assert queue.size == 3 * (EVENT + 10)
    queue.run()
    assert done == [0, 1, 2, 3, 4]
    assert (queue.size, len(queue.events)) == (0, 0)


def test_what_is_queued_while_events_are_consumed_follows():
    done = []

    def consume(event):
        done.append(event)
        if event == "before":
            queue.put("second")

    queue = EventQueue(consume)
    queue.put("before")
    queue.put("first")
    queue.run()
    assert done == ["before", "first", "second"]


def test_nothing_is_consumed_once_it_is_closed():
    queue, done = recorded()
    queue.put(1, 5)
    queue.close()
    queue.put(2, 5)
    queue.run()
    assert not done
    assert (queue.size, len(queue.events)) == (0, 0)


def test_what_waits_is_bounded():
    queue, done = recorded()
    for number in range(10_000):
        assert queue.put(number, 1)
        assert queue.size <= FULL + EVENT + 1
    assert len(queue.events) <= FULL // EVENT + 1
    queue.run()
    assert done == list(range(10_000))


def test_a_flood_that_may_not_be_caught_up_with_overflows_into_a_counted_gap():
    allowed = []
    queue, done = recorded(may_catch_up=lambda: bool(allowed))
    taken = sum(queue.put(("event", number), 1000, number % 3) for number in range(1000))
    assert queue.size <= FULL + EVENT + 1000
    queue.run()
    gap = done[-1]
    assert [event for event in done if event != gap] == [("event", number) for number in range(taken)]
    assert gap == Gap(events=1000 - taken, size=1000 * (1000 - taken), exchanges={0, 1, 2})
    assert queue.put("after", 1, 1)
    allowed.append(True)
    for _ in range(200):
        assert queue.put("more", 1000, 1)
    queue.run()
    assert not [event for event in done[taken + 1 :] if isinstance(event, Gap)]


def test_a_gap_stands_where_its_events_would_have_stood():
    queue, done = recorded(may_catch_up=lambda: False)
    queue.put("first", FULL)
    assert not queue.put("lost", 7, 5)
    queue.run(1)
    assert queue.put("last")
    queue.run()
    assert done == ["first", Gap(events=1, size=7, exchanges={5}), "last"]


def test_a_bug_met_in_the_middle_of_serving_a_client_is_raised_by_the_next_run():
    done = []

    def consume(event):
        done.append(int(event))

    queue = EventQueue(consume)
    queue.put("1")
    queue.put("a bug")
    queue.put("2")
    queue.catch_up()
    queue.put("3")
    with pytest.raises(ValueError, match="a bug"):
        queue.run()
    assert done == [1]
    assert not queue.events
