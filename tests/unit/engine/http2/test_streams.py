"""Whose a stream is, from its first frame to long after its last."""

from __future__ import annotations

import pytest

from sidestep.engine.http2.streams import APP_ENDED, BOTH_ENDED, CLIENT_ENDED, Streams
from tests.unit.engine.http2.test_exchange import exchange


@pytest.mark.parametrize(
    ("ends", "left"),
    [
        ([CLIENT_ENDED], {1: CLIENT_ENDED}),
        ([APP_ENDED], {1: APP_ENDED}),
        ([CLIENT_ENDED, CLIENT_ENDED], {1: CLIENT_ENDED}),
        ([CLIENT_ENDED, APP_ENDED], {}),
        ([APP_ENDED, CLIENT_ENDED], {}),
        ([BOTH_ENDED], {}),
        ([BOTH_ENDED, APP_ENDED], {}),
    ],
)
def test_a_relayed_stream_is_closed_when_both_sides_have_ended(ends: list[int], left: dict[int, int]) -> None:
    streams = Streams(10)
    streams.relayed[1] = 0
    for side in ends:
        streams.ended(1, side)
    assert streams.relayed == left


def test_a_diverted_stream_is_gone_when_it_is_over() -> None:
    streams = Streams(10)
    one = exchange()
    streams.divert(one)
    assert (streams.exchanges, streams.highest_diverted, streams.is_gone(1)) == ({1: one}, 1, False)
    streams.finish(1)
    assert (streams.exchanges, streams.is_gone(1), streams.is_gone(3)) == ({}, True, False)


def test_a_declined_stream_is_gone_at_once() -> None:
    streams = Streams(10)
    streams.decline(5)
    assert (streams.highest, streams.highest_diverted, streams.is_gone(5)) == (5, 5, True)


def test_of_streams_that_are_long_gone_only_the_highest_is_known() -> None:
    streams = Streams(2)
    streams.relayed[3] = 0
    for stream in (1, 5, 7, 9):
        streams.finish(stream)
    assert list(streams.gone) == [7, 9]
    assert streams.forgotten == 5
    assert [stream for stream in range(1, 13) if streams.is_gone(stream)] == [1, 5, 7, 9]
