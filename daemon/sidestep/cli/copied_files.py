"""Copies files of a container to a folder of this machine, and says so on standard error."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Final

import click

from sidestep.aio.time_limit import time_limit
from sidestep.cli.output import tell
from sidestep.model.errors import PeerError, RefusedError
from sidestep.protocols.file_frames import MAX_PATH
from sidestep.tunnel.access import MAX_PATHS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sidestep.laptop.file_snapshot import FileSnapshot
    from sidestep.laptop.pod_access import PodAccess
    from sidestep.tunnel.stream import Stream

MIB: Final = 1024 * 1024
STALL: Final = 60.0
"""Seconds without a byte after which a snapshot is given up. A node gives up a container's file system earlier."""
_MAX_TOGETHER: Final = 32 * 1024
"""Bytes of all paths; they are sent in one line, with others (`tunnel.access.MAX_LINE`)."""
_PERIOD: Final = 0.2
"""Seconds between two changes of the line that shows the progress."""


def check_paths(paths: Iterable[str]) -> None:
    """Raise click.UsageError for what is no path in a container."""
    given = tuple(paths)
    if len(given) > MAX_PATHS:
        raise click.UsageError(f"more than {MAX_PATHS} paths; name folders above them")
    for path in given:
        if not path.startswith("/") or ".." in path.split("/"):
            raise click.UsageError(f"{path[:200]!r} is no path in a container: it begins with / and has no '..'")
        if not path.isprintable() and any("\ud800" <= each <= "\udfff" for each in path):
            raise click.UsageError(f"{path[:200]!r} is not UTF-8, which paths in a container have to be here")
        if len(os.fsencode(path)) > MAX_PATH:
            raise click.UsageError(f"{path[:200]!r}… is longer than {MAX_PATH} bytes")
    if sum(len(os.fsencode(path)) for path in given) > _MAX_TOGETHER:
        raise click.UsageError(f"the paths have more than {_MAX_TOGETHER} bytes; name folders above them")


async def copy_files(access: PodAccess, paths: tuple[str, ...], snapshot: FileSnapshot) -> None:
    """Copy these paths, or without any what is mounted in the container. Raises SidestepError."""
    progress = _Progress()
    try:
        async with await access.files(paths, snapshot.max_bytes) as granted:
            snapshot.begin()
            while data := await _read(granted.stream):
                snapshot.feed(data)
                progress.show(snapshot.files, snapshot.size)
                progress.tell(snapshot.news())
        snapshot.finish()
        progress.tell(snapshot.news())
    finally:
        progress.clear()
        snapshot.close()
    left_out = f"; {snapshot.left_out} left out" if snapshot.left_out else ""
    if snapshot.files or not snapshot.missing:
        tell(f"In {snapshot.folder}: {_amount(snapshot.files, snapshot.size)}{left_out}.")
    if snapshot.missing:
        raise RefusedError(f"cannot be copied: {'; '.join(snapshot.missing)}")
    if snapshot.stopped:
        raise RefusedError(f"not everything was copied: {snapshot.stopped}; name the folders that you want")


async def _read(stream: Stream) -> bytes:
    try:
        async with time_limit(STALL):
            return await stream.read()
    except TimeoutError as error:
        raise PeerError(f"nothing came from the node for {STALL:g} s") from error


def _amount(files: int, size: int) -> str:
    return f"{files} file{'' if files == 1 else 's'}, {size / MIB:.1f} MiB"


class _Progress:
    """A line on a terminal that changes. Where there is no terminal it shows nothing."""

    def __init__(self) -> None:
        self._shown = 0
        self._due = 0.0

    def show(self, files: int, size: int) -> None:
        """Show how much has come."""
        now = time.monotonic()
        if now >= self._due and sys.stderr.isatty():
            self._due = now + _PERIOD
            text = _amount(files, size)
            click.echo(f"\r{text:<{self._shown}}", nl=False, err=True)
            self._shown = len(text)

    def tell(self, lines: Iterable[str]) -> None:
        """Print lines in the place of it."""
        for line in lines:
            self.clear()
            tell(line)

    def clear(self) -> None:
        """Take it away."""
        if self._shown:
            click.echo(f"\r{'':<{self._shown}}\r", nl=False, err=True)
            self._shown = 0
