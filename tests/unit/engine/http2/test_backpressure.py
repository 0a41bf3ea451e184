"""A client is held up while a handler that holds much moves, and released when it does not."""

from __future__ import annotations

from msgspec.structs import replace

from sidestep.engine.http2.backpressure import Backpressure
from sidestep.engine.http2.exchange import Exchange
from sidestep.engine.memory_budget import Account, Budget
from sidestep.protocols.http2 import DEFAULT_LIMITS
from tests.unit.engine.http2.test_exchange import exchange

LIMITS = replace(DEFAULT_LIMITS, small=10, backpressure_ticks=2)


class Scene:
    def __init__(self) -> None:
        self.account = Account(Budget(100))
        self.backpressure = Backpressure(LIMITS, self.account)

    def hold(self, one: Exchange, size: int) -> None:
        self.account.change(size - one.body_size)
        one.body_size = size

    def grow(self, one: Exchange, size: int) -> None:
        self.hold(one, size)
        self.backpressure.body_grew(one)

    def shrink(self, one: Exchange, size: int) -> None:
        self.hold(one, size)
        self.backpressure.body_shrank(one)


def test_nothing_is_held_up_while_memory_is_free() -> None:
    scene = Scene()
    one = exchange()
    scene.grow(one, 20)
    scene.shrink(one, 19)
    assert not scene.backpressure
    scene.backpressure.tick()


def test_a_large_body_holds_up_where_memory_is_tight_until_it_is_small() -> None:
    scene = Scene()
    one = exchange()
    scene.grow(one, 60)
    assert scene.backpressure
    scene.shrink(one, 55)
    assert scene.backpressure
    scene.shrink(one, 10)
    assert not scene.backpressure


def test_it_ends_when_memory_is_not_tight_any_more() -> None:
    scene = Scene()
    one = exchange()
    scene.grow(one, 60)
    scene.shrink(one, 20)
    assert not scene.backpressure


def test_progress_keeps_it_up_and_standstill_ends_it() -> None:
    scene = Scene()
    one = exchange()
    scene.grow(one, 80)
    for size in (79, 78, 77):
        scene.shrink(one, size)
        scene.backpressure.tick()
        assert scene.backpressure
    scene.backpressure.tick()
    assert scene.backpressure
    scene.backpressure.tick()
    assert not scene.backpressure


def test_a_released_exchange_holds_up_again_only_after_it_was_below_the_mark() -> None:
    scene = Scene()
    one = exchange()
    scene.grow(one, 80)
    scene.backpressure.tick()
    scene.backpressure.tick()
    scene.grow(one, 85)
    assert not scene.backpressure
    scene.shrink(one, 5)
    scene.grow(one, 80)
    assert scene.backpressure
    scene.backpressure.release(one)
    assert not scene.backpressure
