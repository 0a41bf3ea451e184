"""Header blocks for an app that has missed others."""

from __future__ import annotations

import hpack
import pytest

from sidestep.engine.http2.to_app import ToApp, Updates
from sidestep.engine.leg import Ending, Leg, Role
from sidestep.protocols.hpack import INITIAL, NONE, Block, decode
from sidestep.protocols.http2 import END_HEADERS, END_STREAM, HEADER, HEADER_SIZE, WITH_PRIORITY

FIELDS = ((b":method", b"GET"), (b"x-long", b"l" * 20))


def block(updates: Updates = None) -> Block:
    return Block(FIELDS, NONE, updates, INITIAL)


def written(leg: Leg) -> bytes:
    data = b"".join(leg.out)
    leg.out.clear()
    leg.queued = 0
    return data


def test_nothing_is_written_to_an_app_that_is_ending() -> None:
    leg = Leg(Role.APP, is_open=True)
    to_app = ToApp(leg)
    to_app.write(b"")
    assert not leg.out
    to_app.write(b"bytes")
    assert written(leg) == b"bytes"
    leg.end(Ending.FINISH)
    to_app.write(b"more")
    to_app.write_block(1, block(), ends=True, priority=b"")
    assert written(leg) == b""


def test_a_block_is_written_with_its_priority_and_its_end() -> None:
    leg = Leg(Role.APP, is_open=True)
    ToApp(leg).write_block(5, block(), ends=True, priority=b"\x00\x00\x00\x03\x10")
    data = written(leg)
    high, low, _, flags, stream = HEADER.unpack_from(data)
    assert (flags, stream) == (END_HEADERS | END_STREAM | WITH_PRIORITY, 5)
    assert len(data) == HEADER_SIZE + (high << 8 | low)
    assert data[HEADER_SIZE:].startswith(b"\x00\x00\x00\x03\x10")
    assert tuple(hpack.Decoder().decode(data[HEADER_SIZE + 5 :], raw=True)) == FIELDS


@pytest.mark.parametrize(
    ("withheld", "own", "expected"),
    [
        ([], None, b""),
        ([None], None, b""),
        ([], (100, 100), b"\x3f\x45"),
        ([(100, 100)], None, b"\x3f\x45"),
        ([(100, 4096), None], None, b"\x3f\x45\x3f\xe1\x1f"),
        ([(100, 200)], (300, 400), b"\x3f\x45\x3f\xf1\x02"),
        ([(300, 300), (100, 200)], None, b"\x3f\x45\x3f\xa9\x01"),
    ],
)
def test_updates_of_withheld_blocks_begin_the_next_one(withheld: list[Updates], own: Updates, expected: bytes) -> None:
    leg = Leg(Role.APP, is_open=True)
    to_app = ToApp(leg)
    for updates in withheld:
        to_app.withhold(updates, before=INITIAL, after=INITIAL)
    to_app.write_block(1, block(own), ends=False, priority=b"")
    assert written(leg)[HEADER_SIZE:] == expected + block().literal
    to_app.write_block(3, block(), ends=False, priority=b"")
    assert written(leg)[HEADER_SIZE:] == block().literal


def test_the_app_is_in_step_until_a_block_that_it_has_missed_has_changed_the_table() -> None:
    to_app = ToApp(Leg(Role.APP, is_open=True))
    for text in (b"\x82", b"\x00\x01a\x01b", b"\x10\x01a\x01b"):  # indexed, without indexing, never to be indexed
        missed = decode(INITIAL, text, list_limit=1000, table_limit=4096)
        to_app.withhold(missed.updates, before=INITIAL, after=missed.state)
        assert to_app.in_step
    missed = decode(INITIAL, b"\x40\x01a\x01b", list_limit=1000, table_limit=4096)
    to_app.withhold(missed.updates, before=INITIAL, after=missed.state)
    assert not to_app.in_step
    to_app.withhold(None, before=missed.state, after=missed.state)
    assert not to_app.in_step


def test_a_size_update_that_the_app_has_missed_counts_as_a_change_even_if_it_changes_nothing() -> None:
    to_app = ToApp(Leg(Role.APP, is_open=True))
    missed = decode(INITIAL, b"\x3f\xe1\x1f\x82", list_limit=1000, table_limit=4096)
    assert missed.updates == (4096, 4096)
    to_app.withhold(missed.updates, before=INITIAL, after=missed.state)
    assert not to_app.in_step
