"""Tells the daemon at once what keeps this process from serving; the daemon unsteers the ports, and the app serves.

Whenever a hindrance comes or goes, the daemon is sent all that there are. It decides which ports it unsteers, and for
how long. Three hindrances concern the whole process:

    no-room          the descriptors in use exceed FULL of the limit (`Room`), until they are below EASED of it. Up to
                     the limit, connections that are in a queue are still accepted
    no-descriptors   the kernel refused one (EMFILE, ENFILE, ENOMEM …), until a try, once a second, succeeds
    no-memory        an allocation failed in the last MEMORY_PAUSE seconds

Others come from dials (`app_dials`) and listeners (`runtime.listeners`). The limit of descriptors is read again now and
then: it can be lowered from outside (prlimit(2)).
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
"""Errors of the kernel that mean: no descriptors, files, memory for them, or epoll watches (epoll(7)) are left."""
TRY: Final = 1.0
"""Seconds between two tries to get descriptors."""
TRIED: Final = 4
"""Descriptors that a try has to get at once."""
MEMORY_PAUSE: Final = 5.0

RESERVED: Final = 64
"""Descriptors kept free of connections: listeners, credentials, the channel, a probe or two."""
FULL: Final = 0.9
EASED: Final = 0.75
"""Shares of the descriptors for connections."""


class Usage(Protocol):
    """Counts descriptors."""

    def descriptors(self) -> int:
        """Descriptors that are in use, or will be needed for connections that were accepted."""


class Readiness:
    """All hindrances of the process."""

    def __init__(self, loop: Loop, link: DaemonLink) -> None:
        self._loop = loop
        self._link = link
        self._hindrances: dict[tuple[str, int, int], Hindrance] = {}
        self._memory_asked = 0

    def hinder(self, hindrance: Hindrance) -> None:
        """Note that something keeps the process from serving."""
        key = hindrance.kind, hindrance.port, hindrance.family
        if key not in self._hindrances:
            self._hindrances[key] = hindrance
            self._tell()

    def clear(self, hindrance: Hindrance) -> None:
        """Note that a hindrance is gone."""
        if self._hindrances.pop((hindrance.kind, hindrance.port, hindrance.family), None) is not None:
            self._tell()

    def keep_ports(self, ports: Container[int]) -> None:
        """Forget hindrances of other ports, which the daemon has removed."""
        for key in [key for key in self._hindrances if key[1] and key[1] not in ports]:
            del self._hindrances[key]

    def exhausted(self, error: int) -> None:
        """Note that the kernel refused a descriptor. `error` is its errno."""
        if ("no-descriptors", 0, 0) not in self._hindrances:
            self.hinder(Hindrance("no-descriptors", error=error))
            self._loop.later(TRY, self._try)

    def out_of_memory(self) -> None:
        """Note that an allocation failed."""
        self._memory_asked += 1
        asked = self._memory_asked
        self.hinder(NO_MEMORY)

        def over() -> None:
            if asked == self._memory_asked:
                self.clear(NO_MEMORY)

        self._loop.later(MEMORY_PAUSE, over)

    def _try(self) -> None:
        """Try to get descriptors; clear the hindrance if that works, else try again later."""
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
    """Whether there are descriptors for more connections."""

    def __init__(self, readiness: Readiness, usage: Usage) -> None:
        self._readiness = readiness
        self._usage = usage
        self._limit = 0
        self._full = False
        self.look()

    def look(self) -> None:
        """Read the limit, and see whether there is room again."""
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._limit = max(1, files - min(RESERVED, files // 4))
        self._compare(self._usage.descriptors())

    def is_left(self) -> bool:
        """Whether another connection can be accepted. The daemon is told before there is no room at all."""
        used = self._usage.descriptors()
        self._compare(used)
        return used < self._limit

    def is_half_left(self) -> bool:
        """Whether half of the descriptors is free: for connections that must not keep clients out."""
        return self._usage.descriptors() < self._limit // 2

    @property
    def is_short(self) -> bool:
        """Whether the last descriptors are reserved for connections that are served: nothing optional is opened."""
        return self._full and self._usage.descriptors() >= self._limit

    def _compare(self, used: int) -> None:
        if not self._full and used >= FULL * self._limit:
            self._full = True
            self._readiness.hinder(NO_ROOM)
        elif self._full and used <= EASED * self._limit:
            self._full = False
            self._readiness.clear(NO_ROOM)
