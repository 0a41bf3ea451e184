"""What a proxy says that it cannot do, and for how long it is believed."""

import errno

from sidestep.model.pod import Family
from sidestep.node.planning.readiness import ALL_PORTS, CALM, FIRST_PAUSE, LAST_PAUSE, Readiness
from sidestep.snapshots.hindrance import Hindrance

FULL = Hindrance("no-room")
DEAF = Hindrance("cannot-accept", 80, 0, errno.EINVAL)
MUTE = Hindrance("cannot-dial", 80, int(Family.IPV4), errno.ETIMEDOUT)


def test_a_hindrance_is_about_what_it_names():
    readiness = Readiness()
    readiness.told((MUTE,), 0.0)
    text = "the app cannot be reached from inside the pod over IPv4 (Connection timed out)"
    assert readiness.reason(80, Family.IPV4, 0.0) == text
    assert readiness.reason(80, Family.IPV6, 0.0) == readiness.reason(81, Family.IPV4, 0.0) == ""
    readiness.told((DEAF,), 0.0)
    assert "cannot accept connections (Invalid argument)" in readiness.reason(80, Family.IPV6, 0.0)
    assert readiness.is_hindered(80)
    assert not readiness.is_hindered(81)
    readiness.told((FULL,), 0.0)
    assert "no room" in readiness.reason(81, Family.IPV6, 0.0)


def test_it_ends_a_pause_after_it_was_taken_back():
    readiness = Readiness()
    readiness.told((FULL,), 0.0)
    assert readiness.reason(80, Family.IPV4, 1000.0)
    readiness.told((), 1000.0)
    assert not readiness.is_hindered(80)
    assert readiness.reason(80, Family.IPV4, 1000.0 + FIRST_PAUSE - 0.1)
    assert not readiness.reason(80, Family.IPV4, 1000.0 + FIRST_PAUSE)


def test_a_process_that_is_gone_takes_back_what_it_told():
    readiness = Readiness()
    readiness.told((FULL,), 0.0)
    readiness.process_gone(1.0)
    assert not readiness.is_hindered(80)
    assert not readiness.reason(80, Family.IPV4, 1.0 + FIRST_PAUSE)


def test_the_pause_doubles_while_it_comes_back_and_is_forgotten():
    readiness, now, pauses = Readiness(), 0.0, []
    for _ in range(7):
        readiness.told((FULL,), now)
        readiness.told((), now)
        began = now
        while readiness.reason(80, Family.IPV4, now):
            now += 0.5
        pauses.append(now - began)
    assert pauses == [2, 4, 8, 16, 32, 60, 60]
    assert pauses[0] == FIRST_PAUSE
    assert pauses[-1] == LAST_PAUSE
    now += CALM + 1
    readiness.told((FULL,), now)
    readiness.told((), now)
    assert not readiness.reason(80, Family.IPV4, now + FIRST_PAUSE)


def test_it_is_watched_until_the_end_of_the_pause_was_noticed():
    readiness = Readiness()
    assert not readiness.is_watched(0.0)
    readiness.told((FULL, MUTE, DEAF), 0.0)
    assert not readiness.is_watched(0.0)
    readiness.told((), 0.0)
    assert readiness.is_watched(FIRST_PAUSE - 0.1)
    assert readiness.is_watched(FIRST_PAUSE)
    assert not readiness.is_watched(FIRST_PAUSE)


def test_what_is_over_is_forgotten():
    readiness = Readiness()
    readiness.told((FULL, MUTE, DEAF), 0.0)
    readiness.told((), 0.0)
    readiness.told((), FIRST_PAUSE + CALM + 1)
    assert readiness._courses == {}


def test_what_is_about_all_ports_can_be_told_from_what_is_about_one():
    readiness = Readiness()
    readiness.told((DEAF, MUTE), 0.0)
    assert readiness.reason(ALL_PORTS, Family.IPV4, 0.0) == ""
    readiness.told((DEAF, FULL), 0.0)
    assert readiness.reason(ALL_PORTS, Family.IPV4, 0.0) == "the pod proxy has no room for more connections"
