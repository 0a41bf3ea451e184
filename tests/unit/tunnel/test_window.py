from hypothesis import given
from hypothesis import strategies as st

from sidestep.tunnel.window import ReceiveWindow, WindowPool


def test_less_than_half_a_window_is_not_worth_an_update():
    window = ReceiveWindow(WindowPool(0), initial=100, maximum=100)
    assert window.consumed(49) == 0
    assert window.consumed(1) == 50


def test_a_reader_that_keeps_up_earns_a_larger_window():
    pool = WindowPool(1000)
    window = ReceiveWindow(pool, initial=100, maximum=400)
    assert window.consumed(50) == 50 + 100
    assert window.size == 200
    assert window.consumed(100) == 100 + 200
    assert window.size == 400
    assert window.consumed(200) == 200
    assert pool.free == 700


def test_an_empty_pool_leaves_the_initial_window():
    window = ReceiveWindow(WindowPool(30), initial=100, maximum=400)
    assert window.consumed(50) == 80
    assert window.consumed(100) == 100
    assert window.size == 130


def test_release_returns_what_the_window_grew_by_once():
    pool = WindowPool(1000)
    window = ReceiveWindow(pool, initial=100, maximum=400)
    window.consumed(100)
    window.release()
    window.release()
    assert pool.free == 1000


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 200)), max_size=200))
def test_credit_never_exceeds_size_and_the_pool_is_conserved(steps):
    """Whatever is sent within its window and read in any order, no window holds more than its size."""
    pool = WindowPool(500)
    windows = [ReceiveWindow(pool, initial=100, maximum=300) for _ in range(5)]
    credit = [100] * 5
    for index, wanted in steps:
        sent = min(wanted, credit[index])
        credit[index] += windows[index].consumed(sent) - sent
        assert 0 <= credit[index] <= windows[index].size <= 300
        assert credit[index] > 0
        assert pool.free == 500 - sum(window.size - 100 for window in windows)
        assert pool.free >= 0
