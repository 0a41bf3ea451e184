"""What connections hold together, and what each of them may."""

from sidestep.engine.memory_budget import (
    BACKLOG,
    COPIES,
    DATAGRAMS,
    DIVERTED,
    TOTAL,
    Account,
    Budget,
    Share,
    high_water,
)


def test_the_parts_make_up_the_total():
    assert DIVERTED + COPIES + DATAGRAMS == TOTAL
    assert Budget().total == DIVERTED


def test_one_alone_gets_half_and_equal_ones_equal_shares():
    budget = Budget(1000)
    one = Account(budget)
    one.change(500)
    assert not one.is_over
    one.change(1)
    assert one.is_over
    one.change(-1)
    accounts = [one, Account(budget), Account(budget)]
    for account in accounts:
        account.change(250 - account.held)
    assert (budget.held, budget.free) == (750, 250)
    assert not any(account.is_over for account in accounts)
    accounts[0].change(1)
    assert accounts[0].is_over


def test_more_than_half_of_a_share_is_tight():
    account = Account(Budget(900))
    account.change(300)
    assert not account.is_tight
    account.change(1)
    assert account.is_tight
    assert not account.is_over


def test_an_account_that_is_dropped_gives_back_what_it_held():
    budget = Budget(1000)
    account = Account(budget)
    account.change(700)
    assert budget.free == 300
    del account
    assert budget.held == 0


def test_a_share_that_is_dropped_gives_back_what_it_held():
    account = Account(Budget(1000))
    share = Share(account)
    share.set(300)
    share.set(100)
    assert account.held == account.budget.held == 100
    del share
    assert account.held == account.budget.held == 0


def test_the_high_water_mark_falls_with_what_is_free_and_is_never_negative():
    backlog = Budget(BACKLOG)
    empty = high_water(backlog)
    backlog.held = BACKLOG // 2
    assert high_water(backlog) == empty // 2
    backlog.held = BACKLOG + 1
    assert high_water(backlog) == 0
