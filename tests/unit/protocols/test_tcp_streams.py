"""Streams out of packets that came in order, late, twice, or not at all."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidestep.protocols import tcp_streams
from sidestep.protocols.tcp_segments import ACK, FIN, RST, SYN, Segment, find
from sidestep.protocols.tcp_streams import Data, Finished, Lost, Over, Streams
from sidestep.protocols.tcp_synthesis import Conversation, Endpoint
from tests.effort import examples

CLIENT, SERVER = Endpoint("192.0.2.1", 40000), Endpoint("198.51.100.2", 80)


def fed(packets, streams=None):
    streams = Streams() if streams is None else streams
    events = [event for packet in packets for event in streams.feed(find(101, packet))]
    return events + streams.finish(), streams


def said(events, *, from_client):
    """What one end said: its bytes, with the sizes of gaps."""
    out = []
    for event in events:
        if isinstance(event, Data) and event.from_client is from_client:
            if out and isinstance(out[-1], bytes):
                out[-1] += event.data
            else:
                out.append(event.data)
        elif isinstance(event, Lost) and event.from_client is from_client:
            out.append(event.count)
    return out


def conversation(**options):
    made = Conversation(CLIENT, SERVER, segment_size=64, **options)
    return made, made.opening()


@pytest.mark.parametrize("first", [0, 2**32 - 100, 2**31 - 50])
def test_a_whole_connection(first):
    made, packets = conversation(client_number=first, server_number=first)
    packets += made.data(b"request" * 50, from_client=True) + made.data(b"answer" * 50, from_client=False)
    packets += made.finish(from_client=True) + made.data(b"late", from_client=False) + made.finish(from_client=False)
    events, streams = fed(packets)
    assert said(events, from_client=True) == [b"request" * 50]
    assert said(events, from_client=False) == [b"answer" * 50 + b"late"]
    connection = events[0].connection
    assert connection.client == (CLIENT.packed(), 40000)
    assert connection.server == (SERVER.packed(), 80)
    assert [event for event in events if not isinstance(event, Data)] == [
        Finished(connection, True), Finished(connection, False), Over(connection),
    ]  # fmt: skip
    assert streams.midstream == 0


def test_segments_that_come_twice_or_in_another_order():
    made, packets = conversation()
    segments = made.data(b"".join(b"%03d," % number for number in range(100)), from_client=True)
    data, acknowledgement = segments[:-1], segments[-1]
    events, _ = fed([*packets, *reversed(data), *data, acknowledgement, packets[0], packets[2]])
    assert said(events, from_client=True) == [b"".join(b"%03d," % number for number in range(100))]


def test_what_overlaps_is_told_once():
    streams, end = Streams(), (b"\1\2\3\4", 1)
    segment = Segment(end, (b"\5\6\7\x08", 2), 0, 0, SYN, b"", 0)
    streams.feed(segment)
    found = []
    pieces = {1: b"abcd", 3: b"CDef", 0: b"?", 20: b"later", 5: b"efgh", 7: b"gh" + b"i" * 11}
    for number, payload in pieces.items():
        found += streams.feed(Segment(end, segment.destination, number, 0, ACK, payload, 0))
    assert said(found, from_client=True) == [b"abcdefgh" + b"i" * 11 + b"later"]


def test_a_loss_is_told_when_the_other_end_has_acknowledged_it():
    made, packets = conversation()
    packets += made.data(b"before", from_client=True)
    made.lost(5000, from_client=True)
    packets += made.data(b"after", from_client=True)
    streams = Streams()
    events = [event for packet in packets for event in streams.feed(find(101, packet))]
    assert said(events, from_client=True) == [b"before", 5000, b"after"]


def test_what_was_not_captured_of_a_packet_is_lost():
    made, packets = conversation()
    first, second, third, *_ = made.data(b"a" * 64 + b"b" * 64 + b"c" * 10, from_client=True)
    events, _ = fed([*packets, first, second[:-60], third])
    assert said(events, from_client=True) == [b"a" * 64 + b"b" * 4, 60, b"c" * 10]


def test_a_gap_at_the_end_of_the_capture():
    made, packets = conversation()
    segments = made.data(b"a" * 64 + b"b" * 64 + b"c" * 64, from_client=True)
    events, _ = fed([*packets, segments[0], segments[2]])
    assert said(events, from_client=True) == [b"a" * 64, 64, b"c" * 64]
    assert isinstance(events[-1], Over)


def test_no_more_than_the_bounds_waits(monkeypatch):
    monkeypatch.setattr(tcp_streams, "MAX_SEGMENTS", 5)
    made, packets = conversation()
    segments = made.data(bytes(64 * 20), from_client=True)[:-1]
    streams = Streams()
    fed_events = []
    for packet in [*packets, *segments[1:]]:
        fed_events += streams.feed(find(101, packet))
    assert said(fed_events, from_client=True) == [64, bytes(64 * 19)]
    monkeypatch.setattr(tcp_streams, "MAX_SEGMENTS", 500)
    monkeypatch.setattr(tcp_streams, "MAX_WAITING", 64 * 5)
    made, packets = conversation()
    events, _ = fed([*packets, *made.data(bytes(64 * 20), from_client=True)[1:-1]])
    assert said(events, from_client=True) == [64, bytes(64 * 19)]


def test_a_reset_and_a_new_connection_between_the_same_ends():
    made, packets = conversation()
    again, later = conversation(client_number=99999)
    events, streams = fed([
        *packets, *made.data(b"one", from_client=True), *made.reset(from_client=False),
        *later, *again.data(b"two", from_client=True), *packets, *later[1:],
    ])  # fmt: skip
    assert [event.data for event in events if isinstance(event, Data)] == [b"one", b"two"]
    assert [event.connection.number for event in events if isinstance(event, Over)] == [0, 1, 2]
    assert streams.midstream == 0


def test_connections_without_a_beginning_are_counted():
    made, packets = conversation()
    data = made.data(b"x" * 200, from_client=True)
    events, streams = fed(data)
    assert events == []
    assert streams.midstream == 4
    _, streams = fed([packets[0], *made.data(b"answer", from_client=False)])
    assert streams.midstream == 1


def test_the_number_of_connections_is_bounded(monkeypatch):
    monkeypatch.setattr(tcp_streams, "MAX_CONNECTIONS", 3)
    streams = Streams()
    over = []
    for port in range(10):
        over += streams.feed(Segment((b"\1\1\1\1", port), (b"\2\2\2\2", 80), 0, 0, SYN, b"", 0))
    assert [event.connection.number for event in over] == list(range(7))
    assert len(streams.finish()) == 3


def test_segments_outside_of_any_window_are_left_out():
    streams, end, other = Streams(), (b"\1\2\3\4", 1), (b"\5\6\7\x08", 2)
    streams.feed(Segment(end, other, 0, 0, SYN, b"", 0))
    assert streams.feed(Segment(end, other, 2**30 + 1, 0, ACK, b"far", 0)) == []
    assert [type(event) for event in streams.feed(Segment(end, other, 1, 0, ACK | FIN, b"near", 0))] == [Data, Finished]
    assert streams.feed(Segment(end, other, 5, 0, ACK, b"after its end", 0)) == []
    assert [type(event) for event in streams.feed(Segment(end, other, 6, 0, RST, b"", 0))] == [Over]


@given(
    pieces=st.lists(st.tuples(st.booleans(), st.binary(min_size=1, max_size=300)), max_size=8),
    numbers=st.tuples(st.integers(0, 2**32 - 1), st.integers(2**32 - 300, 2**32 - 1)),
    order=st.randoms(use_true_random=False),
    again=st.booleans(),
)
@settings(deadline=None, max_examples=examples())
def test_arbitrary_orders_of_data_are_put_together_again(pieces, numbers, order, again):
    made, packets = conversation(client_number=numbers[0], server_number=numbers[1])
    expected = {True: b"", False: b""}
    later = []
    for from_client, data in pieces:
        later += made.data(data, from_client=from_client)[:-1]
        expected[from_client] += data
    later *= 2 if again else 1
    # Acknowledgements that overtake what they acknowledge would make gaps of what is only late.
    later = [packet[:28] + bytes(4) + packet[32:33] + bytes([packet[33] & ~ACK]) + packet[34:] for packet in later]
    order.shuffle(later)
    events, _ = fed([*packets, *later])
    for from_client in (True, False):
        assert said(events, from_client=from_client) == [expected[from_client]] * bool(expected[from_client])


SEGMENTS = st.builds(
    Segment,
    st.sampled_from([(b"a" * 4, 1), (b"b" * 4, 2)]), st.sampled_from([(b"a" * 4, 1), (b"b" * 4, 2)]),
    st.integers(0, 40) | st.integers(0, 2**32 - 1), st.integers(0, 40) | st.integers(0, 2**32 - 1),
    st.sampled_from([SYN, SYN | ACK, ACK, ACK, ACK, FIN | ACK, RST]), st.binary(max_size=10), st.integers(0, 3),
)  # fmt: skip


@given(st.lists(SEGMENTS, max_size=40))
@settings(deadline=None, max_examples=examples(200))
def test_arbitrary_segments_are_followed(segments):
    streams = Streams()
    events = [event for segment in segments for event in streams.feed(segment)] + streams.finish()
    over = set()
    for event in events:
        assert event.connection.number not in over
        if isinstance(event, Over):
            over.add(event.connection.number)
        if isinstance(event, Lost):
            assert event.count > 0
    assert {event.connection.number for event in events} == over
    assert streams.finish() == []
