"""Takes records of pod proxies for sessions that get them while they last (`sidestep inspect`).

They are checked as those of the log are (`checking`), and the dispatcher has seen that the session covers the pod. Each
session has a `Feed`, which never waits. What finds no room is counted by reason, and told to the session:

    connection, rate, room, size, daemon    the pod proxy did not make or send it (`proxy.control.record_queue`)
    refused                                 the pod proxy may not send it
    node                                    all sessions of the node together get more than RATE bytes a second
    reader                                  the session does not read as fast (`node.sessions.record_feed`)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, Protocol

from sidestep.aio.token_bucket import TokenBucket
from sidestep.node.records.checking import checked, decode, whose
from sidestep.node.records.recent_alerts import RecentAlerts
from sidestep.protocols import eve

if TYPE_CHECKING:
    from sidestep.model.pod import Pod
    from sidestep.node.records.checking import Rules
    from sidestep.proxy.control.messages import LiveRecords

RATE: Final = 4 * 1024 * 1024
"""Bytes of encoded records a second that are checked for sessions, of all pods together ..."""
BURST: Final = 4 * 1024 * 1024
"""... and at once."""
FROM_PROXIES: Final = frozenset(("connection", "rate", "room", "size", "daemon"))
"""Reasons that proxies give."""
REASONS: Final = FROM_PROXIES | {"refused", "node", "reader", "other"}
_MOST: Final = 1 << 32
"""Records that a proxy may say at once that it did not send."""


class Feed(Protocol):
    """The records of one session."""

    def put(self, line: bytes, pod: str) -> None:
        """Send a line, or count it as lost."""

    def lose(self, pod: str, reason: str, count: int) -> None:
        """Count records of a pod that are not sent."""


class LiveRecordRelay:
    """See the module. `feed` finds the feed of a session by its uid; None if it is gone, or gets no records.

    Alerts are noted in `recent`.
    """

    def __init__(
        self,
        *,
        node: str,
        feed: Callable[[str], Feed | None],
        names: Callable[[], Mapping[int, str]] = dict,
        recent: RecentAlerts | None = None,
    ) -> None:
        self._names = names
        self._recent = recent or RecentAlerts()
        self._node = node
        self._feed = feed
        self._bucket = TokenBucket(rate=RATE, burst=BURST, now=time.monotonic())

    def take(self, pod: Pod, message: LiveRecords, rules: Rules) -> None:
        """Take records of a pod's proxy. Raises PeerError for what is no record."""
        feed = self._feed(message.uid)
        if feed is None:
            return
        name = str(pod.key)
        for reason, count in message.dropped.items():
            if 0 < count < _MOST:
                feed.lose(name, reason if reason in FROM_PROXIES else "other", count)
        if not self._bucket.take(time.monotonic(), sum(map(len, message.records))):
            feed.lose(name, "node", len(message.records))
            return
        now = time.time_ns()
        kubernetes = whose(pod, self._node)
        for data in message.records:
            made = checked(decode(data), rules=rules, kubernetes=kubernetes, now=now, names=self._names())
            line = b"" if made is None else eve.encode(made)
            if made is not None and len(line) <= eve.MAX_RECORD:
                self._recent.note(made, line)
                feed.put(line, name)
            else:
                feed.lose(name, "refused", 1)
