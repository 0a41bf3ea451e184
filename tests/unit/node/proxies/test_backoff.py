"""When a crashed process is started again."""

from __future__ import annotations

import pytest

from sidestep.node.proxies.backoff import Backoff, CrashHistory


def test_the_pause_doubles_and_the_fifth_crash_is_a_loop():
    history = CrashHistory()
    verdicts = [history.crashed(now) for now in (0.0, 1.0, 2.0, 3.0, 4.0)]
    assert [verdict.pause for verdict in verdicts] == pytest.approx([0.01, 0.02, 0.04, 0.08, 30.0])
    assert [verdict.looping for verdict in verdicts] == [False] * 4 + [True]


def test_the_pause_has_a_ceiling():
    history = CrashHistory(Backoff(first=1.0, longest=5.0, crashes=100))
    assert [history.crashed(float(now)).pause for now in range(5)] == [1, 2, 4, 5, 5]


def test_crashes_far_apart_are_accidents():
    history = CrashHistory()
    assert {history.crashed(now * 31.0).pause for now in range(20)} == {0.01}


def test_a_loop_is_remembered_until_a_life_was_long():
    history = CrashHistory()
    for now in range(5):
        history.crashed(float(now))
    assert history.crashed(100.0, lived=29.0).looping
    assert history.crashed(200.0, lived=0.0).looping
    verdict = history.crashed(300.0, lived=31.0)
    assert (verdict.looping, verdict.pause) == (False, 0.01)
