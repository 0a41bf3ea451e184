"""Copies bytes between a stream of the tunnel and a channel in both directions until both have ended.

    stream: END_STREAM            -> channel: half-closed
            reset                 ->          aborted
            END_STREAM, reset with NO_ERROR -> closed
    channel: finished             -> stream: END_STREAM
             broken               ->         RST_STREAM(CANCEL)
             closed both ways     ->         END_STREAM, RST_STREAM(NO_ERROR)

The last row of each half corresponds to close(2) on a socket: all written bytes are delivered and no more are accepted.
Each direction has one chunk in flight, which propagates back-pressure: a channel that is not read stops the reader of
the stream, and the window of the stream stops the sender at the far end.
"""

from __future__ import annotations

import asyncio
from typing import Any

from sidestep.model.errors import PeerError
from sidestep.tunnel.channel import Channel
from sidestep.tunnel.errors import ChannelBrokenError, StreamResetError
from sidestep.tunnel.stream import CANCEL, NO_ERROR, Stream

LINGER = 30.0
"""Seconds for delivering, to the channel, bytes that arrived before the stream was reset."""


async def pump(stream: Stream, channel: Channel) -> None:
    """Run until both directions have ended, or the stream or channel broke; then both are closed. Owns both.

    Does not raise errors of peers. Cancelling resets the stream and aborts the channel.
    """
    inward = asyncio.create_task(_inward(stream, channel), name=f"pump-inward-{stream.id}")
    outward = asyncio.create_task(_outward(stream, channel), name=f"pump-outward-{stream.id}")
    broken = asyncio.create_task(stream.until_broken(), name=f"pump-watch-{stream.id}")
    tasks = (inward, outward, broken)
    orderly = False
    try:
        orderly = await _outcome(stream, inward, outward, broken)
    finally:
        try:
            await cancel_and_wait(*tasks)
        finally:
            if not stream.over:
                stream.reset(CANCEL)
            stream.discard()
            if orderly:
                channel.close()
            else:
                channel.abort()


async def cancel_and_wait(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait for their end, even when cancelled meanwhile.

    They use a socket that is about to be closed. The loop must not watch its number any more when the kernel reuses it.
    """
    again: asyncio.CancelledError | None = None
    for task in tasks:
        task.cancel()
    while pending := [task for task in tasks if not task.done()]:
        try:
            await asyncio.wait(pending)
        except asyncio.CancelledError as error:
            again = error
    for task in tasks:
        if not task.cancelled():
            task.exception()  # retrieved; errors that matter were handled before
    if again is not None:
        raise again


async def _outcome(
    stream: Stream, inward: asyncio.Task[None], outward: asyncio.Task[bool], broken: asyncio.Task[PeerError]
) -> bool:
    """Wait for the end; returns whether it is orderly."""
    running: set[asyncio.Task[None] | asyncio.Task[bool]] = {inward, outward}
    while running:
        done, _ = await asyncio.wait({*running, broken}, return_when=asyncio.FIRST_COMPLETED)
        if broken in done and inward not in done:
            return await _after_reset(broken.result(), inward)
        for task in running & done:
            error = task.exception()
            if isinstance(error, ChannelBrokenError):
                if task is inward:  # the channel accepts no more, but may have answered, such as a refused upload
                    await asyncio.wait({outward, broken}, timeout=LINGER, return_when=asyncio.FIRST_COMPLETED)
                stream.reset(CANCEL)
                return False
            if isinstance(error, StreamResetError):
                return await _after_reset(error, inward)
            if isinstance(error, PeerError):
                return False
            if error is not None:
                raise error
        running -= done
        if outward in done and outward.result() and not stream.over:
            stream.reset(NO_ERROR)
            return True
    return True


async def _after_reset(error: PeerError, inward: asyncio.Task[None]) -> bool:
    """After a reset, deliver what had arrived before. With NO_ERROR its sender had finished in order."""
    await asyncio.wait({inward}, timeout=LINGER)
    return error.code == NO_ERROR and inward.done() and inward.exception() is None


async def _inward(stream: Stream, channel: Channel) -> None:
    while data := await stream.read():
        await channel.write(data)
        await asyncio.sleep(0)  # sock_sendall does not yield while the kernel accepts everything
    await channel.write_eof()


async def _outward(stream: Stream, channel: Channel) -> bool:
    """Copy from the channel to the stream; returns whether the channel's peer closed both directions."""
    while data := await channel.read():
        await stream.write(data)
        await asyncio.sleep(0)  # sock_recv does not yield while bytes are available
    await stream.write_eof()
    return channel.hung_up()
