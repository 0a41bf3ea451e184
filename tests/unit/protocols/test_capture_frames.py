"""Frames of a capture: what is written is read, however it is cut; what is no frame is an error."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidestep.model.errors import PeerError
from sidestep.protocols.capture_frames import MAX_DATA, MAX_LOST, Frame, FrameKind, FrameReader, encode, encode_loss

FRAMES = st.builds(
    Frame,
    st.sampled_from(FrameKind),
    st.booleans(),
    st.integers(0, 2**63),
    st.binary(max_size=300),
)


@given(st.lists(FRAMES, max_size=8), st.lists(st.integers(1, 40), min_size=1, max_size=20))
def test_what_is_written_is_read_however_it_is_cut(frames, cuts):
    data = b"".join(encode(each.kind, each.at, each.data, from_client=each.from_client) for each in frames)
    reader, found, at, turn = FrameReader(), [], 0, 0
    while at < len(data):
        size = cuts[turn % len(cuts)]
        found += reader.feed(data[at : at + size])
        at, turn = at + size, turn + 1
    assert found == frames
    assert reader.is_between


def test_long_data_is_several_frames():
    data = bytes(range(256)) * 1000
    frames = FrameReader().feed(encode(FrameKind.DATA, 5, data, from_client=False))
    assert len(frames) == 4
    assert max(len(each.data) for each in frames) == MAX_DATA
    assert b"".join(each.data for each in frames) == data


def test_a_loss_is_a_number_within_bounds():
    assert FrameReader().feed(encode_loss(7, 1, from_client=True))[0].count == 7
    for bad in (encode_loss(MAX_LOST + 1, 1, from_client=True), encode(FrameKind.LOST, 1, b"1234")):
        with pytest.raises(PeerError):
            _ = FrameReader().feed(bad)[0].count


@given(st.binary(min_size=14, max_size=60))
def test_any_bytes_are_frames_or_an_error(data):
    try:
        frames = FrameReader().feed(data)
    except PeerError:
        return
    assert all(len(each.data) <= MAX_DATA for each in frames)


@pytest.mark.parametrize("head", [b"\0\0", b"\7\0", b"\2\2"])
def test_an_unknown_kind_or_side_is_an_error(head):
    with pytest.raises(PeerError):
        FrameReader().feed(head + bytes(12))
