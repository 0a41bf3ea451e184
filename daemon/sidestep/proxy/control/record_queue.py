"""EVE records on their way to the daemon: encoded, collected for a moment, then sent.

Records of sampled requests, which may be as many as requests, are encoded together after the bytes of the connections
at hand were moved (`defer`); all others at once. They are sent within MOMENT, those that tell of a whole connection
(LATER_TYPES) within LATER: each message wakes the daemon up, and its answer this process.

The way is lossy and bounded, and never makes a client wait. A record is dropped, and counted by reason, when

    rate    the process has made more than RATE bytes of records a second
    room    WAITING bytes of records wait already
    size    it is larger than `messages.MAX_RECORD`
    daemon  as room, while the daemon does not keep up: what the channel does not take at once is sent MOMENT later

Invariant: each record is sent once, or counted once in the next `Records` that is sent. Records of sessions that get
them while they last have a way of their own (`live_records`).
"""

from __future__ import annotations

import math
import time
from collections import Counter
from typing import Final, Protocol

import msgspec

from sidestep.aio.token_bucket import TokenBucket
from sidestep.engine.inspection.samples import Sample
from sidestep.protocols.eve_records import Record
from sidestep.proxy.control import messages
from sidestep.proxy.control.daemon_link import DaemonLink
from sidestep.proxy.control.live_records import FRAME, LiveRecords, send_records
from sidestep.proxy.io.loop import Loop

MOMENT: Final = 0.02
"""Seconds for which records are collected."""
LATER: Final = 0.2
"""The same of records of LATER_TYPES ..."""
LATER_TYPES: Final = frozenset(("tls", "flow"))
ENOUGH: Final = 64 * 1024
"""... unless so many bytes of records wait."""
WAITING: Final = 512 * 1024
"""Bytes of records that wait to be sent."""
RATE: Final = 2 * 1024 * 1024
"""Bytes of records a second: part of what the daemon lets a proxy cost it (`node.proxies.proxy_process.TALK`)."""
BURST: Final = 2 * 1024 * 1024
"""Bytes of records at once."""
BATCH: Final = 64
"""Samples that are encoded together, in about 0.3 ms, even before MOMENT is over."""
LIKELY: Final = 400
"""Bytes of a record of a sample, by which is foreseen whether there is a rate for it before it is made."""

_ENCODER: Final = msgspec.msgpack.Encoder()


class Maker(Protocol):
    """Whoever makes records of samples: the records of a connection."""

    def encode(self, at: int, sample: Sample) -> bytes:
        """The record of a sample as MessagePack; `at` is in nanoseconds since 1970."""


class RecordQueue:
    """The records of a process. `wanted` says whether they are written to a log; while not, none are sent, and new
    connections should make none but for sessions (`live`).
    """

    def __init__(self, loop: Loop, link: DaemonLink) -> None:
        self._loop = loop
        self._link = link
        self._records: list[bytes] = []
        self._size = 0
        """Bytes of the records, and of what samples keep."""
        self._samples: list[tuple[Maker, int, Sample]] = []
        self._samples_size = 0
        self._at = loop.now, time.time_ns()
        """The time of the loop, and what is told of samples meanwhile: taking and writing it for each costs a tenth."""
        self._room = 0
        """Samples that may be in `_samples`, as far as the rate is concerned."""
        self._due = math.inf
        """When the next flush comes, by the loop's clock."""
        self._is_late = False
        """Whether the daemon did not take all of what there was."""
        self._dropped: Counter[str] = Counter()
        self._bucket = TokenBucket(rate=RATE, burst=BURST, now=loop.now)
        self.live = LiveRecords(loop, link)
        self.wanted = False

    @property
    def now(self) -> float:
        """The time, in monotonic seconds."""
        return self._loop.now

    def limit(self, part: float) -> None:
        """Keep to this part of RATE."""
        self._bucket.change_rate(RATE * part)

    def add(self, record: Record) -> None:
        """Queue a record, if anybody reads it."""
        if not self.wanted:
            return
        if self._samples:
            self._encode()  # records stay in the order of time
        is_found = record.event_type not in LATER_TYPES or self._size > ENOUGH
        self._put(_ENCODER.encode(record), within=MOMENT if is_found else LATER)

    def defer(self, maker: Maker, sample: Sample) -> None:
        """Have a record of a sample made soon, if anybody reads it and there is room for it."""
        samples = self._samples
        if len(samples) >= self._room and not self._has_room():
            return
        size = sample.size
        if self._size + size > WAITING:
            self._drop_for_room()
            return
        self._size += size
        self._samples_size += size
        now = self._loop.now
        if now != self._at[0]:
            self._at = now, time.time_ns()
        samples.append((maker, self._at[1], sample))
        if len(samples) == BATCH:
            self._loop.later(0.0, self._encode)

    def _has_room(self) -> bool:
        """Whether the rate has room for a sample; see that it is sent."""
        if not self.wanted:
            return False
        self._flush_within(MOMENT)
        if not self._samples:
            self._room = int(self._bucket.level(self._loop.now) / LIKELY)
        if len(self._samples) >= self._room:
            self.drop("rate")
            return False
        return True

    def _encode(self) -> None:
        """Make the records of samples."""
        samples, self._samples = self._samples, []
        self._size -= self._samples_size
        self._samples_size = self._room = 0
        made = [maker.encode(at, sample) for maker, at, sample in samples]
        size = sum(map(len, made))
        waiting = self._size + size + FRAME * len(made)
        largest = max(map(len, made), default=0)
        # Nearly always there is room and rate for all of them, and asking once costs little.
        if waiting <= WAITING and largest <= messages.MAX_RECORD and self._bucket.take(self._loop.now, size):
            self._records += made
            self._size = waiting
            return
        for data in made:
            self._put(data)

    def _flush_within(self, seconds: float) -> None:
        due = self._loop.now + seconds
        if due < self._due:
            self._due = due
            self._loop.later(seconds, self.flush)

    def _put(self, data: bytes, *, within: float = MOMENT) -> None:
        if len(data) > messages.MAX_RECORD:
            self.drop("size")
        elif self._size + len(data) > WAITING:
            self._drop_for_room()
        elif not self._bucket.take(self._loop.now, len(data)):
            self.drop("rate")
        else:
            self._flush_within(within)
            self._records.append(data)
            self._size += len(data) + FRAME

    def drop(self, reason: str) -> None:
        """Count a record that is not made, or not sent."""
        if self.wanted:
            self._dropped[reason] += 1

    def _drop_for_room(self) -> None:
        self.drop("daemon" if self._is_late else "room")

    def flush(self) -> None:
        """Send what there is: records, and how many were dropped; what the channel does not take, a moment later."""
        self._due = math.inf
        self._encode()
        self._size -= send_records(self._link, self._records, self._dropped, self._message)
        self._is_late = bool(self._records or self._dropped)
        if self._is_late and self._link.is_open:
            self._flush_within(MOMENT)
        self.live.flush()

    def _message(self, records: tuple[bytes, ...], dropped: dict[str, int]) -> messages.Records:
        return messages.Records(self._link.next_seq(), records, dropped)
