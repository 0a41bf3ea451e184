"""ClientHellos that are kept: within their bound, each until it is taken or given up."""

from __future__ import annotations

from sidestep.proxy.connection.kept_hellos import KeptHellos


def test_one_is_taken_once():
    hellos = KeptHellos()
    kept = hellos.keep(b"abc")
    assert hellos.size == 3
    assert (kept.take(), kept.take()) == (b"abc", b"")
    assert hellos.size == 0


def test_the_oldest_are_given_up_for_new_ones():
    hellos = KeptHellos(bound=100)
    kept = [hellos.keep(bytes([number]) * 30) for number in range(1, 6)]
    assert hellos.size == 90
    assert [each.take()[:1] for each in kept] == [b"", b"", b"\x03", b"\x04", b"\x05"]
    assert hellos.size == 0


def test_what_was_taken_makes_room():
    hellos = KeptHellos(bound=100)
    first, second = hellos.keep(b"a" * 40), hellos.keep(b"b" * 40)
    second.take()
    third = hellos.keep(b"c" * 60)
    assert (first.take(), third.take()) == (b"a" * 40, b"c" * 60)


def test_none_and_large_ones_are_not_kept():
    hellos = KeptHellos(bound=100, largest=50)
    assert hellos.keep(b"") is None
    assert hellos.keep(b"a" * 51) is None
    assert hellos.size == 0


def test_a_thousand_clients_that_pad_stay_within_the_bound():
    hellos = KeptHellos()
    for _ in range(1000):
        assert hellos.keep(bytes(1 << 13)) is not None
        assert hellos.size <= 1 << 20
