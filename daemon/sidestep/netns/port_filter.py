"""Makes a filter with which the kernel lists sockets of certain local ports only (INET_DIAG_REQ_BYTECODE).

The pod decides how many sockets listen; reading 20,000 answers takes 0.1 s in Python. The kernel runs the request's
program on each socket (sock_diag(7); net/ipv4/inet_diag.c, inet_diag_bc_run). Each operation has one offset to continue
at when it holds and one when it does not; a socket is listed when the program's end is reached exactly. Each range of
ports is a block of operations: at least its first port, at most its last port, jump to the end.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

MAX_RANGES: Final = 256
"""Blocks of one program; beyond it, one range covers all ports that are asked for."""

_JUMP: Final = 1
_AT_LEAST: Final = 2
_AT_MOST: Final = 3

_OPERATION: Final = struct.Struct("=BBH")  # struct inet_diag_bc_op: code, offset when true, offset when false
_COMPARISON: Final = 2 * _OPERATION.size  # the second one holds the port
_BLOCK: Final = 2 * _COMPARISON + _OPERATION.size


def port_filter(ports: Iterable[int]) -> bytes:
    """The program of such a filter; empty without a port: then all sockets are asked for."""
    ranges = _ranges(sorted(set(ports)))
    if not ranges:
        return b""
    # The last block needs no jump: behind it is the end.
    size = len(ranges) * _BLOCK - _OPERATION.size
    program = b"".join(_block(first, last, size - number * _BLOCK) for number, (first, last) in enumerate(ranges))
    return program[:size]


def _ranges(ports: list[int]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for port in ports:
        if found and found[-1][1] == port - 1:
            found[-1] = (found[-1][0], port)
        else:
            found.append((port, port))
    return found if len(found) <= MAX_RANGES else [(ports[0], ports[-1])]


def _block(first: int, last: int, left: int) -> bytes:
    """One range. `left` is the number of bytes from the beginning of the block to the end of the program."""
    return b"".join(
        (
            _comparison(_AT_LEAST, first, otherwise=_BLOCK),
            _comparison(_AT_MOST, last, otherwise=_BLOCK - _COMPARISON),
            _OPERATION.pack(_JUMP, _OPERATION.size, max(0, left - 2 * _COMPARISON)),
        )
    )


def _comparison(code: int, port: int, *, otherwise: int) -> bytes:
    return _OPERATION.pack(code, _COMPARISON, otherwise) + _OPERATION.pack(0, 0, port)
