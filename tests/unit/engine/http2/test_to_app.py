"""Header blocks for an app that has missed others."""

from __future__ import annotations

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidestep.engine.http2.to_app import ToApp, Updates
from sidestep.engine.leg import Ending, Leg, Role
from sidestep.protocols.hpack import INITIAL, NONE, Block, State, decode, integer, size_updates
from sidestep.protocols.http2 import END_HEADERS, END_STREAM, HEADER, HEADER_SIZE, WITH_PRIORITY, header_frames

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
    to_app = ToApp(leg, rewrites=True)
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
    ToApp(leg, rewrites=True).write_block(5, block(), ends=True, priority=b"\x00\x00\x00\x03\x10")
    data = written(leg)
    high, low, _, flags, stream = HEADER.unpack_from(data)
    assert (flags, stream) == (END_HEADERS | END_STREAM | WITH_PRIORITY, 5)
    assert len(data) == HEADER_SIZE + (high << 8 | low)
    assert data[HEADER_SIZE:].startswith(b"\x00\x00\x00\x03\x10")
    assert tuple(hpack.Decoder().decode(data[HEADER_SIZE + 5 :], raw=True)) == FIELDS


def read(text: bytes, state: State = INITIAL) -> Block:
    return decode(state, text, list_limit=1 << 20, table_limit=1 << 16)


@pytest.mark.parametrize(
    ("withheld", "own", "expected"),
    [
        ([(100, 100)], None, b"\x3f\x45"),
        ([(100, 4096), None], None, b"\x3f\x45\x3f\xe1\x1f"),
        ([(100, 200)], (300, 400), b"\x3f\x45\x3f\xf1\x02"),
        ([(300, 300), (100, 200)], None, b"\x3f\x45\x3f\xa9\x01"),
    ],
)
def test_updates_of_withheld_blocks_begin_the_next_one(withheld: list[Updates], own: Updates, expected: bytes) -> None:
    leg = Leg(Role.APP, is_open=True)
    to_app = ToApp(leg)
    to_app.withhold(None, before=INITIAL, after=read(b"\x40\x01a\x01b").state)
    for updates in withheld:
        to_app.withhold(updates, before=INITIAL, after=read(size_updates(*updates)).state if updates else INITIAL)
    to_app.write_block(1, block(own), ends=False, priority=b"")
    assert written(leg)[HEADER_SIZE:] == expected + block().literal


def test_own_updates_of_a_block_go_with_it() -> None:
    leg = Leg(Role.APP, is_open=True)
    to_app = ToApp(leg, rewrites=True)
    to_app.write_block(1, block((100, 100)), ends=False, priority=b"")
    assert written(leg)[HEADER_SIZE:] == b"\x3f\x45" + block().literal
    to_app.write_block(3, block(), ends=False, priority=b"")
    assert written(leg)[HEADER_SIZE:] == block().literal


def test_the_app_is_in_step_until_a_block_that_it_has_missed_has_changed_the_table() -> None:
    to_app = ToApp(Leg(Role.APP, is_open=True))
    for text in (b"\x82", b"\x00\x01a\x01b", b"\x10\x01a\x01b"):  # indexed, without indexing, never to be indexed
        missed = read(text)
        to_app.withhold(missed.updates, before=INITIAL, after=missed.state)
        assert to_app.in_step
    missed = read(b"\x40\x01a\x01b")
    to_app.withhold(missed.updates, before=INITIAL, after=missed.state)
    assert not to_app.in_step
    to_app.withhold(None, before=missed.state, after=missed.state)
    assert not to_app.in_step


def test_a_size_update_that_the_app_has_missed_counts_as_a_change_even_if_it_changes_nothing() -> None:
    leg = Leg(Role.APP, is_open=True)
    to_app = ToApp(leg)
    missed = read(b"\x3f\xe1\x1f\x82")
    assert missed.updates == (4096, 4096)
    to_app.withhold(missed.updates, before=INITIAL, after=missed.state)
    assert not to_app.in_step
    to_app.write_block(3, read(b"\x82", missed.state), ends=True, priority=b"")
    assert written(leg)[HEADER_SIZE:] == b"\x3f\xe1\x1f\x82"
    assert to_app.in_step, "it has nothing to catch up on any more"


def test_the_app_is_in_step_again_once_a_block_has_brought_what_it_missed() -> None:
    leg = Leg(Role.APP, is_open=True)
    to_app = ToApp(leg)
    missed = read(b"\x40\x01a\x01b\x40\x01c\x01d")
    to_app.withhold(None, before=INITIAL, after=missed.state)
    to_app.write_block(3, read(b"\xbf", missed.state), ends=True, priority=b"")
    assert written(leg)[HEADER_SIZE:] == b"\x40\x01a\x01b"
    assert not to_app.in_step
    to_app.write_block(5, read(b"\xbf\xbe", missed.state), ends=True, priority=b"")
    assert written(leg)[HEADER_SIZE:] == b"\xbe\x40\x01c\x01d"
    assert to_app.in_step


def test_what_the_client_keeps_out_of_its_table_is_kept_out_of_the_apps() -> None:
    leg = Leg(Role.APP, is_open=True)
    to_app = ToApp(leg)
    missed = read(b"\x40\x01a\x01b")
    to_app.withhold(None, before=INITIAL, after=missed.state)
    to_app.write_block(3, read(b"\x00\x01s\x01t\x10\x01u\x01v", missed.state), ends=True, priority=b"")
    assert written(leg)[HEADER_SIZE:] == b"\x00\x01s\x01t\x10\x01u\x01v"


def test_blocks_that_are_rewritten_are_never_in_step() -> None:
    to_app = ToApp(Leg(Role.APP, is_open=True), rewrites=True)
    to_app.write_block(1, read(b"\x82"), ends=True, priority=b"")
    assert not to_app.in_step


_FIELD = st.tuples(st.sampled_from([b":path", b"x-a", b"cookie"]), st.sampled_from([b"", b"/", b"v" * 30, b"w" * 90]))
_PATTERN = st.sampled_from([0x40, 0x00, 0x10, 0x80])
_HEADS = st.lists(
    st.tuples(
        st.lists(st.tuples(_FIELD, _PATTERN), max_size=5),
        st.one_of(st.none(), st.tuples(st.integers(0, 200), st.integers(0, 200))),
        st.booleans(),
    ),
    max_size=15,
)


@given(_HEADS, st.booleans())
def test_whatever_is_withheld_the_app_reads_the_others_as_the_client_wrote_them(heads, rewrites) -> None:
    """The client: this encoder's literals, and indexes wherever its table has a field that it wants to index."""
    leg = Leg(Role.APP, is_open=True)
    to_app = ToApp(leg, rewrites=rewrites)
    client, app = INITIAL, hpack.Decoder()
    for number, (wanted, resized, is_withheld) in enumerate(heads):
        text = b"" if resized is None else size_updates(min(resized), resized[1])
        client_now = read(text, client).state if text else client
        for (name, value), pattern in wanted:
            if pattern == 0x80 and (name, value) in client_now.entries:
                piece = integer(61 + client_now.entries[::-1].index((name, value)) + 1, 7, 0x80)
            else:
                kind = pattern & 0x50
                piece = bytes((kind, len(name))) + name + bytes((len(value),)) + value
            text += piece
            client_now = read(piece, client_now).state
        head = read(text, client)
        if is_withheld:
            to_app.withhold(head.updates, before=client, after=head.state)
        else:
            if to_app.in_step:
                to_app.write(header_frames(2 * number + 1, text, end_stream=True))
            else:
                to_app.write_block(2 * number + 1, head, ends=True, priority=b"")
            fields = app.decode(written(leg)[HEADER_SIZE:], raw=True)
            assert tuple(map(tuple, fields)) == head.fields
            assert {place for place, field in enumerate(fields) if not field.indexable} == head.never
            table = [tuple(map(bytes, entry)) for entry in app.header_table.dynamic_entries][::-1]
            assert not to_app.in_step or (tuple(table) == head.state.entries and not rewrites)
        client = head.state
