"""What a capture of decrypted traffic may ask for: how long it lasts, and how much it sends.

Every capture has both bounds, and the node daemon keeps them, whatever its session does.
"""

from __future__ import annotations

from sidestep.config.durations import format_duration, parse_duration
from sidestep.model.errors import ConfigurationError

MIN_DURATION, MAX_DURATION = 0.1, 24 * 3600.0
"""Seconds."""
DEFAULT_DURATION = "1h"
MIN_BYTES, MAX_BYTES = 1024, 1024**4
DEFAULT_BYTES = 1024**3


def duration_of(text: str, *, subject: str) -> float:
    """Return the seconds of a duration like 60s. Raises ConfigurationError for what is none, or beyond the bounds."""
    return parse_duration(text, minimum=MIN_DURATION, maximum=MAX_DURATION, subject=subject)


def seconds_of(seconds: float, *, subject: str) -> float:
    """Return a duration in seconds; 0 is the default. Raises ConfigurationError beyond the bounds."""
    if not seconds:
        return duration_of(DEFAULT_DURATION, subject=subject)
    if not MIN_DURATION <= seconds <= MAX_DURATION:
        reason = f"must be between {format_duration(MIN_DURATION)} and {format_duration(MAX_DURATION)}"
        raise ConfigurationError(reason, subject=subject, value=f"{seconds:g} s")
    return seconds


def size_of(size: int, *, subject: str) -> int:
    """Return a number of bytes; 0 is the default. Raises ConfigurationError beyond the bounds."""
    if size and not MIN_BYTES <= size <= MAX_BYTES:
        raise ConfigurationError(f"must be between {MIN_BYTES} and {MAX_BYTES}", subject=subject, value=str(size)[:30])
    return size or DEFAULT_BYTES
