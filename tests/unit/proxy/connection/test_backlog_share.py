"""Which legs are held up because too much waits in all connections together."""

import pytest

from sidestep.engine.leg import HIGH_WATER, Leg, Role
from sidestep.engine.memory_budget import Budget, high_water
from sidestep.engine.passthrough import WireRelay
from sidestep.proxy.connection.backlog import BacklogShare

TIGHT = 1 << 20


def relay_with(handlers=1):
    relay = WireRelay()
    relay.legs += [Leg(Role.HANDLER) for _ in range(handlers)]
    return relay


def test_a_share_counts_only_what_has_changed():
    budget = Budget(1000)
    one, other = BacklogShare(budget), BacklogShare(budget)
    one.set(300)
    other.set(200)
    one.set(100)
    assert budget.held == 300
    one.set(0)
    other.set(0)
    assert budget.held == 0


def test_while_there_is_room_the_bound_of_the_relay_holds():
    budget = Budget(1 << 40)
    share = BacklogShare(budget)
    share.set(1)
    assert high_water(budget) >= HIGH_WATER
    relay = relay_with()
    relay.client.queued = relay.app.queued = HIGH_WATER
    assert not any(share.holds_up(relay, leg, "http/1.1") for leg in relay.legs)


@pytest.mark.parametrize(
    ("read", "slow", "protocol", "held_up"),
    [
        ("client", "app", "http/1.1", True),
        ("client", "handler", "http/1.1", True),
        ("client", "client", "http/1.1", False),
        ("app", "client", "http/1.1", True),
        ("app", "app", "http/1.1", False),
        ("handler", "client", "http/1.1", True),
        ("handler", "handler", "http/1.1", False),
        ("client", "app", "h2", True),
        ("client", "handler", "h2", False),
        ("app", "client", "h2", True),
    ],
)
def test_a_leg_is_held_up_by_those_who_get_its_bytes(read, slow, protocol, held_up):
    budget = Budget(TIGHT)
    share = BacklogShare(budget)
    share.set(1)
    relay = relay_with()
    legs = {"client": relay.client, "app": relay.app, "handler": relay.legs[-1]}
    assert not share.holds_up(relay, legs[read], protocol)
    legs[slow].queued = high_water(budget) + 1
    assert share.holds_up(relay, legs[read], protocol) is held_up
