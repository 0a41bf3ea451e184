"""Durations as users write them: `10s`, `500ms`, `1m30s`, `1.5h`.

Every number has a unit, so `30` is an error. Units are h, m, s and ms, each at most once, largest first. Results are in
seconds. Bounds belong to the individual setting, hence the required arguments `minimum` and `maximum`.
"""

from __future__ import annotations

import re

from sidestep.model.errors import ConfigurationError

MAX_LENGTH = 32
"""Characters of a duration."""

_NUMBER = r"[0-9]{1,9}(?:\.[0-9]{1,9})?"
_SYNTAX = re.compile(
    rf"(?=[0-9])(?:(?P<h>{_NUMBER})h)?(?:(?P<m>{_NUMBER})m(?!s))?(?:(?P<s>{_NUMBER})s)?(?:(?P<ms>{_NUMBER})ms)?"
)
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


def parse_duration(text: str, *, minimum: float, maximum: float, subject: str = "") -> float:
    """Parse a duration; returns seconds, between `minimum` and `maximum` seconds (inclusive).

    Raises ConfigurationError with `subject` and the text when it is not a duration or out of bounds.
    """
    matched = _SYNTAX.fullmatch(text) if len(text) <= MAX_LENGTH else None
    if matched is None:
        reason = "not a duration: write number and unit, like 10s, 500ms or 1m30s"
        raise ConfigurationError(reason, subject=subject, value=text[: MAX_LENGTH * 2])
    seconds = sum(float(number) * _SECONDS[unit] for unit, number in matched.groupdict(default="0").items())
    if not minimum <= seconds <= maximum:
        reason = f"must be between {format_duration(minimum)} and {format_duration(maximum)}"
        raise ConfigurationError(reason, subject=subject, value=text)
    return seconds


def format_duration(seconds: float) -> str:
    """Return the shortest text that `parse_duration` parses to these seconds, with millisecond precision: `1m30s`,
    `500ms`.
    """
    milliseconds = round(seconds * 1000)
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    whole, fraction = divmod(rest, 1000)
    parts = ((hours, "h"), (minutes, "m"), (whole, "s"), (fraction, "ms"))
    return "".join(f"{number}{unit}" for number, unit in parts if number) or "0s"
