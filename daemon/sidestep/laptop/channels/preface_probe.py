"""Probes whether a clear-text handler speaks HTTP/2, by sending a connection preface (RFC 9113 section 3.4).

An HTTP/2 server answers with SETTINGS; any other answers in HTTP/1.1, closes, or waits. The probed connection is then
used for the client: our preface replaces the client's, which is removed, and the client's first SETTINGS become the
second ones. (The acknowledgement of our SETTINGS reaches the pod proxy, which ignores it.) Nothing of the client is
sent before the answer, because a lenient HTTP/1.1 server might take bytes after an unknown preface for requests.
"""

from __future__ import annotations

from typing import Final

from sidestep.aio.time_limit import time_limit
from sidestep.protocols.http2 import ACK, HEADER, HEADER_SIZE, PREFACE, SETTINGS, frame
from sidestep.tunnel.channel import SocketChannel
from sidestep.tunnel.errors import ChannelBrokenError

PATIENCE: Final = 1.0
"""Seconds of silence after which a handler is assumed to speak HTTP/1.1."""


async def probe(channel: SocketChannel) -> PrefacedChannel | None:
    """Return the channel as an HTTP/2 connection; None, after closing it, when the server does not speak HTTP/2.

    Does not raise errors of the peer.
    """
    seen = b""
    try:
        async with time_limit(PATIENCE):
            await channel.write(PREFACE + frame(SETTINGS, 0, 0))
            while len(seen) < HEADER_SIZE:
                data = await channel.read()
                seen += data
                if not data or not _may_be_settings(seen):
                    break
    except (ChannelBrokenError, TimeoutError):
        pass
    except BaseException:
        channel.abort()
        raise
    if len(seen) >= HEADER_SIZE and _may_be_settings(seen):
        return PrefacedChannel(channel, seen)
    channel.abort()
    return None


def _may_be_settings(seen: bytes) -> bool:
    """Whether the bytes received so far can be the start of a SETTINGS frame."""
    if len(seen) < HEADER_SIZE:
        return len(seen) < 4 or seen[3] == SETTINGS
    _, _, kind, flags, stream = HEADER.unpack_from(seen)
    return kind == SETTINGS and not flags & ACK and not stream


class PrefacedChannel:
    """A `tunnel.channel.Channel` whose preface has been sent and whose first bytes have been read by the probe."""

    def __init__(self, channel: SocketChannel, seen: bytes) -> None:
        self._channel = channel
        self._seen = seen
        self._to_drop = PREFACE

    async def read(self) -> bytes:
        """As Channel.read."""
        if self._seen:
            seen, self._seen = self._seen, b""
            return seen
        return await self._channel.read()

    async def write(self, data: bytes) -> None:
        """As Channel.write. Raises ChannelBrokenError for bytes that do not start with a preface."""
        if self._to_drop:
            size = min(len(data), len(self._to_drop))
            if data[:size] != self._to_drop[:size]:
                raise ChannelBrokenError("the client does not speak HTTP/2")
            self._to_drop = self._to_drop[size:]
            data = data[size:]
        if data:
            await self._channel.write(data)

    async def write_eof(self) -> None:
        """As Channel.write_eof."""
        await self._channel.write_eof()

    def hung_up(self) -> bool:
        """As Channel.hung_up."""
        return self._channel.hung_up()

    def close(self) -> None:
        """As Channel.close."""
        self._channel.close()

    def abort(self) -> None:
        """As Channel.abort."""
        self._channel.abort()
