"""How long to wait before repeating work whose cost grows with the node: planning, telling sessions.

Every change makes such work due, and the work costs more the more there is. Done once per change, a node with many
sessions would spend all its time on it while changes pile up. Changes are therefore gathered for a pause that grows
with the cost of the last round, so that the work takes at most SHARE of the event loop's time. Pure: the caller
measures.
"""

from __future__ import annotations

from dataclasses import dataclass

SHARE = 0.2
"""The part of the loop's time that one kind of work may take while there is always more of it."""


@dataclass(slots=True)
class Pace:
    """`least` and `most` bound the pause, in seconds."""

    least: float
    most: float
    pause: float = 0.0
    """Seconds to wait before the work is done again."""

    def __post_init__(self) -> None:
        self.pause = self.least

    def took(self, seconds: float) -> None:
        """Note how many seconds the work took; sets the next pause."""
        self.pause = min(max(self.least, seconds * (1 / SHARE - 1)), self.most)
