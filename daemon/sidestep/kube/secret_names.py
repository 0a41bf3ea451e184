"""Versions of Secrets without their data: one watch per namespace, of the columns that `kubectl get secrets` prints.

The rows of a Table contain name, type, number of keys and age. The metadata of a Secret is not requested, because the
annotation kubectl.kubernetes.io/last-applied-configuration contains its data.

States of a namespace:

    unknown    not listed yet; Secrets have no version
    watched    list and watch are granted: each Secret has a version that changes with it; an absent one has none
    polled     list or watch is not granted: all Secrets share a version that changes every `POLL` seconds, so that a
               Secret which may be read by name is read again
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from sidestep.aio.tasks import Tasks
from sidestep.kube.api import Api
from sidestep.kube.paths import escape
from sidestep.kube.watch import KubeObject, Watch, WatchLimits

SecretName = tuple[str, str]
"""(namespace, name)."""

POLL = 30.0
"""Seconds between two versions of Secrets that cannot be watched."""
MAX_NAMESPACES: Final = 256
"""Watched namespaces. Secrets of further ones are polled."""
_NAME: Final = 0
"""Column of the name, the first of every table."""


@dataclass(slots=True)
class _Names:
    """A `Sink` of table rows; keeps a version for each name."""

    on_change: Callable[[], None]
    versions: dict[str, str] = field(default_factory=dict)
    lists: int = 0

    def replace(self, values: list[KubeObject], /) -> None:
        """As Sink.replace."""
        self.lists += 1
        self.versions = {name: f"list {self.lists}" for row in values if (name := _name_of(row))}
        self.on_change()

    def apply(self, value: KubeObject, /) -> None:
        """As Sink.apply."""
        version = (value.get("metadata") or {}).get("resourceVersion")
        for row in value.get("rows") or ():
            if name := _name_of(row):
                self.versions[name] = f"{version}"
        self.on_change()

    def remove(self, value: KubeObject, /) -> None:
        """As Sink.remove."""
        for row in value.get("rows") or ():
            self.versions.pop(_name_of(row), None)
        self.on_change()


@dataclass(slots=True)
class _Watched:
    watch: Watch
    names: _Names
    task: asyncio.Task[None]


class SecretNames:
    """Versions of the wanted Secrets. Calls `on_change` whenever one may have changed."""

    def __init__(self, api: Api, *, tasks: Tasks, on_change: Callable[[], None], limits: WatchLimits) -> None:
        self._api = api
        self._tasks = tasks
        self._on_change = on_change
        self._limits = limits
        self._wanted: frozenset[SecretName] = frozenset()
        self._namespaces: dict[str, _Watched] = {}
        self._polling: asyncio.Task[None] | None = None
        self._turn = 0

    def want(self, names: frozenset[SecretName]) -> None:
        """Set the wanted Secrets; watches exactly their namespaces."""
        self._wanted = names
        namespaces = {namespace for namespace, _ in names}
        for gone in self._namespaces.keys() - namespaces:
            self._namespaces.pop(gone).task.cancel()
        for namespace in sorted(namespaces - self._namespaces.keys())[: MAX_NAMESPACES - len(self._namespaces)]:
            self._namespaces[namespace] = self._watched(namespace)
        if names and self._polling is None:
            self._polling = self._tasks.start(self._turns(), name="secrets")
        elif not names and self._polling is not None:
            self._polling.cancel()
            self._polling = None

    def versions(self) -> dict[SecretName, str]:
        """Return the versions of the wanted Secrets. A Secret known to be absent has none."""
        found = {}
        for namespace, name in self._wanted:
            version = self._version(namespace, name)
            if version:
                found[namespace, name] = version
        return found

    def polled(self, namespace: str) -> bool:
        """Whether Secrets of a namespace are polled because they cannot be watched."""
        watched = self._namespaces.get(namespace)
        return watched is None or watched.watch.problem is not None

    def _version(self, namespace: str, name: str) -> str:
        if self.polled(namespace):
            return f"turn {self._turn}"
        return self._namespaces[namespace].names.versions.get(name, "")

    def _watched(self, namespace: str) -> _Watched:
        names = _Names(self._on_change)
        watch = Watch(
            self._api,
            (f"/api/v1/namespaces/{escape(namespace)}/secrets",),
            names,
            as_table=True,
            on_state=self._on_change,
            limits=self._limits,
        )
        return _Watched(watch, names, self._tasks.start(watch.run(), name=f"secrets of {namespace}"))

    async def _turns(self) -> None:
        while True:
            await asyncio.sleep(POLL)
            if any(self.polled(namespace) for namespace, _ in self._wanted):
                self._turn += 1
                self._on_change()


def _name_of(row: KubeObject) -> str:
    cells = row.get("cells")
    name = cells[_NAME] if isinstance(cells, list) and cells else None
    return name if isinstance(name, str) else ""
