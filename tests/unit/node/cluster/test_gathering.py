from sidestep.node.cluster.gathering import MOST, SHARE, Gathering


def test_after_a_quiet_time_changes_are_looked_at_soon_and_in_a_flood_at_a_rate():
    now, pauses = 100.0, []
    gathering = Gathering(least=0.05, rate=4, burst=5, now=now)
    while now < 110.0:  # a change is always waiting
        pauses.append(gathering.pause(now))
        now += pauses[-1]
    assert pauses[:5] == [0.05] * 5
    assert 5 + 4 * 9 <= len(pauses) <= 5 + 4 * 11
    assert max(pauses) <= 0.3
    assert gathering.pause(now + 10) == 0.05


def test_work_that_costs_much_is_done_less_often():
    gathering = Gathering(least=0.05, rate=100, burst=100, now=0.0)
    gathering.took(0.1)
    assert gathering.pause(0.0) == 0.1 * (1 / SHARE - 1)
    gathering.took(60.0)
    assert gathering.pause(0.0) == MOST
    gathering.took(0.0)
    assert gathering.pause(0.0) == 0.05
