"""Decides how long ports are left to the app because of what a pod proxy reports that it cannot do.

Pure: `now` is an argument, in seconds of a monotonic clock. A proxy reports all its *hindrances* at once, whenever one
comes or goes. Each is about all ports or one, and about both address families or one. A hindrance is

    present   from the report until a report without it: what it is about is left to the app
    held      for a pause after it was withdrawn, or its process ended: what it is about is still left to the app
    over      after the pause; remembered for `CALM` seconds

A hindrance that comes back while it is remembered has a pause twice as long, up to `LAST_PAUSE`.

Reports are not trusted: a false one leaves the proxy's own pod to its app, and affects nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sidestep.model.pod import Family
from sidestep.snapshots.hindrance import Hindrance

if TYPE_CHECKING:
    from collections.abc import Iterator

FIRST_PAUSE = 2.0
LAST_PAUSE = 60.0
"""Seconds for which ports stay with the app after a hindrance is over: first, doubling up to the last."""

CALM = 60.0
"""Seconds after which a hindrance that returns is a first one again."""

ALL_PORTS = 0
"""Stands for every port."""

_TEXTS = {
    "no-room": "the pod proxy has no room for more connections",
    "no-descriptors": "the pod proxy cannot open more files",
    "no-memory": "the pod proxy has no memory left",
    "cannot-accept": "the pod proxy cannot accept connections",
    "cannot-dial": "the app cannot be reached from inside the pod",
}
KINDS = frozenset(_TEXTS)
"""The hindrances there are."""

_FAMILIES = {Family.IPV4: "over IPv4", Family.IPV6: "over IPv6"}


@dataclass(slots=True)
class _Course:
    """One hindrance, from when it was first told."""

    hindrance: Hindrance
    pause: float = FIRST_PAUSE
    present: bool = True
    until: float = 0.0
    """The end of the pause, once it is not present."""
    is_seen_over: bool = False
    """The end of the pause has been noticed."""

    def blocks(self, now: float) -> bool:
        """Whether what it is about is left to the app."""
        return self.present or now < self.until


class Readiness:
    """The hindrances of one pod's proxy, across restarts of its process."""

    def __init__(self) -> None:
        self._courses: dict[tuple[int, int], dict[str, _Course]] = {}
        """By what they are about (port, family), and by kind."""

    def told(self, hindrances: Collection[Hindrance], now: float) -> None:
        """Replace the hindrances by those that the proxy reports now."""
        named = {(each.port, each.family, each.kind) for each in hindrances}
        for about, courses in list(self._courses.items()):
            for kind, course in list(courses.items()):
                if (*about, kind) not in named:
                    self._take_back(course, now)
                    if now - course.until > CALM:
                        del courses[kind]
            if not courses:
                del self._courses[about]
        for hindrance in hindrances:
            courses = self._courses.setdefault((hindrance.port, hindrance.family), {})
            courses[hindrance.kind] = self._course(hindrance, courses.get(hindrance.kind), now)

    def process_gone(self, now: float) -> None:
        """The proxy's process has ended: every hindrance it reported is taken back."""
        self.told((), now)

    @staticmethod
    def _take_back(course: _Course, now: float) -> None:
        if course.present:
            course.present, course.until = False, now + course.pause

    @staticmethod
    def _course(hindrance: Hindrance, known: _Course | None, now: float) -> _Course:
        if known is None:
            return _Course(hindrance)
        if known.present:
            return _Course(hindrance, known.pause)
        return _Course(hindrance, min(2 * known.pause, LAST_PAUSE) if now - known.until <= CALM else FIRST_PAUSE)

    def reason(self, number: int, family: Family, now: float) -> str:
        """Why a family of a port is left to the app; empty when it need not be."""
        texts = [_text(each.hindrance) for each in self._about(number, family) if each.blocks(now)]
        return ", ".join(dict.fromkeys(texts))

    def is_hindered(self, number: int) -> bool:
        """Whether the proxy says now that it cannot serve a port, in whatever family."""
        return any(each.present for family in Family for each in self._about(number, family))

    def is_watched(self, now: float) -> bool:
        """Whether something is going to change by itself, or just has: a pause goes on, or is over."""
        watched = False
        for courses in self._courses.values():
            for course in courses.values():
                if not (course.present or course.is_seen_over):
                    watched = True
                    course.is_seen_over = now >= course.until
        return watched

    def _about(self, number: int, family: Family) -> Iterator[_Course]:
        if self._courses:
            for about in ((0, 0), (0, family.value), (number, 0), (number, family.value)):
                yield from self._courses.get(about, {}).values()


def _text(hindrance: Hindrance) -> str:
    words = [_TEXTS.get(hindrance.kind, "the pod proxy is not ready")]
    family = next((each for each in Family if each.value == hindrance.family), None)
    if family is not None:
        words.append(_FAMILIES[family])
    text = " ".join(words)
    return f"{text} ({os.strerror(hindrance.error)})" if hindrance.error else text
