"""One line of `sidestep doctor`."""

from __future__ import annotations

import msgspec


class Finding(msgspec.Struct, frozen=True):
    """The result of one check. `state` is "ok", "missing" or "skipped" (the check could not be made).

    `cost` is what the user loses when it is missing. `sidestep doctor --output json` prints the fields: add, do not
    rename.
    """

    check: str
    state: str
    essential: bool
    text: str
    cost: str = ""

    @property
    def bad(self) -> bool:
        """Whether the daemon cannot work."""
        return self.essential and self.state != "ok"
