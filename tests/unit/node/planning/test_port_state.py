"""The one decision: whether a family of a port is steered."""

import pytest

from sidestep.model.pod import Family
from sidestep.node.planning.listener_backoff import CALM, FIRST_PAUSE, LAST_PAUSE, ListenerBackoff
from sidestep.node.planning.plan import PortPlan
from sidestep.node.planning.port_state import (
    REFUSED_CALM,
    REFUSED_PAUSE,
    REFUSED_PAUSE_MAX,
    Availability,
    PortState,
    Unsteered,
)
from sidestep.node.planning.valve import PATIENCE
from sidestep.snapshots.ports import PortSnapshot

READY = Availability("")
NOW = 100.0


@pytest.fixture
def port():
    snapshot = PortSnapshot(80, "tcp", "never", "never", ())
    return PortState(PortPlan(snapshot, needs_app=True, resets=frozenset()), served={Family.IPV4})


def shut(port):
    for now in (NOW - PATIENCE, NOW):
        port.valve.look(length=9, limit=9, now=now)


STATES = {
    "serving": (lambda port: None, READY, None),
    "leaving": (lambda port: setattr(port, "leaving", True), READY, Unsteered.LEAVING),
    "without a proxy": (lambda port: None, Availability("it is gone"), Unsteered.NO_PROXY),
    "with a dead listener": (lambda port: port.replacement.died(NOW), READY, Unsteered.LISTENER_DEAD),
    "overloaded": (shut, READY, Unsteered.OVERLOADED),
    "hindered": (lambda port: None, Availability("", {Family.IPV4: "no room"}), Unsteered.HINDERED),
    "hindered in another family": (lambda port: None, Availability("", {Family.IPV6: "no room"}), None),
    "without an app": (lambda port: port.served.clear(), READY, Unsteered.NO_APP),
    "refused a moment ago": (lambda port: (port.refuse(Family.IPV4, NOW), port.served.add(Family.IPV4)), READY,
                             Unsteered.REFUSED),
    "refused a while ago": (lambda port: (port.refuse(Family.IPV4, NOW - 60), port.served.add(Family.IPV4)), READY,
                            None),
}  # fmt: skip


@pytest.mark.parametrize("state", STATES)
def test_a_port_is_steered_while_nothing_speaks_against_it(port, state):
    come_about, proxy, reason = STATES[state]
    come_about(port)
    assert port.unsteered(Family.IPV4, proxy=proxy, now=NOW) is reason


def test_a_port_that_is_taken_whole_needs_no_app(port):
    port.plan = PortPlan(port.plan.snapshot, needs_app=False, resets=frozenset())
    port.served.clear()
    assert port.unsteered(Family.IPV6, proxy=READY, now=NOW) is None
    assert port.unsteered(Family.IPV6, proxy=Availability("gone"), now=NOW) is Unsteered.NO_PROXY


def test_an_app_that_starts_again_is_steered_at_once_however_often_it_did(port):
    for _ in range(9):
        port.refuse(Family.IPV4, NOW)
        assert port.unsteered(Family.IPV4, proxy=READY, now=NOW) is Unsteered.NO_APP
        port.found(set())
        port.found({Family.IPV4})
        assert port.unsteered(Family.IPV4, proxy=READY, now=NOW) is None


def test_an_app_that_listens_and_refuses_is_left_alone_for_longer_each_time(port):
    now, pauses = NOW, []
    for _ in range(9):
        port.refuse(Family.IPV4, now)
        port.found({Family.IPV4})
        pauses.append(port.refused_until[Family.IPV4] - now)
        now = port.refused_until[Family.IPV4]
        port.forget_refusals(now)
    assert pauses[:3] == pytest.approx([REFUSED_PAUSE, 2 * REFUSED_PAUSE, 4 * REFUSED_PAUSE])
    assert pauses[-1] == REFUSED_PAUSE_MAX
    port.refuse(Family.IPV4, now + REFUSED_CALM)
    assert port.refused_until[Family.IPV4] == now + REFUSED_CALM + REFUSED_PAUSE


def test_a_socket_that_dies_is_replaced_later_each_time():
    deaths, now, pauses = ListenerBackoff(), 0.0, []
    for _ in range(11):
        deaths.died(now)
        assert not deaths.is_due(now)
        pauses.append(deaths.renew_at - now)
        now = deaths.renew_at
        assert deaths.is_due(now)
        deaths.renewed()
    assert pauses[:3] == pytest.approx([FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE])
    assert pauses[-1] == LAST_PAUSE
    deaths.died(now + CALM + 1)
    assert deaths.renew_at == now + CALM + 1 + FIRST_PAUSE
