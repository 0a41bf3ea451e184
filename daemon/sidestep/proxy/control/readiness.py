"""What keeps this process from serving, and telling the daemon of it at once, so that the app serves meanwhile.

Level-triggered: the daemon is told all *hindrances* there are, whenever one comes or goes, and decides what is left to
the app and for how long. Here are those that concern the whole process:

    room         descriptors are reckoned as they are used (`Room`); above FULL of them the daemon is told, below EASED
                 it is told that there is room again; up to the limit whoever is in a queue is still served
    descriptors  the kernel refused one (EMFILE, ENFILE, ENOMEM …): told until, tried once a second, it gives some again
    memory       an allocation failed: told for MEMORY_PAUSE seconds

The limit is asked for again now and then: it can be lowered from outside (prlimit(2)).
"""

from __future__ import annotations

import errno
import resource
import socket
from collections.abc import Container
from typing import Final, Protocol

from sidestep.proxy.control import messages
from sidestep.proxy.control.daemon_link import DaemonLink
from sidestep.proxy.io.loop import Loop
from sidestep.snapshots.hindrance import Hindrance

NO_ROOM: Final = Hindrance("no-room")
NO_MEMORY: Final = Hindrance("no-memory")

EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC})
"""Errors by which the kernel says that it is out of descriptors, files, memory for them, or watches (epoll(7))."""
TRY: Final = 1.0
"""Seconds between two tries whether descriptors can be had again."""
TRIED: Final = 4
"""Descriptors that have to be had at once."""
MEMORY_PAUSE: Final = 5.0

RESERVED: Final = 64
"""Descriptors kept free of connections: listeners, credentials, the channel, a probe or two."""
FULL: Final = 0.9
EASED: Final = 0.75
"""Shares of the descriptors for connections."""


class Usage(Protocol):
    """What tells how many descriptors are used."""

    def descriptors(self) -> int:
        """Those that are used now or will be for what has been accepted."""


class Readiness:
    """All hindrances of the process."""

    def __init__(self, loop: Loop, link: DaemonLink) -> None:
        self._loop = loop
        self._link = link
        self._hindrances: dict[tuple[str, int, int], Hindrance] = {}
        self._memory_asked = 0

    def hinder(self, hindrance: Hindrance) -> None:
        """Something keeps the process from serving."""
        key = hindrance.kind, hindrance.port, hindrance.family
        if key not in self._hindrances:
            self._hindrances[key] = hindrance
            self._tell()

    def clear(self, hindrance: Hindrance) -> None:
        """The hindrance is gone."""
        if self._hindrances.pop((hindrance.kind, hindrance.port, hindrance.family), None) is not None:
            self._tell()

    def keep_ports(self, ports: Container[int]) -> None:
        """Forget what was about other ports; the daemon knows that they are gone."""
        for key in [key for key in self._hindrances if key[1] and key[1] not in ports]:
            del self._hindrances[key]

    def exhausted(self, error: int) -> None:
        """The kernel gave no descriptor."""
        if ("no-descriptors", 0, 0) not in self._hindrances:
            self.hinder(Hindrance("no-descriptors", error=error))
            self._loop.later(TRY, self._try)

    def out_of_memory(self) -> None:
        """An allocation failed."""
        self._memory_asked += 1
        asked = self._memory_asked
        self.hinder(NO_MEMORY)

        def over() -> None:
            if asked == self._memory_asked:
                self.clear(NO_MEMORY)

        self._loop.later(MEMORY_PAUSE, over)

    def _try(self) -> None:
        """See whether descriptors can be had again."""
        had: list[socket.socket] = []
        try:
            for _ in range(TRIED):
                had.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))  # noqa: PERF401 - kept if one fails
        except OSError:
            self._loop.later(TRY, self._try)
        else:
            self.clear(Hindrance("no-descriptors"))
        finally:
            for sock in had:
                sock.close()

    def _tell(self) -> None:
        hindrances = tuple(self._hindrances.values())[: messages.MAX_HINDRANCES]
        self._link.send(messages.Hindered(self._link.next_seq(), hindrances))


class Room:
    """How many connections can be taken yet, reckoned in descriptors."""

    def __init__(self, readiness: Readiness, usage: Usage) -> None:
        self._readiness = readiness
        self._usage = usage
        self._limit = 0
        self._full = False
        self.look()

    def look(self) -> None:
        """Ask for the limit, and see whether there is room again."""
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._limit = max(1, files - min(RESERVED, files // 4))
        self._judge(self._usage.descriptors())

    def is_left(self) -> bool:
        """Whether another connection can be taken. The daemon is told before there is no room at all."""
        used = self._usage.descriptors()
        self._judge(used)
        return used < self._limit

    @property
    def is_short(self) -> bool:
        """Whether descriptors are kept for those who are served: nothing is opened that can be done without."""
        return self._full and self._usage.descriptors() >= self._limit

    def _judge(self, used: int) -> None:
        if not self._full and used >= FULL * self._limit:
            self._full = True
            self._readiness.hinder(NO_ROOM)
        elif self._full and used <= EASED * self._limit:
            self._full = False
            self._readiness.clear(NO_ROOM)
