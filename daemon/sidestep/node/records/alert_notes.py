"""What a cluster is told of alerts in Events: a line for each pod, rule and outcome, and seldom. Pure: `now` is given.

The first alert is told at once, the ones after it together, as a number, AGAIN seconds later at the earliest. At most
MOST pods and rules are waited for; alerts of further ones stand in the records only. Where there is no room, a
namespace that has more of them than another gives way to it, so that no namespace keeps another's from being told.
"""

from __future__ import annotations

from typing import Final

import msgspec

from sidestep.model.pod import PodKey
from sidestep.protocols.eve_records import RecordedAction

AGAIN: Final = 600.0
"""Seconds between two Events about one rule on one pod."""
MOST: Final = 1024

_DONE: Final = {
    RecordedAction.ALERT: "applied to",
    RecordedAction.WOULD_BLOCK: "would have blocked",
    RecordedAction.BLOCK: "blocked",
}


class AlertKey(msgspec.Struct, frozen=True):
    """What is told as one line."""

    pod: PodKey
    policy: str
    rule: str
    action: RecordedAction


class AlertNotes:
    """The alerts that were not told yet, and when others were."""

    def __init__(self) -> None:
        self._counts: dict[str, dict[AlertKey, int]] = {}
        """By namespace."""
        self._size = 0
        self._told: dict[AlertKey, float] = {}

    def note(self, pod: PodKey, policy: str, rule: str, action: RecordedAction) -> None:
        """Count an alert."""
        key = AlertKey(pod, policy, rule, action)
        mine = self._counts.get(pod.namespace, {})
        if key not in mine:
            if self._size >= MOST and not self._make_room(len(mine)):
                return
            self._size += 1
            self._counts[pod.namespace] = mine
        mine[key] = mine.get(key, 0) + 1

    def _make_room(self, mine: int) -> bool:
        """Forget the newest of the namespace that has most, if that is more than `mine` and one."""
        most = max(self._counts.values(), key=len)
        if len(most) <= mine + 1:
            return False
        most.popitem()
        self._size -= 1
        return True

    def due(self, now: float) -> list[AlertKey]:
        """Return what may be told now, in monotonic seconds."""
        self._told = {key: when for key, when in self._told.items() if now - when < AGAIN}
        return [key for keys in self._counts.values() for key in keys if key not in self._told]

    def tell(self, key: AlertKey, now: float) -> str:
        """Return the text about something that was due, which counts as told then; "" if it had to make room since."""
        mine = self._counts.get(key.pod.namespace, {})
        count = mine.pop(key, 0)
        if not count:
            return ""
        self._size -= 1
        if not mine:
            del self._counts[key.pod.namespace]
        self._told[key] = now
        requests = "a request" if count == 1 else f"{count} requests"
        return f"policy {key.policy}, rule {key.rule} {_DONE[key.action]} {requests}"
