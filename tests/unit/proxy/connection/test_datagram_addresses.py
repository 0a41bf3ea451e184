"""Addresses of datagrams, from real packet information and from copied packets."""

import socket

import pytest

from sidestep.protocols import udp
from sidestep.proxy.connection.datagram_addresses import (
    IP_PKTINFO,
    copied4,
    copied6,
    local_address,
    source_information,
)

IPV6_RECVPKTINFO = 49


def received(family, address, options):
    """The ancillary data of a datagram to an address of this machine."""
    with socket.socket(family, socket.SOCK_DGRAM) as receiver, socket.socket(family, socket.SOCK_DGRAM) as sender:
        receiver.settimeout(10)
        for level, option in options:
            receiver.setsockopt(level, option, 1)
        receiver.bind((("0.0.0.0" if family == socket.AF_INET else "::"), 0))
        sender.sendto(b"x", (address, receiver.getsockname()[1]))
        return receiver.recvmsg(100, 256)[1]


V4 = ((socket.IPPROTO_IP, IP_PKTINFO),)
V6 = ((socket.IPPROTO_IPV6, IPV6_RECVPKTINFO),)


@pytest.mark.parametrize(
    ("family", "address", "options", "local"),
    [
        (socket.AF_INET, "127.0.0.1", V4, "127.0.0.1"),
        (socket.AF_INET, "127.1.2.3", V4, "127.1.2.3"),
        (socket.AF_INET6, "::1", V6, "::1"),
        (socket.AF_INET6, "::ffff:127.0.0.9", V6, "127.0.0.9"),
        (socket.AF_INET, "127.0.0.1", (), None),
    ],
)
def test_the_address_that_a_datagram_was_sent_to(family, address, options, local):
    assert local_address(received(family, address, options)) == local


@pytest.mark.parametrize(
    "ancillary",
    [
        [],
        [(socket.IPPROTO_IP, IP_PKTINFO, b"short")],
        [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, b"\0" * 19)],
        [(socket.SOL_SOCKET, 1, b"\0" * 64)],
    ],
)
def test_without_packet_information_there_is_none(ancillary):
    assert local_address(ancillary) is None


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.77"), (socket.AF_INET6, "::1")])
def test_a_datagram_leaves_from_the_address_that_is_given(family, address):
    with socket.socket(family, socket.SOCK_DGRAM) as receiver, socket.socket(family, socket.SOCK_DGRAM) as sender:
        receiver.settimeout(10)
        receiver.bind((("127.0.0.1" if family == socket.AF_INET else "::1"), 0))
        sender.sendmsg([b"x"], [source_information(address)], 0, receiver.getsockname()[:2])
        assert receiver.recvfrom(10)[1][0] == address


def test_what_a_copied_packet_carries():
    source, local = socket.inet_aton("192.0.2.1"), socket.inet_aton("192.0.2.2")
    header = bytes((0x45, 0, 0, 36)) + bytes(4) + bytes((64, socket.IPPROTO_UDP, 0, 0)) + source + local
    packet = header + udp.packet4(source, 9, local, 53, b"question")
    assert copied4(packet) == ("192.0.2.1", 9, "192.0.2.2", 53, b"question")
    information = [source_information("2001:db8::2")]
    datagram = udp.packet(9, 53, b"question")
    assert copied6(datagram, information, "2001:db8::1") == ("2001:db8::1", 9, "2001:db8::2", 53, b"question")


@pytest.mark.parametrize("size", range(8))
def test_a_packet_that_is_not_whole_carries_nothing(size):
    assert copied4(b"\x45" + b"\0" * size) is None
    assert copied6(b"\0" * size, [source_information("::1")], "::1") is None


def test_a_copied_packet_without_its_address_carries_nothing():
    assert copied6(udp.packet(9, 53, b"question"), [], "::1") is None
