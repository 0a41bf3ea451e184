"""The pause between two rounds of work, from what the last one cost."""

from __future__ import annotations

import pytest

from sidestep.node.planning.pace import SHARE, Pace


@pytest.mark.parametrize(
    ("cost", "pause"),
    [(0.0, 0.01), (0.001, 0.01), (0.05, 0.05 * (1 / SHARE - 1)), (10.0, 0.5)],
)
def test_the_pause_grows_with_the_cost_within_its_bounds(cost, pause):
    pace = Pace(least=0.01, most=0.5)
    assert pace.pause == 0.01
    pace.took(cost)
    assert pace.pause == pytest.approx(pause)


def test_work_takes_its_share_of_the_time():
    pace = Pace(least=0.0, most=60.0)
    pace.took(1.0)
    assert 1.0 / (1.0 + pace.pause) == pytest.approx(SHARE)
