"""The folder of manifests as a source of inventories: read once at the start, again whenever a file changes.

The folder is examined (names, sizes, times; symbolic links followed, so that a `..data` swap is seen) when the kernel
hints at a change, and every `POLL` seconds anyway. A change is read once two looks, `SETTLE` seconds apart, agree, so
that a half-written file is not read. A one-shot child (`one_shot`) reads and parses: a large folder must not block the
event loop, and the private keys of its Secrets must not be in this process. It returns what each file declares, without
the data of any Secret.

A file that cannot be read, or a folder that is gone, changes nothing: the last reading stays, and a condition says what
is wrong. A file that is *gone* takes its objects with it. Hidden files and everything but `*.yaml`, `*.yml`, `*.json`
are ignored. A name of that kind that is no regular file (a FIFO, a folder, a broken or circular link) is reported.
"""

from __future__ import annotations

import asyncio
import enum
import io
import os
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from sidestep.aio.named_file import other_kind
from sidestep.config.manifests import MAX_FILES, FileObjects, ManifestError, combine, keep_policies
from sidestep.model.errors import ConfigurationError, PeerError, SidestepError
from sidestep.model.inventory import Inventory, Secret
from sidestep.node.certificates.requests import MAX_REQUEST, ManifestSecret, Source
from sidestep.node.inotify import Hint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from sidestep.model.condition import Condition
    from sidestep.node.certificates.reader import ReadError

POLL = 0.8
"""Seconds between two looks without a hint: links that lead elsewhere give none."""

SETTLE = 0.05
"""Seconds for which nothing may change before a change is read."""

PATIENCE = 1.0
"""Seconds after which a folder that never settles is read all the same."""

SUFFIXES = (".yaml", ".yml", ".json")
"""What counts as a manifest."""

_MAX_NAMES = MAX_REQUEST // 2
"""Bytes of names in one request; the rest is for the path of the folder."""
_NAME_OVERHEAD = 5
"""Bytes that msgpack adds to a string at most."""

_TRUSTED_MODULES = ("sidestep.model.", "sidestep.config.")

Stamp = tuple[int, int, int, int]
"""(device, inode, size, modification time in ns) of a file."""


class Reading(msgspec.Struct, frozen=True):
    """One reading of a source."""

    inventory: Inventory = msgspec.field(default_factory=Inventory)
    errors: tuple[ManifestError, ...] = ()
    conditions: tuple[Condition, ...] = ()


class InventorySource(Protocol):
    """Where inventories come from: a directory of manifests, or the API server of a cluster."""

    async def load(self) -> Reading:
        """Read everything, once. Raises ConfigurationError when that can never work."""

    async def watch(self, on_reading: Callable[[Reading], None]) -> None:
        """Tell every new reading, until cancelled."""

    def want_secrets(self, names: frozenset[tuple[str, str]]) -> None:
        """The Secrets, (namespace, name), of which readings should know from now on."""

    def secret_source(self, secret: Secret | None, namespace: str, name: str) -> Source:
        """Where to read a Secret; `secret` is what the inventory knows. Raises ConfigurationError."""

    def explain(self, namespace: str, name: str, error: ReadError) -> str:
        """Why a Secret could not be read, and what to do."""


class Manifests(Protocol):
    """What is needed of `Reader`."""

    async def manifests(self, folder: str, names: tuple[str, ...]) -> bytes:
        """The pickled result of reading manifests."""


class ManifestDirectory:
    """Watches one folder. `on_reading` gets every new reading, in the event loop."""

    def __init__(self, folder: Path, reader: Manifests) -> None:
        self._folder = folder
        self._reader = reader
        self._files: dict[str, FileObjects] = {}
        self._read: dict[str, Stamp | str] | None = None

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

    async def _settled(self) -> dict[str, Stamp | str] | None:
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

    def secret_source(self, secret: Secret | None, namespace: str, name: str) -> Source:
        """As InventorySource.secret_source: the file that declares it."""
        if secret is None:
            raise ConfigurationError(f"there is no Secret {namespace}/{name}")
        return ManifestSecret(str(self._folder.absolute() / secret.file), namespace, name)

    def explain(self, namespace: str, name: str, error: ReadError) -> str:
        """As InventorySource.explain."""
        return f"Secret {namespace}/{name} cannot be read: {error}"

    async def _reading(self, stamps: Mapping[str, Stamp | str]) -> Reading:
        self._read = dict(stamps)
        files: dict[str, FileObjects] = {}
        unreadable: dict[str, str] = {}
        for names in _batches(name for name, stamp in stamps.items() if not isinstance(stamp, str)):
            try:
                read, why_not = _unpickled(await self._reader.manifests(str(self._folder.absolute()), names))
            except SidestepError as error:
                self._read = None
                read, why_not = {}, dict.fromkeys(names, str(error))
            files |= read
            unreadable |= why_not
        problems = [ManifestError(name, 0, 0, "", "", why) for name, why in stamps.items() if isinstance(why, str)]
        for name, why in unreadable.items():
            reason = f"cannot be read: {why}; what was read of it last stays"
            problems.append(ManifestError(name, 0, 0, "", "", reason))
            if name in self._files:
                files[name] = self._files[name]
        for name in files.keys() & self._files.keys():
            files[name] = keep_policies(files[name], self._files[name])
        self._files = files
        inventory, errors = combine(files)
        return Reading(inventory, (*problems, *errors))

    def _look(self) -> dict[str, Stamp | str] | None:
        """The stamps of all manifest files, or why they are none; None when the folder cannot be listed."""
        found: dict[str, Stamp | str] = {}
        try:
            names = os.listdir(self._folder)  # noqa: PTH208 - names only, no objects, five times a second
        except OSError:
            return None
        for name in names:
            if name.startswith(".") or not name.endswith(SUFFIXES):
                continue
            shown = os.fsencode(name).decode(errors="backslashreplace")
            if shown != name:
                found[shown] = "has a name that is not UTF-8"
                continue
            try:
                status = os.stat(self._folder / name)  # noqa: PTH116 - as above
            except OSError as error:
                if os.path.lexists(self._folder / name):
                    found[name] = f"cannot be read: {os.strerror(error.errno or 0)}"
                continue
            kind = other_kind(status.st_mode)
            found[name] = (
                f"is {kind}, not a file" if kind else (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
            )
        return found


def _batches(names: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """The names of files in order, as many at a time as one request to the reader takes."""
    batch: list[str] = []
    size = 0
    for name in sorted(names)[: MAX_FILES + 1]:
        length = len(os.fsencode(name)) + _NAME_OVERHEAD
        if size + length > _MAX_NAMES:
            yield tuple(batch)
            batch, size = [], 0
        batch.append(name)
        size += length
    if batch:
        yield tuple(batch)


class _Unpickler(pickle.Unpickler):
    """Makes values of the model and nothing else, whatever the child that parsed the manifests says."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _member  # how members of an Enum are pickled
        if module.startswith(_TRUSTED_MODULES) or module == "ipaddress":
            found = super().find_class(module, name)
            if isinstance(found, type) and (found.__module__, found.__qualname__) == (module, name):
                return found
        raise pickle.UnpicklingError(f"{module}.{name} is no value of the model")


def _member(kind: type, name: str) -> enum.Enum:
    if not issubclass(kind, enum.Enum):
        raise pickle.UnpicklingError(f"{kind} is no Enum")
    return kind[name]


def _unpickled(data: bytes) -> tuple[dict[str, FileObjects], dict[str, str]]:
    try:
        files, unreadable = _Unpickler(io.BytesIO(data)).load()
    except (pickle.UnpicklingError, ValueError, TypeError, AttributeError, LookupError, EOFError) as error:
        raise PeerError("the reader's manifests cannot be decoded") from error
    return files, unreadable
