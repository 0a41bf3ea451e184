"""Synthesised packets, read by the RFCs."""

from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidestep.model.errors import BugError
from sidestep.protocols.tcp_synthesis import MAX_SEGMENT, MIN_SEGMENT, Conversation, Endpoint
from tests.effort import examples
from tests.unit.protocols.tcp_packets import ACK, FIN, PSH, RST, SYN, Receiver, read

CLIENT, SERVER = Endpoint("192.0.2.1", 40000), Endpoint("198.51.100.2", 8080)
PAIRS = [(CLIENT, SERVER), (Endpoint("2001:db8::1", 40000), Endpoint("fd00::2", 8443))]


def opened(client=CLIENT, server=SERVER, **options):
    conversation = Conversation(client, server, **options)
    receiver = Receiver((client.address, client.port))
    for packet in conversation.opening():
        receiver.take(packet)
    return conversation, receiver


@pytest.mark.parametrize(("client", "server"), PAIRS)
def test_a_handshake(client, server):
    conversation = Conversation(client, server, segment_size=1460, client_number=2**32 - 1, server_number=7)
    segments = [read(packet) for packet in conversation.opening()]
    assert [segment.flags for segment in segments] == [SYN, SYN | ACK, ACK]
    assert [(segment.number, segment.acknowledged) for segment in segments] == [(2**32 - 1, 0), (7, 0), (0, 8)]
    assert segments[0].source == segments[1].destination == (client.address, client.port)
    assert segments[0].destination == segments[1].source == (server.address, server.port)
    assert segments[0].options == segments[1].options == b"\x02\x04\x05\xb4\x01\x03\x03\x0e"


@pytest.mark.parametrize(("client", "server"), PAIRS)
def test_data_is_cut_into_segments_and_acknowledged(client, server):
    conversation, receiver = opened(client, server, segment_size=100)
    segments = [receiver.take(packet) for packet in conversation.data(b"x" * 250, from_client=True)]
    assert [len(segment.payload) for segment in segments] == [100, 100, 50, 0]
    assert [segment.flags for segment in segments] == [ACK, ACK, PSH | ACK, ACK]
    assert segments[-1].source == (server.address, server.port)
    assert [len(read(packet).payload) for packet in conversation.data(b"y" * 200, from_client=False)] == [100, 100, 0]
    assert conversation.data(b"", from_client=True) == []


def test_ends_close_one_after_the_other():
    conversation, receiver = opened()
    for packet in conversation.finish(from_client=True):
        receiver.take(packet)
    for packet in conversation.data(b"late answer", from_client=False):
        receiver.take(packet)
    with pytest.raises(BugError):
        conversation.data(b"more", from_client=True)
    segments = [receiver.take(packet) for packet in conversation.finish(from_client=False)]
    assert [segment.flags for segment in segments] == [FIN | ACK, ACK]
    assert conversation.reset(from_client=True) == []
    assert receiver.halves[False].received == b"late answer"
    assert receiver.halves[True].finished
    assert receiver.halves[False].finished


def test_a_reset_ends_both_directions_once():
    conversation, receiver = opened()
    (packet,) = conversation.reset(from_client=False)
    assert receiver.take(packet).flags == RST | ACK
    assert conversation.reset(from_client=True) == []
    for say in (conversation.finish, partial(conversation.data, b"x"), partial(conversation.lost, 1)):
        with pytest.raises(BugError):
            say(from_client=True)


def test_a_loss_is_a_gap_of_its_size():
    conversation, receiver = opened()
    for packet in conversation.data(b"before", from_client=True):
        receiver.take(packet)
    conversation.lost(5000, from_client=True)
    receiver.lossy = True
    for packet in conversation.data(b"after", from_client=True):
        receiver.take(packet)
    assert receiver.halves[True].received == b"beforeafter"
    assert receiver.halves[True].gaps == [(6, 5000)]


def test_what_cannot_be_a_conversation():
    for size in (MIN_SEGMENT - 1, MAX_SEGMENT + 1):
        with pytest.raises(BugError, match=str(size)):
            Conversation(CLIENT, SERVER, segment_size=size)
    with pytest.raises(BugError):
        Conversation(CLIENT, PAIRS[1][1])
    with pytest.raises(ValueError, match="not-an-address"):
        Conversation(Endpoint("not-an-address", 1), SERVER)
    conversation = Conversation(CLIENT, SERVER)
    with pytest.raises(BugError):
        conversation.data(b"x", from_client=True)
    conversation.opening()
    with pytest.raises(BugError):
        conversation.opening()


def test_addresses_of_dual_stack_sockets():
    conversation, _ = opened(Endpoint("192.0.2.1", 1), Endpoint("::ffff:198.51.100.2", 2))
    assert read(conversation.data(b"x", from_client=True)[0]).destination == ("198.51.100.2", 2)
    assert Endpoint("fe80::1%eth0", 1).packed() == Endpoint("fe80::1", 1).packed()


def test_the_largest_segment():
    conversation, receiver = opened(segment_size=MAX_SEGMENT)
    for packet in conversation.data(bytes(range(256)) * 300, from_client=True):
        receiver.take(packet)
    assert receiver.halves[True].received == bytes(range(256)) * 300


@given(
    pair=st.sampled_from(PAIRS),
    size=st.integers(MIN_SEGMENT, 300),
    numbers=st.tuples(st.integers(0, 2**32 - 1), st.integers(2**32 - 500, 2**32 - 1)),
    said=st.lists(st.tuples(st.booleans(), st.binary(max_size=700) | st.integers(1, 2**20)), max_size=20),
    end=st.sampled_from(["finish", "reset", "nothing"]),
)
@settings(deadline=None, max_examples=examples())
def test_arbitrary_exchanges_are_put_together_again(pair, size, numbers, said, end):
    conversation, receiver = opened(*pair, segment_size=size, client_number=numbers[0], server_number=numbers[1])
    expected = {True: b"", False: b""}
    lost = {True: 0, False: 0}
    for from_client, what in said:
        if isinstance(what, int):
            conversation.lost(what, from_client=from_client)
            receiver.lossy = True
            lost[from_client] += what
            continue
        packets = conversation.data(what, from_client=from_client)
        assert len(packets) == (-(-len(what) // size) + 1 if what else 0)
        for packet in packets:
            receiver.take(packet)
        expected[from_client] += what
    for from_client in (True, False):
        packets = getattr(conversation, end)(from_client=from_client) if end != "nothing" else []
        for packet in packets:
            receiver.take(packet)
    for from_client, half in receiver.halves.items():
        assert half.received == expected[from_client]
        if end == "finish":
            assert sum(gap for _, gap in half.gaps) == lost[from_client]


@pytest.mark.parametrize(("client", "server"), PAIRS)
@given(said=st.lists(st.tuples(st.booleans(), st.binary(min_size=1, max_size=MIN_SEGMENT)), max_size=20))
@settings(max_examples=examples(100))
def test_headers_alone_are_those_of_a_segment_but_for_the_checksum_of_tcp(client, server, said):
    ends = {"client_number": 2**32 - 40, "server_number": 7, "segment_size": MIN_SEGMENT, "acknowledges": False}
    whole, parts = (Conversation(client, server, **ends) for _ in range(2))
    for each in (whole, parts):
        each.opening()
    for from_client, data in said:
        (packet,) = whole.data(data, from_client=from_client)
        headers = parts.headers(len(data), from_client=from_client)
        without = packet[: len(headers) - 4] + bytes(2) + packet[len(headers) - 2 :]
        assert headers + data == without
    assert parts.finish(from_client=True) == whole.finish(from_client=True)
    with pytest.raises(BugError):
        parts.headers(1, from_client=True)
