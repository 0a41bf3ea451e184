"""The directory of manifests as a source of inventories: read once at the start, again whenever a file changes.

The folder is looked at (names, sizes, times; symbolic links followed, so that a `..data` swap is seen) when the kernel
hints at a change, and every `POLL` seconds anyway. A change is read once two looks, `SETTLE` seconds apart, agree, so
that a file that is being written is not read half. Reading and parsing happen in a thread: a large directory must not
hold up the event loop.

A file that cannot be read, or a folder that is gone, changes nothing: what was read last stays, and the problem is
told. A file that *is* gone takes its objects with it. Hidden files and anything but `*.yaml`, `*.yml`, `*.json` are
passed over.
"""

from __future__ import annotations

import asyncio
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from sidestep.config.manifests import ManifestError, load_directory_texts
from sidestep.config.yaml_documents import MAX_TEXT
from sidestep.model.errors import ConfigurationError
from sidestep.model.inventory import Inventory
from sidestep.node.inotify import Hint

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sidestep.model.condition import Condition

POLL = 0.8
"""Seconds between two looks without a hint: links that lead elsewhere give none."""

SETTLE = 0.05
"""Seconds for which nothing may change before a change is read."""

PATIENCE = 1.0
"""Seconds after which a folder that never settles is read all the same."""

SUFFIXES = (".yaml", ".yml", ".json")
"""What counts as a manifest."""

MAX_BYTES = 4 * MAX_TEXT
"""Bytes read of one file; a file is then judged by its characters, of at most four bytes each."""

Stamp = tuple[int, int, int, int]
"""(device, inode, size, modification time in ns) of a file."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One reading of a source. `secret_problems` says why Secrets that are wanted could not be read."""

    inventory: Inventory = field(default_factory=Inventory)
    errors: tuple[ManifestError, ...] = ()
    conditions: tuple[Condition, ...] = ()
    secret_problems: Mapping[tuple[str, str], str] = field(default_factory=dict)


class InventorySource(Protocol):
    """Where inventories come from: a directory of manifests, or the API server of a cluster."""

    async def load(self) -> Reading:
        """Read everything, once. Raises ConfigurationError when that can never work."""

    async def watch(self, on_reading: Callable[[Reading], None]) -> None:
        """Tell every new reading, until cancelled."""

    def want_secrets(self, names: frozenset[tuple[str, str]]) -> None:
        """The Secrets, (namespace, name), that readings should hold from now on."""


class ManifestDirectory:
    """Watches one folder. `on_reading` gets every new reading, in the event loop."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._contents: dict[str, bytes] = {}
        self._read: dict[str, Stamp] | None = None

    async def load(self) -> Reading:
        """Read the directory now. Raises ConfigurationError when it is none."""
        stamps = self._look()
        if stamps is None:
            raise ConfigurationError("is not a folder that can be read", subject="--manifests", value=str(self._folder))
        return await self._reading(stamps)

    async def watch(self, on_reading: Callable[[Reading], None]) -> None:
        """Look for changes until cancelled."""
        with Hint(self._folder) as hint:
            while True:
                stamps = await self._settled()
                if stamps is not None and stamps != self._read:
                    on_reading(await self._reading(stamps))
                if stamps is None or not hint.watching:
                    hint.watch()
                await hint.wait(POLL)

    async def _settled(self) -> dict[str, Stamp] | None:
        """The stamps once they stand still; None when the folder cannot be listed."""
        stamps = self._look()
        for _ in range(round(PATIENCE / SETTLE)):
            if stamps is None or stamps == self._read:
                break
            await asyncio.sleep(SETTLE)
            before, stamps = stamps, self._look()
            if stamps == before:
                break
        return stamps

    def want_secrets(self, names: frozenset[tuple[str, str]]) -> None:
        """As InventorySource.want_secrets: a directory is read whole."""

    async def _reading(self, stamps: Mapping[str, Stamp]) -> Reading:
        self._read = dict(stamps)
        return await asyncio.to_thread(self._parse, tuple(sorted(stamps)))

    def _look(self) -> dict[str, Stamp] | None:
        """The stamps of all manifest files; None when the folder cannot be listed."""
        found: dict[str, Stamp] = {}
        try:
            names = os.listdir(self._folder)  # noqa: PTH208 - names only, no objects, five times a second
        except OSError:
            return None
        for name in names:
            if name.startswith(".") or not name.endswith(SUFFIXES):
                continue
            try:
                status = os.stat(self._folder / name)  # noqa: PTH116 - as above
            except OSError:
                continue
            if stat.S_ISREG(status.st_mode):
                found[name] = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        return found

    def _parse(self, names: tuple[str, ...]) -> Reading:
        unreadable = []
        contents: dict[str, bytes] = {}
        for name in names:
            try:
                contents[name] = self._content(name)
            except OSError as error:
                reason = f"cannot be read: {error.strerror or error}; what was read of it last stays"
                unreadable.append(ManifestError(name, 0, 0, "", "", reason))
                if name in self._contents:
                    contents[name] = self._contents[name]
        self._contents = contents
        inventory, errors = load_directory_texts(contents)
        return Reading(inventory, (*unreadable, *errors))

    def _content(self, name: str) -> bytes:
        # It may have become something else since it was looked at: never wait for a FIFO.
        fd = os.open(self._folder / name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            return file.read(MAX_BYTES + 1)
