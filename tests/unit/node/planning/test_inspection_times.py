"""For how long ports with policies are not inspected, and why."""

import pytest

from sidestep.node.planning.inspection_times import (
    NO_DAEMON,
    NOT_PROGRAMMED,
    REASONS,
    InspectionTimes,
    Outcome,
    Uninspected,
    uninspected_of,
)
from sidestep.node.planning.port_state import Unsteered

OVERLOADED = Uninspected(Outcome.CLOSED, "overloaded")
NO_PROXY = Uninspected(Outcome.OPEN, "no-proxy")


def test_a_port_counts_as_open_until_it_is_programmed():
    times = InspectionTimes()
    times.want({80, 443}, 10.0)
    assert times.totals(12.0) == {NOT_PROGRAMMED: 4.0}
    times.stand(80, None, 13.0)
    assert times.totals(13.0) == {NOT_PROGRAMMED: 6.0}
    assert times.totals(14.0) == {NOT_PROGRAMMED: 7.0}


def test_seconds_are_added_up_by_outcome_and_reason():
    times = InspectionTimes()
    times.want({80}, 0.0)
    for now, each in (
        (1.0, None),
        (5.0, OVERLOADED),
        (7.0, OVERLOADED),
        (8.0, NO_PROXY),
        (10.0, None),
        (20.0, OVERLOADED),
    ):
        times.stand(80, each, now)
    assert times.closed() == (80,)
    assert times.totals(21.0) == {NOT_PROGRAMMED: 1.0, OVERLOADED: 4.0, NO_PROXY: 2.0}
    times.detached(21.0)
    assert times.closed() == ()
    assert times.totals(22.0) == {NOT_PROGRAMMED: 2.0, OVERLOADED: 4.0, NO_PROXY: 2.0}


def test_ports_without_policies_do_not_count_and_what_was_counted_stays():
    times = InspectionTimes()
    times.stand(80, OVERLOADED, 0.0)
    times.want({443}, 1.0)
    times.stand(80, OVERLOADED, 2.0)
    times.want((), 3.0)
    times.stand(443, OVERLOADED, 4.0)
    assert times.totals(9.0) == {NOT_PROGRAMMED: 2.0}
    assert times.closed() == ()


@pytest.mark.parametrize("reason", Unsteered)
@pytest.mark.parametrize("closes", [True, False])
def test_a_port_is_uninspected_for_every_reason_but_those_for_which_nobody_could_reach_an_app(reason, closes):
    found = uninspected_of({None, reason}, closes=closes)
    if reason in (Unsteered.LEAVING, Unsteered.NO_APP):
        assert found is None
    else:
        assert found == Uninspected(Outcome.CLOSED if closes else Outcome.OPEN, REASONS[reason])
    assert uninspected_of({None}, closes=closes) is None


def test_the_time_without_a_daemon_counts_as_open_for_each_port():
    times = InspectionTimes()
    times.want({80, 443}, 10.0)
    times.missed(2, 30.0)
    times.missed(1, 5.0)
    times.stand(80, None, 10.0)
    times.stand(443, None, 10.0)
    assert times.totals(20.0) == {NO_DAEMON: 65.0, NOT_PROGRAMMED: 0.0}
    assert times.wanted == (80, 443)
