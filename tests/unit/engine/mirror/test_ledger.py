"""Room for copies: per copy, per wiretap, per process."""

from sidestep.engine.mirror.ledger import Ledger, TapLimits

LIMITS = TapLimits(copy=100, tap=150, together=350, copies=2, process=3)


class Held:
    """Bytes that wait; the shell takes them without a report."""

    def __init__(self, queued: int = 0) -> None:
        self.queued = queued


def enter(ledger: Ledger, uid: str, size: int) -> Held:
    assert ledger.admits(uid, size)
    holder = Held(size)
    ledger.enter(uid, holder)
    return holder


def test_a_copy_of_one_wiretap_takes_no_room_from_another():
    ledger = Ledger(LIMITS)
    enter(ledger, "a", 100)
    assert not ledger.admits("a", 60)
    enter(ledger, "b", 100)
    assert not ledger.admits("c", 100)  # all of them together leave no more than half of what is free
    assert ledger.admits("c", 50)


def test_numbers_of_copies_are_bounded():
    ledger = Ledger(LIMITS)
    first = enter(ledger, "a", 1)
    enter(ledger, "a", 1)
    assert not ledger.admits("a", 1)
    enter(ledger, "b", 1)
    assert not ledger.admits("c", 1)
    ledger.leave("a", first)
    ledger.leave("a", first)
    assert ledger.count == 2
    assert ledger.admits("c", 1)


def test_what_was_written_leaves_room():
    ledger = Ledger(LIMITS)
    holder = enter(ledger, "a", 100)
    assert not ledger.has_room("a", holder, 1)
    holder.queued = 0
    assert ledger.has_room("a", holder, 100)


def test_no_room_holds_the_wiretap_back_until_a_copy_leaves():
    ledger = Ledger(LIMITS)
    holder = enter(ledger, "a", 100)
    assert not ledger.admits("a", 100)
    assert ledger.gate.holds
    ledger.leave("a", holder)
    assert not ledger.gate.holds


def test_copies_are_cut_while_the_budget_is_overdrawn():
    ledger = Ledger(LIMITS)
    holder = enter(ledger, "a", 1)
    ledger.gate.spend(1.0, 0.0)
    assert not ledger.has_room("a", holder, 1)
