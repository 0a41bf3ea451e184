"""Where the pods of this node are: their processes, looked for when they should be there, verified now and then.

The kubelet reports a pod before its processes exist, and a container that runs again under another id. States of a
container, and of its entry in `Location.pids`:

    absent     not running, by the kubelet's report: it has no process here, even if it had one before
    missing    running, and no process of it was found. All of /proc is searched: at once when a report has changed,
               then with pauses that double from `FIRST_LOOK` to `LAST_LOOK`, because some processes never appear (a
               sandboxed runtime)
    found      its process is known. It is verified every `CHECK` seconds; when it has ended, or its id belongs to
               another process, the container is missing

Thus the process that a location names is that of the present run of the container, and what is read through it (files
below its root, its namespace) is not looked for in a process that is gone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping

from msgspec.structs import replace

from sidestep.kube.processes import PROC, PodToLocate, started
from sidestep.model.pod import Location

FIRST_LOOK, LAST_LOOK = 0.2, 15.0
"""Seconds between two walks through /proc while a process is missing; doubled each time."""
CHECK = 5.0
"""Seconds between two verifications of known processes."""


class PodLocations:
    """The locations of pods. `find` searches /proc (`locate_pods`) and runs in a thread."""

    def __init__(
        self,
        find: Callable[[dict[str, PodToLocate]], dict[str, Location]],
        *,
        born: Callable[[int], int] = started,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create it without locations.

        `born` returns the start time of a process in clock ticks since boot, -1 when it has ended; `now` is in seconds.
        """
        self.found: dict[str, Location] = {}
        """By UID; pods without any process are left out."""
        self._find = find
        self._born = born
        self._now = now
        self._containers: dict[str, Mapping[str, str]] = {}
        """Running containers of each pod, id to name, as last reported."""
        self._missing = False
        self._next_look = 0.0
        self._next_check = 0.0
        self._look_pause = FIRST_LOOK

    @property
    def patience(self) -> float:
        """Seconds after which `update` has something to do even if nothing is reported."""
        return max(0.05, min(CHECK, self._next_look - self._now())) if self._missing else CHECK

    async def update(self, wanted: dict[str, PodToLocate]) -> None:
        """Bring `found` in line with the reported pods: forget what is gone, look for what is missing."""
        for uid in self.found.keys() - wanted.keys():
            del self.found[uid]
        if self._now() >= self._next_check:
            self._next_check = self._now() + CHECK
            self._verify(self.found)
        self._take_reports(wanted)
        self._missing = any(not self._complete(each) for each in wanted.values())
        if not self._missing or self._now() < self._next_look:
            return
        self.found.update(await asyncio.to_thread(self._find, wanted))
        self._missing = any(not self._complete(each) for each in wanted.values())
        self._next_look = self._now() + self._look_pause
        self._look_pause = min(2 * self._look_pause, LAST_LOOK)

    def _take_reports(self, wanted: Mapping[str, PodToLocate]) -> None:
        """Drop the processes of containers that do not run any more; look at once for those of others."""
        before, self._containers = self._containers, {uid: dict(each.containers) for uid, each in wanted.items()}
        changed = [uid for uid, ids in self._containers.items() if before.get(uid) != ids]
        for uid in changed:
            location = self.found.get(uid)
            if location is None:
                continue
            still = {name for each, name in self._containers[uid].items() if before.get(uid, {}).get(each) == name}
            kept = {name: pid for name, pid in location.pids.items() if name in still}
            if kept != location.pids:
                self.found[uid] = replace(location, pids=kept)
        self._verify(changed)
        if changed:
            self._next_look, self._look_pause = 0.0, FIRST_LOOK

    def _verify(self, uids: Iterable[str]) -> None:
        """Forget processes that have ended, and the whole location where the namespace was found through one."""
        for uid in list(uids):
            location = self.found.get(uid)
            births = location.births if location is not None else {}
            dead = {pid for pid, birth in births.items() if self._born(pid) != birth}
            if location is None or not dead:
                continue
            self._next_look = 0.0
            if location.netns in {f"{PROC}/{pid}/ns/net" for pid in dead}:
                del self.found[uid]
                continue
            self.found[uid] = replace(
                location,
                pids={name: pid for name, pid in location.pids.items() if pid not in dead},
                births={pid: birth for pid, birth in births.items() if pid not in dead},
            )

    def _complete(self, wanted: PodToLocate) -> bool:
        location = self.found.get(wanted.uid)
        return location is not None and set(wanted.containers.values()) <= location.pids.keys()
