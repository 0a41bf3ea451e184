"""The overload valve by itself."""

from sidestep.node.planning.valve import FIRST_PAUSE, LAST_PAUSE, PATIENCE, Valve


def after(valve, *looks):
    for now, length in looks:
        valve.look(length=length, limit=10, now=now)
    return valve.shut


def test_half_full_is_not_crowded():
    valve = Valve()
    assert not after(valve, (0, 5), (PATIENCE, 5), (9, 5))
    assert not valve.watching


def test_it_shuts_when_the_queue_stays_crowded():
    valve = Valve()
    assert not after(valve, (0, 6), (0.5, 10))
    assert valve.watching
    assert after(valve, (PATIENCE, 6))


def test_a_moment_without_a_crowd_begins_anew():
    assert not after(Valve(), (0, 6), (0.5, 0), (1.0, 6), (1.5, 6))


def test_it_opens_after_the_pause_and_not_while_crowded():
    valve = Valve()
    assert after(valve, (0, 9), (1, 9), (1 + FIRST_PAUSE - 0.1, 0))
    assert after(valve, (1 + FIRST_PAUSE, 9))
    assert not after(valve, (1 + FIRST_PAUSE + 1, 5))


def test_the_pause_doubles_and_is_forgotten():
    valve, now, pauses = Valve(), 100.0, []
    for _ in range(8):
        after(valve, (now, 9), (now + 1, 9))
        shut = now = now + 1
        while valve.shut:
            now += 0.5
            valve.look(length=0, limit=10, now=now)
        pauses.append(now - shut)
    assert pauses == [2, 4, 8, 16, 32, 60, 60, 60]
    now += LAST_PAUSE + 1
    after(valve, (now, 9), (now + 1, 9))
    assert not after(valve, (now + 1 + FIRST_PAUSE, 0))
