"""Packets with descriptors."""

from __future__ import annotations

import os
import socket

import pytest

from sidestep.aio.packets import (
    MAX_PACKET,
    ChannelClosed,
    Outbox,
    read_sealed_memfd,
    receive_packet,
    sealed_memfd,
    send_packet,
)
from sidestep.model.errors import BugError, PeerError


@pytest.fixture
def pair():
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with left, right:
        yield left, right


def test_a_packet_keeps_its_boundaries(pair):
    left, right = pair
    assert receive_packet(right) is None
    assert send_packet(left, b"one")
    assert send_packet(left, b"x" * 65536)
    assert receive_packet(right) == (b"one", None)
    assert receive_packet(right) == (b"x" * 65536, None)


def test_more_than_one_descriptor_is_an_error_and_none_is_kept(pair):
    left, right = pair
    before = len(os.listdir("/proc/self/fd"))
    socket.send_fds(left, [b"x"], [0, 1])
    with pytest.raises(PeerError, match="more than one"):
        receive_packet(right)
    socket.send_fds(left, [b"x"], [0] * 100)
    with pytest.raises(PeerError, match="more than one"):
        receive_packet(right)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_packet_that_is_too_large_is_an_error(pair):
    left, right = pair
    left.send(b"x" * (MAX_PACKET + 1))
    with pytest.raises(PeerError, match="exceeds"):
        receive_packet(right)


def test_an_empty_packet_is_the_end(pair):
    left, right = pair
    left.send(b"")
    with pytest.raises(ChannelClosed):
        receive_packet(right)


def test_a_reset_is_the_end(pair):
    left, right = pair
    left.send(b"unread")
    right.close()
    with pytest.raises(ChannelClosed):
        receive_packet(left)
    with pytest.raises(ChannelClosed):
        send_packet(left, b"x")


def test_a_sealed_memfd_is_read_back_and_cannot_be_changed():
    fd = sealed_memfd("x", b"content")
    try:
        assert read_sealed_memfd(fd, 7) == b"content"
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"x", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 1)
    finally:
        os.close(fd)


def test_only_packet_sockets_will_do():
    left, right = socket.socketpair()
    with left, right, pytest.raises(BugError):
        Outbox(left)
