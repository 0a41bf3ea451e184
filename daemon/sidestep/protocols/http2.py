"""HTTP/2 frames (RFC 9113): numbers, building, the few payloads a relay must read, and the limits.

A frame header is nine bytes: `HEADER.unpack_from(data, position)` gives (high, low, kind, flags, stream), where the
length is `high << 8 | low` and `stream` still carries the reserved bit (mask it with `STREAM`). No object is made per
frame; callers keep positions into the bytes they received.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable
from typing import Final

import msgspec

from sidestep.model.errors import PeerError

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER: Final = struct.Struct(">HBBBI")
HEADER_SIZE: Final = 9
STREAM: Final = 0x7FFFFFFF
"""Bits of a stream id, a window increment, and the largest window (section 6.9.1)."""
WINDOW: Final = 65535
"""Initial flow-control window of a connection, and of streams unless SETTINGS say otherwise (bytes)."""
FRAME: Final = 16384
"""Bytes of payload that every peer takes (the smallest SETTINGS_MAX_FRAME_SIZE); frames of ours are never larger."""

DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

END_STREAM: Final = 0x01
ACK: Final = 0x01
END_HEADERS: Final = 0x04
PADDED: Final = 0x08
WITH_PRIORITY: Final = 0x20


class ErrorCode(enum.IntEnum):
    """Error codes of RST_STREAM and GOAWAY (section 7)."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    HTTP_1_1_REQUIRED = 13


class Setting(enum.IntEnum):
    """Identifiers of SETTINGS (section 6.5.2; RFC 8441 for the last)."""

    HEADER_TABLE_SIZE = 1
    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6
    ENABLE_CONNECT_PROTOCOL = 8


class Http2Limits(msgspec.Struct, frozen=True):
    """Every bound of the HTTP/2 relay, and what happens beyond it.

    Before a diversion a connection that exceeds a bound becomes a wire, unless said otherwise. Afterwards it carries
    other people's streams, so a bound concerns one stream (it is reset, or answered), or delays its sender (it is not
    read); GOAWAY is for what breaks the protocol and for floods.
    """

    # Header blocks.
    header_block: int = 64 * 1024
    """Bytes of one header block with the frame headers of its CONTINUATIONs (docs/design.md, "HTTP/2"). A list over
    `hpack.LARGE` is not matched. Once diverted, larger ones pass as well, up to:"""
    passed_block: int = 1024 * 1024
    """Bytes of one block; beyond it GOAWAY: without the whole block nobody knows the compression context."""
    passed_list: int = 1024 * 1024
    """Bytes of a decoded list, as SETTINGS_MAX_HEADER_LIST_SIZE counts; beyond it that request gets a 431."""
    continuations: int = 256
    """CONTINUATION frames of one block (CVE-2024-27316 and its kin sent them without end); beyond it GOAWAY."""
    table: int = 256 * 1024
    """Bytes of an HPACK table that we follow; peers use 4 KiB, some 64 KiB. Once diverted, a larger one that the app
    allows is announced to the client as this one."""
    memo: int = 2 * 1024 * 1024
    """Bytes of the memo of decoded header blocks, one per process."""

    # Streams.
    open_streams: int = 16384
    """Open streams that are followed on one connection; servers allow 100 to 1000. Once diverted REFUSED_STREAM."""
    diverted_streams: int = 16384
    """Open diverted streams of one connection, if the budget allows as many; beyond it REFUSED_STREAM."""
    remembered: int = 4096
    """Ended diverted streams of which late frames are still told from those of relayed ones."""
    small: int = 64 * 1024
    """Bytes that a diverted stream may hold while anything of the budget is free (`engine.memory_budget`); otherwise
    the connection's share of it decides, beyond which the stream is reset with ENHANCE_YOUR_CALM."""
    backpressure_ticks: int = 1
    """Ticks for which a handler that takes nothing may hold up its client (`engine.http2.backpressure`)."""
    app_queue: int = 64 * 1024
    """Bytes of the app's DATA that wait for the client's window before the app is not read any more."""

    # Control frames.
    settings: int = 64 * 1024
    """Bytes of one SETTINGS payload; eight entries are known, 48 bytes."""
    pending_settings: int = 64
    """SETTINGS sent by one side and not yet acknowledged by the other. Once diverted their sender is not read beyond
    it."""
    resets: int = 10_000
    """Diverted streams that the client reset before anything was answered (CVE-2023-44487, rapid reset), less
    `reset_rate` for each tick; beyond it GOAWAY."""
    reset_rate: int = 1000
    idle_frames: int = 10_000
    """Frames in a row without use (SETTINGS, PING, PRIORITY, empty DATA, unknown ones) to which nothing came back, less
    `idle_rate` for each tick; beyond it GOAWAY."""
    idle_rate: int = 1000

    # Links: connections on which the engine is the client.
    links: int = 8
    """Links of one client connection to one handler that take new streams."""
    all_links: int = 64
    """The same with those that only finish what they have."""
    attempts: int = 3
    """Times a request is given to a peer that refuses it without having processed any other."""
    replay: int = 256 * 1024
    """Bytes of a request's body that are kept until its answer begins, for a peer that says it has processed nothing.
    Such a peer gives no window: most initial windows are 64 KiB."""
    settings_ticks: int = 10
    """Ticks for which the SETTINGS of a connected peer are waited for."""
    wait_ticks: int = 60
    """Ticks that requests wait for a peer that lets none of them begin; then the app answers."""
    spare_ticks: int = 30
    """Ticks after which a link that is not needed is closed, if there is another one."""
    stream_window: int = 256 * 1024
    """Window that the engine, as a client, gives a stream of a handler (bytes)."""
    connection_window: int = 4 * 1024 * 1024
    """Window that the engine, as a client, gives a whole connection (bytes): what it may have to buffer."""


TICK: Final = 1.0
"""Seconds between two ticks of a connection on which something ends with time."""

DEFAULT_LIMITS: Final = Http2Limits()


class Http2Error(PeerError):
    """A connection error (section 5.4.1). `label` is a short stable reason, a metric label."""

    def __init__(self, label: str, code: ErrorCode = ErrorCode.PROTOCOL_ERROR) -> None:
        self.label = label
        super().__init__(label, code=code)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame; `payload` must be shorter than 2**24 bytes."""
    size = len(payload)
    return HEADER.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


def window_update(stream: int, increment: int) -> bytes:
    """A WINDOW_UPDATE; `increment` from 1 to 2**31 - 1."""
    return HEADER.pack(0, 4, WINDOW_UPDATE, 0, stream) + increment.to_bytes(4, "big")


def rst_stream(stream: int, code: int) -> bytes:
    """A RST_STREAM."""
    return HEADER.pack(0, 4, RST_STREAM, 0, stream) + code.to_bytes(4, "big")


def goaway(last: int, code: int, debug: bytes = b"") -> bytes:
    """A GOAWAY; `debug` is shown by the peer's tools."""
    return frame(GOAWAY, 0, 0, last.to_bytes(4, "big") + code.to_bytes(4, "big") + debug)


def settings(values: dict[Setting, int]) -> bytes:
    """A SETTINGS frame."""
    return settings_frame(values.items())


def settings_frame(entries: Iterable[tuple[int, int]]) -> bytes:
    """A SETTINGS frame with these entries, in order."""
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", key, value) for key, value in entries))


SETTINGS_ACK: Final = frame(SETTINGS, ACK, 0)


def header_frames(stream: int, block: bytes, *, end_stream: bool, priority: bytes = b"") -> bytes:
    """HEADERS and as many CONTINUATIONs as the block needs; `priority` is the five bytes of section 6.3 or empty."""
    flags = (END_STREAM if end_stream else 0) | (WITH_PRIORITY if priority else 0)
    room = FRAME - len(priority)
    if len(block) <= room:
        return frame(HEADERS, flags | END_HEADERS, stream, priority + block)
    parts = [frame(HEADERS, flags, stream, priority + block[:room])]
    for start in range(room, len(block), FRAME):
        last = start + FRAME >= len(block)
        parts.append(frame(CONTINUATION, END_HEADERS if last else 0, stream, block[start : start + FRAME]))
    return b"".join(parts)


def read_settings(payload: bytes) -> tuple[tuple[int, int], ...]:
    """The entries of a SETTINGS payload in order. Raises Http2Error for a length or a value out of range."""
    if len(payload) % 6:
        raise Http2Error("h2-settings", ErrorCode.FRAME_SIZE_ERROR)
    entries = tuple(struct.iter_unpack(">HI", payload))
    for key, value in entries:
        if key == Setting.INITIAL_WINDOW_SIZE and value > STREAM:
            raise Http2Error("h2-settings", ErrorCode.FLOW_CONTROL_ERROR)
    return entries


def split_headers(payload: bytes, flags: int) -> tuple[bytes, bytes]:
    """The payload of a HEADERS frame without its padding: (priority, block fragment). Raises Http2Error."""
    start, stop = 0, len(payload)
    if flags & PADDED:
        if not payload:
            raise Http2Error("h2-padding", ErrorCode.FRAME_SIZE_ERROR)
        start, stop = 1, stop - payload[0]
    priority = b""
    if flags & WITH_PRIORITY:
        priority = payload[start : start + 5]
        start += 5
    if start > stop:
        raise Http2Error("h2-padding")
    return priority, payload[start:stop]
