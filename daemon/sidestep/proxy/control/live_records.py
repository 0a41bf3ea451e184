"""Records of inspection for sessions that get them while they last (`sidestep inspect`), on their way to the daemon.

They have messages of their own, and shares of their own, so that what one session gets costs neither the log
(`record_queue`) nor another session its room. The way is as lossy: a record is dropped, and counted by reason, when

    rate    the session has had more than its share of LIVE_RATE bytes a second
    room    its share of LIVE_WAITING bytes of records waits already
    size    it is larger than `messages.MAX_RECORD`
    daemon  as room, while the daemon does not keep up

What the channel does not take at once is sent MOMENT later, the sessions taking turns: a hundred sessions that are told
of one request are more messages than the socket holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from sidestep.aio.token_bucket import TokenBucket
from sidestep.proxy.control import messages

if TYPE_CHECKING:
    from sidestep.protocols.eve_records import Record
    from sidestep.proxy.control.daemon_link import DaemonLink
    from sidestep.proxy.io.loop import Loop

MOMENT: Final = 0.02
"""Seconds for which records are collected."""
LIVE_WAITING: Final = 256 * 1024
"""Bytes of records that wait to be sent, of all sessions together: each has an equal share of them (of these and of
LIVE_BURST at least one record), ..."""
LIVE_RATE: Final = 1024 * 1024
"""... of these bytes of records a second ..."""
LIVE_BURST: Final = 512 * 1024
"""... and of these at once."""
ROOM: Final = messages.MAX_INLINE - 8192
"""Bytes of the records of one message."""
FRAME: Final = 5
"""Bytes by which an encoded record grows in a message (MessagePack, bin 32)."""

_ENCODER: Final = msgspec.msgpack.Encoder()
Make = Callable[[tuple[bytes, ...], dict[str, int]], messages.Message]
"""Makes a message of records and of the numbers of those that were dropped."""


def send_records(link: DaemonLink, records: list[bytes], dropped: Counter[str], make: Make) -> int:
    """Send records, and how many were dropped, in as many messages as it takes; return how many bytes wait less.

    What the channel does not take now stays in `records` and `dropped`; the rest is taken out of them.
    """
    at = 0
    while at < len(records) or dropped:
        end, room = at, ROOM
        while end < len(records) and end - at < messages.MAX_RECORDS:
            room -= len(records[end]) + FRAME
            if room < 0:
                break
            end += 1
        if not link.send(make(tuple(records[at:end]), dict(dropped)), droppable=True):
            break
        dropped.clear()
        at = end
    sent = sum(map(len, records[:at])) + FRAME * at
    del records[:at]
    return sent


class _Way:
    """Encoded records that wait for one kind of message."""

    __slots__ = ("_bucket", "_records", "_size", "_waiting", "dropped")

    def __init__(self, *, rate: float, burst: float, waiting: int, now: float) -> None:
        self._bucket = TokenBucket(rate=rate, burst=burst, now=now)
        self._waiting = waiting
        self._records: list[bytes] = []
        self._size = 0
        self.dropped: Counter[str] = Counter()
        """Reason to number: records that no message has counted yet."""

    def add(self, data: bytes, now: float, *, full: str) -> None:
        """Take a record, or count it as dropped; `full` is the reason where there is no room."""
        if len(data) > messages.MAX_RECORD:
            self.drop("size")
        elif self._size + len(data) > self._waiting:
            self.drop(full)
        elif not self._bucket.take(now, len(data)):
            self.drop("rate")
        else:
            self._append(data)

    def drop(self, reason: str) -> None:
        """Count a record that is not sent."""
        self.dropped[reason] += 1

    def flush(self, link: DaemonLink, make: Make) -> bool:
        """Send what there is: records, and how many were dropped; return whether all of it was sent."""
        self._size -= send_records(link, self._records, self.dropped, make)
        return not self._records and not self.dropped

    def succeed(self, before: _Way) -> None:
        """Take over what waits in a way to the same session, as far as there is room."""
        for data in before._records:
            if self._size + len(data) > self._waiting:
                self.drop("room")
            else:
                self._append(data)
        self.dropped += before.dropped

    def _append(self, data: bytes) -> None:
        self._records.append(data)
        self._size += len(data) + FRAME


class LiveRecords:
    """The records of sessions, by the uid of each. Those of other sessions than `keep` was told are not taken."""

    def __init__(self, loop: Loop, link: DaemonLink) -> None:
        self._loop = loop
        self._link = link
        self._ways: dict[str, _Way] = {}
        self._is_due = False
        """A flush is to come."""
        self._is_late = False
        """Whether the channel did not take all of what there was."""

    def keep(self, uids: Collection[str]) -> None:
        """Take records of these sessions from now on, and of no others."""
        if self._ways.keys() == set(uids):
            return
        self.flush()
        before, share = self._ways, max(1, len(uids))
        burst, waiting = (max(messages.MAX_RECORD, each // share) for each in (LIVE_BURST, LIVE_WAITING))
        self._ways = {
            uid: _Way(rate=LIVE_RATE / share, burst=burst, waiting=waiting, now=self._loop.now) for uid in uids
        }
        for uid in self._ways.keys() & before.keys():
            self._ways[uid].succeed(before[uid])

    def add(self, record: Record, uids: Collection[str]) -> None:
        """Queue a record for these sessions."""
        ways = [self._ways[uid] for uid in uids if uid in self._ways]
        if ways:
            data = _ENCODER.encode(record)
            full = "daemon" if self._is_late else "room"
            for way in ways:
                way.add(data, self._loop.now, full=full)
            self._flush_soon()

    def drop(self, reason: str, uids: Collection[str]) -> None:
        """Count a record that is not made for these sessions."""
        for uid in uids:
            if uid in self._ways:
                self._ways[uid].drop(reason)

    def flush(self) -> None:
        """Send what there is, and what the channel does not take a moment later."""
        self._is_due = self._is_late = False
        uids = [*self._ways]
        for at, uid in enumerate(uids):
            if not self._ways[uid].flush(self._link, partial(self._message, uid)):
                self._is_late = True
                # The next time this session is the first.
                self._ways = {each: self._ways[each] for each in uids[at:] + uids[:at]}
                if self._link.is_open:
                    self._flush_soon()
                return

    def _flush_soon(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._loop.later(MOMENT, self.flush)

    def _message(self, uid: str, records: tuple[bytes, ...], dropped: dict[str, int]) -> messages.LiveRecords:
        return messages.LiveRecords(self._link.next_seq(), uid, records, dropped)
