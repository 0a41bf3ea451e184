"""Receives the records of inspection of a session: lines of EVE in a stream of the tunnel.

The stream is read only as fast as `take` takes records, so a slow reader of the output slows the tunnel down and
nothing else: the daemon drops what finds no room, and counts it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

import msgspec

from sidestep.laptop.handler import NoHandler
from sidestep.protocols.eve import MAX_RECORD
from sidestep.protocols.eve_records import Record
from sidestep.tunnel.errors import ChannelBrokenError

if TYPE_CHECKING:
    from sidestep.tunnel.channel import Channel

Take = Callable[[Record, str], Awaitable[None]]
"""Takes a record, decoded and as the line that it came in."""
_DECODER: Final = msgspec.json.Decoder(Record)


class RecordHandler(NoHandler):
    """The "handler" of a session that gets records."""

    def __init__(self, take: Take) -> None:
        super().__init__()
        self._take = take

    async def hear(self) -> Channel:
        """As Handler.hear."""
        return RecordChannel(self._take)


class RecordChannel:
    """Takes the lines of one stream. A `tunnel.channel.Channel`."""

    def __init__(self, take: Take) -> None:
        self._take = take
        self._rest = b""
        self._ended = asyncio.Event()

    async def read(self) -> bytes:
        """Return the end, once the stream has ended: nothing is said to the daemon."""
        await self._ended.wait()
        return b""

    async def write(self, data: bytes) -> None:
        """Take bytes of lines. Raises ChannelBrokenError for what is no record."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_RECORD:
            raise self._broken("the daemon sent a record without end")
        for line in lines:
            try:
                record, text = _DECODER.decode(line), line.decode()
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise self._broken("the daemon sent a record that cannot be read") from error
            await self._take(record, text)

    def _broken(self, reason: str) -> ChannelBrokenError:
        self._ended.set()
        return ChannelBrokenError(reason)

    async def write_eof(self) -> None:
        """The stream has ended."""
        self._ended.set()

    def hung_up(self) -> bool:
        """As Channel.hung_up."""
        return False

    def close(self) -> None:
        """As Channel.close."""

    def abort(self) -> None:
        """As Channel.abort."""
