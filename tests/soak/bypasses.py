"""Whether each blocked request that reached the app is counted: a policy with `failurePolicy: Fail` leaves no other.

While a daemon lives nothing may reach the app, whatever is killed. While none runs everything does. Then the next
daemon has to record the gap, and to count for how long ports were open until it had programmed them; connections that
began in that time may go on.
"""

from __future__ import annotations

import datetime as dt
import json
import time
from dataclasses import dataclass
from typing import Any

from tests.harness import scene
from tests.soak.traffic import PASSED, Outcome

SLACK = 0.5
"""Seconds between a moment and the time that is told of it."""


@dataclass(frozen=True)
class Gap:
    """No daemon ran from `start` to `end` (monotonic seconds); ports were open `after` seconds longer."""

    start: float
    end: float
    after: float

    def has(self, moment: float) -> bool:
        """Whether ports were open then."""
        return self.start - SLACK <= moment <= self.end + self.after + SLACK


class Bypasses:
    """Collects the gaps that a scene's daemons tell of."""

    def __init__(self, shop: scene.Shop) -> None:
        self._shop = shop
        self._seen: set[str] = set()
        """When the gaps began that were read, as records tell it."""
        self.gaps: list[Gap] = []
        self.wrong: list[str] = []

    def ended(self, moment: float) -> None:
        """A daemon ended at this moment without a successor, and the next one has settled: the gap must be told."""
        offset = time.time() - time.monotonic()
        found = [each for each in self._told() if each["start"] not in self._seen]
        self._seen |= {each["start"] for each in found}
        for each in found:
            start, end = (dt.datetime.fromisoformat(each[name]).timestamp() - offset for name in ("start", "end"))
            self.gaps.append(Gap(start, end, self._open_seconds()))
        if not any(each.start <= moment + SLACK and each.end >= moment for each in self.gaps[-1:]):
            self.wrong.append(f"no record of the gap at {moment:.2f}: {found}")

    def _told(self) -> list[dict[str, Any]]:
        """The gaps in all files of the log, which is rotated meanwhile; a line that is being written does not count."""
        paths = self._shop.node.folder.glob("eve.json*")
        lines = [line for path in paths for line in path.read_bytes().split(b"\n")[:-1] if b'"gap":{' in line]
        return [json.loads(line)["sidestep"]["gap"] for line in lines]

    def judge(self, outcomes: list[Outcome]) -> int:
        """Find what was not counted; returns how many requests passed."""
        passed = [each for each in outcomes if each.problem == PASSED]
        for each in passed:
            if not any(gap.has(each.began) or gap.has(each.ended) for gap in self.gaps):
                self.wrong.append(f"{each.kind} at {each.began:.2f}-{each.ended:.2f}: a bypass that is not counted")
        return len(passed)

    def text(self) -> str:
        """For people."""
        seconds = sum(each.end - each.start for each in self.gaps)
        after = sum(each.after for each in self.gaps)
        return (
            f"{len(self.gaps)} gaps of {seconds:.1f} s stand in the records, {after:.1f} s open after them are counted"
        )

    def _open_seconds(self) -> float:
        """The seconds for which ports were open since the daemon began, at most: those of all ports together."""
        status: dict[str, Any] = self._shop.node.status() or {"pods": []}
        found = [each for pod in status["pods"] for each in pod["uninspected"]]
        return sum(each["seconds"] for each in found if each["outcome"] == "open" and each["reason"] != "no-daemon")
