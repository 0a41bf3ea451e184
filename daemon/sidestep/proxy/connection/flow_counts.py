"""What the kernel has counted of a client's connection, as the `flow` record of its end."""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
from typing import Final

from sidestep.protocols import eve
from sidestep.protocols.eve_records import Flow

_INFO: Final = 216
"""Bytes of `struct tcp_info` (linux/tcp.h), to the end of tcpi_bytes_retrans (Linux 4.19)."""
_COUNTS: Final = struct.Struct("=QQII")
_COUNTS_AT: Final = 120
"""tcpi_bytes_acked, tcpi_bytes_received, tcpi_segs_out, tcpi_segs_in."""
_SENT: Final = struct.Struct("=QQ")
_SENT_AT: Final = 200
"""tcpi_bytes_sent, tcpi_bytes_retrans."""
_ENDED: Final = frozenset({7, 8, 9, 11})
"""States in which a peer has sent its end, or a reset (`enum` of net/tcp_states.h): TCP_CLOSE, TCP_CLOSE_WAIT,
TCP_LAST_ACK, TCP_CLOSING."""
_UNREAD: Final = struct.Struct("=i")
"""What FIONREAD answers (tcp(7), SIOCINQ)."""


def received(client: socket.socket) -> int:
    """Bytes that a client has sent and that were read; 0 if the kernel does not tell."""
    try:
        info = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO)
        (unread,) = _UNREAD.unpack(fcntl.ioctl(client.fileno(), termios.FIONREAD, bytes(_UNREAD.size)))
    except OSError:
        return 0
    return int(_COUNTS.unpack_from(info, _COUNTS_AT)[1]) - int(unread) if len(info) == _INFO else 0


def has_ended(client: socket.socket) -> bool:
    """Whether a client has ended or broken its connection, though bytes of it may still be unread."""
    try:
        return client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] in _ENDED
    except OSError:
        return True


def flow_of(client: socket.socket, *, began: int, now: int, alerted: bool) -> Flow | None:
    """The flow of a connection that ends; None if the kernel does not tell. Times are in nanoseconds since 1970."""
    try:
        info = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO)
    except OSError:
        return None
    if len(info) < _INFO:
        return None
    _, received, segments_out, segments_in = _COUNTS.unpack_from(info, _COUNTS_AT)
    sent, again = _SENT.unpack_from(info, _SENT_AT)
    return Flow(
        pkts_toserver=segments_in,
        pkts_toclient=segments_out,
        bytes_toserver=received,
        bytes_toclient=sent - again,
        start=eve.timestamp(began),
        end=eve.timestamp(now),
        age=(now - began) // 1_000_000_000,
        state="closed",
        reason="shutdown",
        alerted=alerted,
    )
