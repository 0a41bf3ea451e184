"""Every bound of the tunnel in one place."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True)
class TunnelLimits:
    """Bounds of one tunnel connection. Memory held for received bytes is at most `streams * stream_window +
    window_pool`; what is queued for sending is at most `send_buffer` plus one frame, or the tunnel is cut.
    """

    streams: int = 1024
    """Streams open at once (SETTINGS_MAX_CONCURRENT_STREAMS). As many may wait, each for `open_timeout`."""
    stream_window: int = 64 * KIB
    """Receive window that every stream begins with and never loses (bytes)."""
    stream_window_max: int = 512 * KIB
    """Receive window a stream may grow to while the pool lasts (bytes)."""
    window_pool: int = 48 * MIB
    """Window bytes that the streams of a connection may have beyond `stream_window`, all together."""
    connection_window: int = 1024 * MIB
    """Connection receive window (bytes). It is credited on arrival: the windows of the streams bound the memory, so
    that one stalled stream never takes the connection's credit from another."""
    frame_size: int = 256 * KIB
    """SETTINGS_MAX_FRAME_SIZE (bytes): fewer, larger frames are what makes bulk transfers fast in Python."""
    header_list: int = 16 * KIB
    """SETTINGS_MAX_HEADER_LIST_SIZE (bytes)."""
    header_table: int = 4 * KIB
    """Bytes of HPACK state kept for sending, whatever the peer allows."""
    send_buffer: int = 512 * KIB
    """Bytes waiting for the transport above which no stream may write."""
    send_buffer_hard: int = 8 * MIB
    """Bytes waiting for the transport above which the peer is not reading its own answers: the tunnel is cut."""
    control_frames: int = 20_000
    """Frames other than DATA accepted in one keepalive interval (rapid reset, PING and SETTINGS floods)."""
    keepalive: float = 1.0
    """Seconds between PINGs."""
    silent_intervals: int = 5
    """Keepalive intervals without a byte from the peer after which the tunnel is broken."""
    farewell: float = 2.0
    """Seconds that a closing tunnel may take to hand over what is queued."""
    unproved_bytes: int = 128 * KIB
    """Bytes taken in all from a peer that has not proved who it is: TLS aside, a hello's answer and some frames."""
    unproved_frames: int = 64
    """Frames other than DATA taken in all from such a peer: settings, their acknowledgement, a PING a second."""
    hello_timeout: float = 10.0
    """Seconds from the tunnel's start to an answered hello."""
    hello: int = 64 * KIB
    """Bytes of a hello or its answer."""
    event_line: int = 256 * KIB
    """Bytes of one line of the event stream."""
    event_queue: int = 1024
    """Events waiting for the session; the oldest is dropped and counted when it is full."""
    open_timeout: float = 10.0
    """Seconds from asking for a handler connection to its answer."""


DEFAULT_LIMITS = TunnelLimits()
