"""Pauses grow, are spread, and begin anew after what lasted."""

from __future__ import annotations

from sidestep.laptop.retry import LASTING, Retry


def test_pauses_double_up_to_the_last_and_are_drawn_from_their_upper_half():
    drawn = []

    def lowest(low, high):
        drawn.append((low, high))
        return low

    retry = Retry(0.25, 1.0, uniform=lowest)
    assert [retry.pause() for _ in range(4)] == [0.125, 0.25, 0.5, 0.5]
    assert drawn == [(0.125, 0.25), (0.25, 0.5), (0.5, 1.0), (0.5, 1.0)]


def test_only_what_lasted_begins_anew():
    retry = Retry(1.0, 8.0, uniform=max)
    assert [retry.pause(), retry.pause()] == [1.0, 2.0]
    retry.succeeded(lived=LASTING - 1)
    assert retry.pause() == 4.0
    retry.succeeded(lived=LASTING)
    assert retry.pause() == 1.0


def test_two_hundred_that_fail_together_come_back_spread():
    retries = [Retry(0.25, 1.0) for _ in range(200)]
    for each in retries:
        each.pause()
        each.pause()
    pauses = sorted(each.pause() for each in retries)
    assert len(set(pauses)) > 190
    assert pauses[0] >= 0.5
    assert pauses[-1] <= 1.0
    assert pauses[-1] - pauses[0] > 0.4
