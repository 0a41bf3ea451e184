"""Does a handler in clear speak HTTP/2? Ask it, with the beginning of an HTTP/2 connection (RFC 9113 section 3.4).

A server that does answers with SETTINGS, unasked; any other answers in HTTP/1.1, closes, or waits for more. The
connection that asked goes on as the client's: our preface stood for the client's own, which is taken off, and its first
SETTINGS simply become the second ones. (The acknowledgement of ours reaches a client that ignores it: the pod proxy.)
Nothing of the client's is sent before the answer: after a preface that it does not understand, a lenient HTTP/1.1
server might take it for requests.
"""

from __future__ import annotations

import asyncio
from typing import Final

from sidestep.protocols.http2 import ACK, HEADER, HEADER_SIZE, PREFACE, SETTINGS, frame
from sidestep.tunnel.channel import SocketChannel
from sidestep.tunnel.errors import ChannelBrokenError

PATIENCE: Final = 1.0
"""Seconds of silence after which a handler is taken to speak HTTP/1.1."""


async def probe(channel: SocketChannel) -> PrefacedChannel | None:
    """The channel as an HTTP/2 connection; None, and closed, when its server is none. Raises nothing of the peer's."""
    seen = b""
    try:
        async with asyncio.timeout(PATIENCE):
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
    """Whether bytes begin like SETTINGS, as far as there are any."""
    if len(seen) < HEADER_SIZE:
        return len(seen) < 4 or seen[3] == SETTINGS
    _, _, kind, flags, stream = HEADER.unpack_from(seen)
    return kind == SETTINGS and not flags & ACK and not stream


class PrefacedChannel:
    """A `tunnel.channel.Channel` whose preface was sent, and whose first bytes were read, before its user came."""

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
        """As Channel.write. Raises ChannelBrokenError for bytes that do not begin with a preface."""
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
