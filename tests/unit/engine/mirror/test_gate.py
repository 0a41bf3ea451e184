"""Which copies are made: breakers of handlers, the budget of time, and what is told of copies that were held back."""

from __future__ import annotations

import pytest

from sidestep.engine.mirror.breaker import Breaker, BreakerLimits, State
from sidestep.engine.mirror.budget import BudgetLimits, CopyBudget
from sidestep.engine.mirror.gate import TALLIES, Loss, TapGate, Why
from sidestep.policy.route import Rule

LIMITS = BreakerLimits(failures=3, first_pause=1.0, last_pause=8.0, jitter=0.0, trial=2.0, probe=20.0)
A, B = (Rule(uid, f"shop/{uid}", lambda *_: True) for uid in ("a", "b"))


@pytest.fixture
def gate():
    return TapGate(0.0, breakers=LIMITS)


def fail(gate, uid="a", times=3, now=0.0):
    for _ in range(times):
        gate.failed(uid, now)


# --- breaker ----------------------------------------------------------------------------------------------------------


def test_pauses_grow_while_probes_fail_and_are_short_again_after_a_success():
    breaker = Breaker(LIMITS)
    now, pauses = 100.0, []
    for _ in range(3):
        breaker.failed(now)
    for _ in range(6):
        assert breaker.state is State.OPEN
        pauses.append(breaker.due - now)
        now = breaker.due
        breaker.expire(now)
        assert breaker.wants_probe
        breaker.probe(now)
        assert not breaker.wants_probe
        breaker.failed(now)
    assert pauses == [1, 2, 4, 8, 8, 8]
    breaker.expire(breaker.due)
    breaker.probe(now)
    breaker.succeeded()
    assert breaker.state is State.CLOSED
    for _ in range(3):
        breaker.failed(now)
    assert breaker.due - now == 1


def test_only_failures_in_a_row_open():
    breaker = Breaker(LIMITS)
    for _ in range(10):
        breaker.failed(0.0)
        breaker.failed(0.0)
        breaker.succeeded()
    assert breaker.state is State.CLOSED


def test_what_began_before_says_nothing_about_the_pause():
    breaker = Breaker(LIMITS)
    for _ in range(50):
        breaker.failed(0.0)
    breaker.succeeded()
    assert breaker.state is State.OPEN
    assert breaker.due == 1.0


@pytest.mark.parametrize(("opens", "state"), [(True, State.CLOSED), (False, State.OPEN)])
def test_a_probe_without_an_answer_succeeds_if_it_lasts_and_fails_if_it_is_never_opened(opens, state):
    breaker = Breaker(LIMITS)
    for _ in range(3):
        breaker.failed(0.0)
    breaker.expire(1.0)
    breaker.probe(1.0)
    if opens:
        breaker.opened(2.0)
        assert breaker.due == 4.0
    else:
        assert breaker.due == 21.0
    breaker.expire(breaker.due)
    assert breaker.state is state


def test_pauses_differ():
    pauses = set()
    for _ in range(20):
        breaker = Breaker(BreakerLimits(failures=1, first_pause=1.0, jitter=0.25))
        breaker.failed(0.0)
        pauses.add(breaker.due)
    assert len(pauses) > 10
    assert all(0.75 <= pause <= 1.25 for pause in pauses)


# --- budget -----------------------------------------------------------------------------------------------------------


def test_over_a_long_time_copies_take_their_share_and_no_more():
    limits = BudgetLimits(share=0.1, burst=0.2, resume=0.005, debt=0.1)
    budget = CopyBudget(limits, 0.0)
    now = taken = 0.0
    while now < 100.0:
        now += 0.001
        budget.spend(0.0, now)
        if not budget.is_spent:
            budget.spend(0.003, now)
            taken += 0.003
    assert 9.5 < taken < 10.5


def test_a_spent_budget_says_when_copies_are_made_again():
    budget = CopyBudget(BudgetLimits(share=0.1, burst=0.2, resume=0.01, debt=0.1), 0.0)
    assert budget.due is None
    budget.spend(0.25, 0.0)
    assert budget.is_spent
    assert not budget.is_overdrawn
    assert budget.due == pytest.approx(0.6)
    budget.spend(0.0, 0.59)
    assert budget.is_spent
    budget.spend(0.0, budget.due + 1e-6)
    assert not budget.is_spent


def test_a_debt_is_bounded():
    budget = CopyBudget(BudgetLimits(share=0.1, burst=0.2, resume=0.01, debt=0.1), 0.0)
    budget.spend(1000.0, 0.0)
    assert budget.is_overdrawn
    assert budget.due < 3.0


# --- gate -------------------------------------------------------------------------------------------------------------


def test_while_all_is_well_everybody_gets_copies_and_nothing_is_counted(gate):
    assert not gate.holds
    assert gate.choose(80, (A, B)) == (A, B)
    assert gate.take_losses() == {}


def test_a_dead_handler_gets_one_copy_after_each_pause_and_the_others_all(gate):
    fail(gate)
    assert [gate.choose(80, (A, B)) for _ in range(5)] == [(B,)] * 5
    gate.expire(gate.due)
    assert gate.choose(80, (A, B)) == (A, B)
    assert gate.still(80, A)
    assert gate.choose(80, (A, B)) == (B,)
    gate.succeeded("a", 1.0)
    assert gate.choose(80, (A, B)) == (A, B)
    assert not gate.holds
    assert gate.take_losses() == {Loss(80, "a", Why.HANDLER): 6}
    assert gate.take_losses() == {}


def test_a_tally_holds_until_something_changes(gate):
    fail(gate)
    tally = gate.tally(80, (A,))
    assert tally is gate.tally(80, (A,))
    assert gate.tally(80, (A, B)) is None
    tally.count += 7
    assert tally.version == gate.version
    gate.expire(gate.due)
    assert tally.version != gate.version
    assert gate.take_losses() == {Loss(80, "a", Why.HANDLER): 7}


def test_losses_are_told_while_nothing_changes(gate):
    fail(gate)
    for _ in range(3):
        assert gate.choose(80, (A,)) == ()
    assert gate.take_losses() == {Loss(80, "a", Why.HANDLER): 3}
    assert gate.choose(80, (A,)) == ()
    assert gate.take_losses() == {Loss(80, "a", Why.HANDLER): 1}


def test_a_spent_budget_holds_back_all_and_an_overdrawn_one_cuts(gate):
    gate.spend(0.25, 0.0)
    assert gate.choose(80, (A, B)) == ()
    assert not gate.still(80, A)
    assert not gate.cuts
    gate.spend(0.1, 0.0)
    assert gate.cuts
    gate.expire(gate.due + 1e-6)
    assert not gate.cuts
    assert gate.choose(80, (A, B)) == (A, B)
    assert gate.take_losses() == {Loss(80, "a", Why.BUDGET): 2, Loss(80, "b", Why.BUDGET): 1}


def test_a_wiretap_without_room_waits_for_the_end_of_a_copy_or_for_a_moment(gate):
    gate.fill("a")
    assert gate.choose(80, (A, B)) == (B,)
    gate.empty("a")
    assert gate.choose(80, (A, B)) == (A, B)
    gate.fill("a")
    gate.expire(gate.due)
    assert gate.choose(80, (A, B)) == (A, B)


def test_a_wiretap_that_comes_back_begins_anew(gate):
    fail(gate)
    gate.fill("b")
    gate.keep({"b"})
    assert gate.choose(80, (A, B)) == (A,)
    gate.keep({"a"})
    assert not gate.holds


def test_datagrams_of_a_flow_that_stands_are_held_back_by_the_budget_only(gate):
    fail(gate)
    assert gate.takes(53, "a", begun=True)
    assert not gate.takes(53, "a", begun=False)
    gate.expire(gate.due)
    assert gate.takes(53, "a", begun=False)
    assert not gate.takes(53, "a", begun=False)
    gate.spend(1.0, 1.0)
    assert not gate.takes(53, "b", begun=True)


def test_tallies_are_bounded(gate):
    gate.spend(1.0, 0.0)
    for number in range(3 * TALLIES):
        assert gate.choose(number, (A,)) == ()
    assert len(gate._tallies) <= TALLIES
    assert sum(gate.take_losses().values()) == 3 * TALLIES
