"""Packets in libpcap's format, as tshark's reader of another implementation sees them."""

import struct

from sidestep.protocols.pcap_stream import MAX_PACKET, file_header, record, wake_up
from sidestep.protocols.tcp_synthesis import Conversation, Endpoint


def test_the_header_says_nanoseconds_and_packets_without_a_link_layer():
    assert struct.unpack("<IHHiIII", file_header()) == (0xA1B23C4D, 2, 4, 0, 0, MAX_PACKET, 101)


def test_a_packet_has_its_time_and_size():
    made = record(3, 1_800_000_000_123_456_789)
    assert struct.unpack("<IIII", made) == (1_800_000_000, 123_456_789, 3, 3)


def test_the_packet_that_wakes_is_a_valid_one():
    packet = wake_up()[16:]
    assert len(packet) == 20
    words = struct.unpack("!10H", packet)
    total = sum(words)
    assert (total & 0xFFFF) + (total >> 16) == 0xFFFF


def test_without_acknowledgements_there_are_half_as_many_packets():
    ends = Endpoint("10.0.0.1", 40000), Endpoint("10.0.0.2", 80)
    told, silent = Conversation(*ends), Conversation(*ends, acknowledges=False)
    for each in (told, silent):
        each.opening()
    assert silent.data(b"a" * 3000, from_client=True) == told.data(b"a" * 3000, from_client=True)[:-1]
    assert silent.data(b"b", from_client=False) == told.data(b"b", from_client=False)[:-1]
    assert silent.finish(from_client=True) == told.finish(from_client=True)
