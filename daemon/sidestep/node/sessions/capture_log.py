"""Says in the daemon's log who captures or inspects what, and at the end for how long.

The words about captures are those of a cluster's Events, too.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from sidestep.config.durations import format_duration
from sidestep.config.filters import describe_filter
from sidestep.model.intercept import Snap
from sidestep.observability.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sidestep.model.intercept import Intercept
    from sidestep.node.sessions.capture_bounds import CaptureBounds

_WHAT = {Snap.HEADS: "heads, with secrets redacted,", Snap.ALL: "every byte"}


@contextlib.contextmanager
def captures_told(intercept: Intercept, bounds: CaptureBounds) -> Iterator[None]:
    """Log that a capture begins, and what it was when it has ended."""
    log = get_logger("sessions").bind(name=intercept.display, by=intercept.owner, what=what_is_captured(intercept))
    log.warning("a capture of decrypted traffic begins", most=most_of(intercept))
    try:
        yield
    finally:
        seconds = round(bounds.seconds, 1)
        log.warning("a capture of decrypted traffic has ended", seconds=seconds, bytes=bounds.sent)


@contextlib.contextmanager
def inspection_told(intercept: Intercept) -> Iterator[None]:
    """Log that somebody gets records of inspection, and how long it took."""
    log = get_logger("sessions").bind(name=intercept.display, by=intercept.owner, what=_scope(intercept))
    log.info("an inspection begins", records=intercept.records.value)
    began = time.monotonic()
    try:
        yield
    finally:
        log.info("an inspection has ended", seconds=round(time.monotonic() - began, 1))


def what_is_captured(intercept: Intercept) -> str:
    """Return what a capture is of, for a person."""
    return f"{_WHAT[intercept.capture]} of {_scope(intercept)}"


def _scope(intercept: Intercept) -> str:
    pods = f"pod {intercept.pod}" if intercept.pod else "all pods"
    place = "outbound" if intercept.egress else f"port {intercept.port}"
    return f"{intercept.workload}, {place}, {pods}, {describe_filter(intercept.filter)}"


def most_of(intercept: Intercept) -> str:
    """Return the bounds of a capture, for a person."""
    return f"{format_duration(intercept.duration)} and {intercept.max_bytes} bytes from each node"
