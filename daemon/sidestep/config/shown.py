"""Checks what a session asks to be shown (`model.shown`), for command line, socket and resources alike."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from sidestep.config.durations import format_duration, parse_duration
from sidestep.model.errors import ConfigurationError
from sidestep.model.intercept import Intercept, SessionKind
from sidestep.model.shown import MAX_LAST, MAX_SINCE, MAX_STATUSES, Shown

STATUS: Final = re.compile(r"[1-5]xx|[1-9][0-9][0-9]|none")
MIN_SINCE: Final = 0.001


def since_of(text: str, *, subject: str) -> float:
    """Return the seconds of a duration like `10m`, 0.0 for "". Raises ConfigurationError."""
    return parse_duration(text, minimum=MIN_SINCE, maximum=MAX_SINCE, subject=subject) if text else 0.0


def shown_of(statuses: Iterable[str], *, since: float, last: int) -> Shown:
    """Return what is shown. Raises ConfigurationError with the field."""
    found = tuple(dict.fromkeys(statuses))
    if len(found) > MAX_STATUSES:
        raise ConfigurationError(f"has more than {MAX_STATUSES} entries", subject="statuses", value="")
    for status in found:
        if not STATUS.fullmatch(status):
            reason = "is no status such as 404, no class such as 5xx, and not none"
            raise ConfigurationError(reason, subject="statuses", value=status[:100])
    if not 0 <= last <= MAX_LAST:
        raise ConfigurationError(f"must be between 1 and {MAX_LAST}", subject="last", value=str(last))
    if not 0 <= since <= MAX_SINCE:
        reason = f"must be between {format_duration(MIN_SINCE)} and {format_duration(MAX_SINCE)}"
        raise ConfigurationError(reason, subject="since", value=str(since))
    return Shown(found, since, last)


def check_shown(intercept: Intercept) -> None:
    """Raise ConfigurationError for a session that may not be shown what it asks for.

    Earlier requests are those of everybody. To be shown them takes the right to flows, which is that to a wiretap.
    """
    if not intercept.shown.wants_earlier:
        return
    if intercept.session_kind is not SessionKind.WIRETAP:
        raise ConfigurationError("only flows and wiretaps are shown earlier requests", subject="since, last", value="")
    if not intercept.reads_requests or intercept.egress:
        reason = "nothing is kept of connections that are copied whole, or that the pod makes"
        raise ConfigurationError(reason, subject="since, last", value="")
