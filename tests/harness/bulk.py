"""Gigabytes through a socket at little cost: numbered blocks, sent by sendfile(2) from memory, checked as they arrive.

A block is its number and BLOCK bytes that differ everywhere, so that what is lost, repeated, swapped or changed shows
in a number or a checksum. The sender's bytes are never copied in this process; the receiver's are, once.
"""

from __future__ import annotations

import functools
import os
import socket
import zlib

from tests.harness.peers import pattern

BLOCK = 128 << 20
"""Bytes of one block, without its number."""
_READ = 1 << 20


@functools.cache
def _block() -> tuple[int, int]:
    """The block in memory: its descriptor and its checksum."""
    fd, checksum = os.memfd_create("block"), 0
    for piece in pattern(BLOCK):
        os.write(fd, piece)
        checksum = zlib.crc32(piece, checksum)
    return fd, checksum


def send_blocks(sock: socket.socket, count: int) -> int:
    """Send so many blocks; returns the number of bytes. Raises OSError."""
    fd, _ = _block()
    with open(fd, "rb", buffering=0, closefd=False) as block:
        for number in range(count):
            sock.sendall(number.to_bytes(8, "big"))
            assert sock.sendfile(block, count=BLOCK) == BLOCK
    return count * (8 + BLOCK)


def receive_blocks(sock: socket.socket, count: int) -> int:
    """Receive and check so many blocks; returns the number of bytes. Raises OSError, AssertionError."""
    _, expected = _block()
    buffer = memoryview(bytearray(_READ))
    for number in range(count):
        assert int.from_bytes(_exactly(sock, 8), "big") == number
        left, checksum = BLOCK, 0
        while left:
            size = sock.recv_into(buffer, min(left, _READ))
            assert size, f"the end came {left} bytes before that of block {number}"
            checksum = zlib.crc32(buffer[:size], checksum)
            left -= size
        assert checksum == expected, f"block {number} has changed"
    return count * (8 + BLOCK)


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        assert piece, "the end came within a block's number"
        data += piece
    return data
