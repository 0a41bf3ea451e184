"""All limits of the tunnel."""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

KIB = 1024
MIB = 1024 * KIB
SILENT_INTERVALS_MAX = 30
"""Upper bound of `TunnelLimits.silent_intervals` when it grows."""


class TunnelLimits(msgspec.Struct, frozen=True):
    """Limits of one tunnel connection.

    Received bytes take at most `streams * stream_window + window_pool` bytes of memory. Bytes queued for sending take
    at most `send_buffer` plus one frame; beyond `send_buffer_hard` the tunnel is cut.
    """

    streams: int = 1024
    """Open streams (SETTINGS_MAX_CONCURRENT_STREAMS). As many callers may wait for one, each for `open_timeout`."""
    stream_window: int = 64 * KIB
    """Initial receive window of a stream (bytes), which it always keeps."""
    stream_window_max: int = 512 * KIB
    """Bytes to which a stream's receive window may grow while the pool has room."""
    window_pool: int = 48 * MIB
    """Bytes of window growth beyond `stream_window`, of all streams of a connection together."""
    connection_window: int = 1024 * MIB
    """Receive window of the connection (bytes). It is credited on arrival, because the windows of the streams bound the
    memory; so a stalled stream takes no credit from others."""
    frame_size: int = 256 * KIB
    """SETTINGS_MAX_FRAME_SIZE (bytes). Fewer, larger frames make bulk transfers fast in Python."""
    header_list: int = 16 * KIB
    """SETTINGS_MAX_HEADER_LIST_SIZE (bytes)."""
    header_table: int = 4 * KIB
    """Bytes of the HPACK table for sending, whatever the peer allows."""
    send_buffer: int = 512 * KIB
    """Bytes waiting in the transport above which streams do not write."""
    send_buffer_hard: int = 8 * MIB
    """Bytes waiting in the transport above which the tunnel is cut, because the peer does not read."""
    control_frames: int = 20_000
    """Frames other than DATA accepted in one keepalive interval (bounds rapid reset, PING and SETTINGS floods)."""
    keepalive: float = 1.0
    """Seconds between PINGs."""
    silent_intervals: int = 5
    """Keepalive intervals without a byte from the peer after which the tunnel counts as broken."""
    farewell: float = 2.0
    """Seconds for delivering queued bytes when a tunnel closes."""
    unproved_bytes: int = 128 * KIB
    """Bytes accepted in total from a peer that has not proved its identity: the answer to the hello and a few
    frames."""
    unproved_frames: int = 64
    """Frames other than DATA accepted in total from such a peer: settings, their acknowledgement, a PING per second."""
    hello_timeout: float = 10.0
    """Seconds from the start of the tunnel to the answer to the hello."""
    hello: int = 64 * KIB
    """Bytes of a hello or of its answer."""
    event_line: int = 256 * KIB
    """Bytes of one line of the event stream."""
    event_queue: int = 1024
    """Queued events. When the queue is full the oldest is dropped and counted."""
    open_timeout: float = 10.0
    """Seconds from requesting a handler connection to the answer."""

    def after_silence(self) -> TunnelLimits:
        """Return the limits for the tunnel that follows a silent one: they permit twice the silence.

        A peer that is late because of load would otherwise be given up and greeted again for as long as the load lasts.
        """
        longer = min(2 * self.silent_intervals, SILENT_INTERVALS_MAX)
        return replace(self, silent_intervals=max(longer, self.silent_intervals))


DEFAULT_LIMITS = TunnelLimits()
