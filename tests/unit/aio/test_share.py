"""How much of the loop's time one peer may cost."""

from sidestep.aio.share import Share, ShareLimits

LIMITS = ShareLimits(burst=0.5, share=0.2, patience=5.0)


def test_a_burst_is_free_and_what_follows_must_be_waited_for():
    share = Share(LIMITS, now=0.0)
    share.spend(0.4, 0.0)
    assert share.wait() == 0.0
    share.spend(0.3, 0.0)
    assert round(share.wait(), 6) == 1.0
    share.spend(0.0, 2.0)
    assert share.wait() == 0.0


def test_the_balance_grows_to_one_burst_only():
    share = Share(LIMITS, now=0.0)
    share.spend(0.6, 1000.0)
    assert round(share.wait(), 6) == 0.5


def test_who_takes_all_there_is_for_too_long_is_exhausted():
    share, now = Share(LIMITS, now=0.0), 0.0
    while not share.is_exhausted(now):
        share.spend(0.1, now)
        now += share.wait() + 0.01
        assert now < 20.0
    assert now > LIMITS.patience


def test_one_of_several_is_slowed_to_its_part_and_not_taken_for_hostile_until_it_is_alone():
    share, now = Share(LIMITS, now=0.0), 0.0
    share.divide(4)
    used = 0.0
    while now < 100.0:
        share.spend(0.1, now)
        used += 0.1
        now += share.wait() + 0.01
        assert not share.is_exhausted(now)
    assert used <= LIMITS.burst + now * LIMITS.share / 4 + 0.2
    share.divide(1)
    alone = now
    while not share.is_exhausted(now):
        share.spend(0.1, now)
        now += share.wait() + 0.01
        assert now < alone + 20.0
    assert now > alone + LIMITS.patience
    assert share.wait() <= 0.1 / LIMITS.share + 1e-9


def test_who_is_heavy_now_and_then_is_not():
    share, now = Share(LIMITS, now=0.0), 0.0
    for _ in range(100):
        share.spend(0.6, now)
        now += share.wait() + 3.0
        share.spend(0.0, now)
        assert not share.is_exhausted(now)
