"""One line of `sidestep doctor`, as people and programs get it."""

from __future__ import annotations

import msgspec


class Finding(msgspec.Struct, frozen=True):
    """One line. `state` is "ok", "missing" or "skipped" (nothing is known); `cost` is what its absence means."""

    check: str
    state: str
    essential: bool
    text: str
    cost: str = ""

    @property
    def bad(self) -> bool:
        """Whether the daemon cannot work."""
        return self.essential and self.state != "ok"
