"""Which of its requests a session is shown: by the status of the answer, and earlier ones that the pod proxy has kept.

    statuses   only requests answered so: a status (`404`), a class (`5xx`), or `none`: not answered. Empty: all
    since      earlier requests of so many seconds before the session began; 0: no such bound
    last       at most so many earlier requests, the latest; 0: no such bound

Without `since` and `last` no earlier requests are shown. Earlier requests are those of the ring of a port
(`proxy.mirror.recent_requests`), and match the session's filter as they are shown: a redacted value matches nothing
but what asks whether there is one.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import msgspec

NOT_ANSWERED: Final = "none"
MAX_STATUSES: Final = 32
MAX_LAST: Final = 1000
"""Requests: a ring has no more."""
MAX_SINCE: Final = 86400.0
"""Seconds."""


def is_wanted(status: int, statuses: Collection[str]) -> bool:
    """Whether a request with this status (0: not answered) is one of `statuses`; without any, all are."""
    if not statuses:
        return True
    if not status:
        return NOT_ANSWERED in statuses
    text = str(status)
    return text in statuses or f"{text[0]}xx" in statuses


class Shown(msgspec.Struct, frozen=True):
    """See the module."""

    statuses: tuple[str, ...] = ()
    since: float = 0.0
    last: int = 0

    @property
    def wants_earlier(self) -> bool:
        """Whether earlier requests are shown."""
        return bool(self.since or self.last)
