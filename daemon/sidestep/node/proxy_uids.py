"""User ids of pod proxies: one of its own for each.

They are far above what anybody assigns, and below the 2^31 that some tools cannot read.

Two daemons run side by side during an upgrade, so each has a block of its own, chosen by its pid.
"""

from __future__ import annotations

import os

FIRST = 0x70000000
READER = FIRST - 1
"""The user that a one-shot reader becomes: no pod proxy's."""
_BLOCK = 4096
_BLOCKS = 4096


def is_proxy(uid: int) -> bool:
    """Whether a user id is one of those given to pod proxies, by whatever daemon."""
    return FIRST <= uid < FIRST + _BLOCKS * _BLOCK


class ProxyUids:
    """The user ids of one daemon's proxies."""

    def __init__(self) -> None:
        self._first = FIRST + os.getpid() % _BLOCKS * _BLOCK
        self._taken: set[int] = set()

    def take(self) -> int:
        """The lowest one that is free."""
        uid = self._first
        while uid in self._taken:
            uid += 1
        self._taken.add(uid)
        return uid

    def __len__(self) -> int:
        """How many are taken."""
        return len(self._taken)

    def give_back(self, uid: int) -> None:
        """No process has it any more."""
        self._taken.discard(uid)
