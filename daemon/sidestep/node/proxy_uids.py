"""User ids of pod proxies: each proxy gets its own, and its pod's IDS and inspector others.

The range of the proxies starts at 0x70000000, above what anybody assigns and below 2^31, which some tools cannot read.
Two daemons run side by side during an upgrade; each uses a block of its own, which its pid selects.
"""

from __future__ import annotations

import os

FIRST = 0x70000000
READER = FIRST - 1
"""The user id of one-shot readers of keys."""
RULES_TESTER = FIRST - 2
"""The user id of a Suricata that tests rules."""
WAF_TESTER = FIRST - 3
"""The user id of an inspector that tries rules."""
_BLOCK = 4096
_BLOCKS = 4096


def ids_uid(proxy: int) -> int:
    """The user id of the IDS beside a proxy: of a range of the same size behind that of the proxies."""
    return proxy + _BLOCKS * _BLOCK


def inspector_uid(proxy: int) -> int:
    """The user id of the inspector beside a proxy: of a third range."""
    return proxy + 2 * _BLOCKS * _BLOCK


def is_proxy(uid: int) -> bool:
    """Whether a user id belongs to a pod proxy of any daemon."""
    return FIRST <= uid < FIRST + _BLOCKS * _BLOCK


class ProxyUids:
    """Allocates the user ids of one daemon's proxies."""

    def __init__(self) -> None:
        self._first = FIRST + os.getpid() % _BLOCKS * _BLOCK
        self._taken: set[int] = set()

    def allocate(self) -> int:
        """Return the lowest free user id; it is used until it is released."""
        uid = self._first
        while uid in self._taken:
            uid += 1
        self._taken.add(uid)
        return uid

    def __len__(self) -> int:
        """The number of user ids in use."""
        return len(self._taken)

    def release(self, uid: int) -> None:
        """No process has this user id any more."""
        self._taken.discard(uid)
