"""Caches the converted objects of one watched collection.

Users of the cluster can change objects as often as the API server accepts, and every node receives each change. Work is
therefore deferred and shared: an event is only stored; objects are converted on the next read, once for any number of
events; and a conversion with an equal result keeps the previous Python object. `inventory_builder` joins collections.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sidestep.config.field_error import FieldError
from sidestep.kube.conversion import trimmed
from sidestep.kube.watch import KubeObject


@dataclass(slots=True)
class CollectionCache:
    """A `Sink` that keeps the result of `convert` for each object, by UID. `revision` counts changed results."""

    convert: Callable[[KubeObject], Any]
    on_change: Callable[[], None]
    revision: int = 0
    _found: dict[str, Any] = field(default_factory=dict)
    _bad: dict[str, str] = field(default_factory=dict)
    _noted: dict[str, KubeObject] = field(default_factory=dict)
    """The newest version of each object received since the last conversion."""

    @property
    def found(self) -> dict[str, Any]:
        """Converted objects, by UID."""
        self._convert_noted()
        return self._found

    @property
    def bad(self) -> dict[str, str]:
        """Reasons why objects cannot be converted, by UID."""
        self._convert_noted()
        return self._bad

    def replace(self, values: list[KubeObject], /) -> None:
        """As Sink.replace."""
        there = {_identity(value): value for value in values}
        for identity in (self._found.keys() | self._bad.keys()) - there.keys():
            self._drop(identity)
        self._noted = there
        self._convert_noted()  # converts at once, because raw lists are large
        self.on_change()

    def apply(self, value: KubeObject, /) -> None:
        """As Sink.apply."""
        self._noted[_identity(value)] = value
        self.on_change()

    def remove(self, value: KubeObject, /) -> None:
        """As Sink.remove."""
        identity = _identity(value)
        self._noted.pop(identity, None)
        self._drop(identity)
        self.on_change()

    def _convert_noted(self) -> None:
        noted, self._noted = self._noted, {}
        for identity, value in noted.items():
            try:
                made = self.convert(trimmed(value))
            except FieldError as error:
                self._drop(identity)
                self._bad[identity] = f"{_named(value)}: {error.path}: {error}"
                continue
            self._bad.pop(identity, None)
            if self._found.get(identity) != made:
                self._found[identity] = made
                self.revision += 1

    def _drop(self, identity: str) -> None:
        self._bad.pop(identity, None)
        if self._found.pop(identity, None) is not None:
            self.revision += 1


def _identity(value: KubeObject) -> str:
    metadata = value.get("metadata") or {}
    return str(metadata.get("uid") or f"{metadata.get('namespace')}/{metadata.get('name')}")


def _named(value: KubeObject) -> str:
    metadata = value.get("metadata") or {}
    return f"{value.get('kind') or 'object'} {metadata.get('namespace') or ''}/{metadata.get('name')}"
