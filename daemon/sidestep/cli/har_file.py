"""A HAR file that grows while a session runs (`--save`).

It holds what people sent, so it is readable by its owner only, and takes the place of a regular file of that name
(`laptop.capture_target`). After each entry it is valid; a session that is killed leaves a file that can be read. Beyond
MAX_BYTES entries are counted and not kept.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from sidestep import __version__
from sidestep.cli.har_entries import entry_of
from sidestep.laptop.capture_target import CaptureTarget
from sidestep.laptop.recorded_body import Body
from sidestep.model.errors import ConfigurationError
from sidestep.protocols import har
from sidestep.tunnel.messages import Request

MAX_BYTES: Final = 256 * 1024 * 1024
"""Bytes of a file; half of what `har.MAX_FILE` lets be read."""
ENTRIES: Final = 100_000


class HarFile:
    """See the module. The file is made with its first entry; a name that cannot be used raises ConfigurationError."""

    def __init__(self, path: Path) -> None:
        self._target = CaptureTarget(path, standard_output=1, option="--save")
        if self._target.is_pipe:
            reason = "the file is rewritten as it grows, so it cannot be standard output"
            raise ConfigurationError(reason, subject="--save", value=str(path))
        self._target.check()
        self._path = path
        self._descriptor = -1
        self._end = 0
        """Where the tail begins."""
        self.kept = 0
        self.left_out = 0
        self._problem = ""
        """Why nothing more is written."""

    def keep(self, request: Request, body: Body | None) -> None:
        """As saved_requests.Archive."""
        self.add(entry_of(request, body))

    def add(self, entry: har.Entry) -> None:
        """Append an entry."""
        data = har.encode(entry, first=not self.kept)
        if self._problem or self._end + len(data) > MAX_BYTES or self.kept >= ENTRIES:
            self.left_out += 1
            return
        try:
            if self._descriptor < 0:
                self._descriptor = self._target.open()
                data = har.head(__version__) + data
            self._write(data + har.TAIL)
        except ConfigurationError as error:
            self._problem = str(error)
            self.left_out += 1
            return
        self._end += len(data)
        self.kept += 1

    def close(self) -> str:
        """Close the file; returns what to say of it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        text = f"{self.kept} requests are in {self._path}" if self.kept else f"No request was kept in {self._path}"
        if self.left_out:
            text += f"; {self.left_out} are not: {self._problem or 'the file is full'}"
        return text + "."

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            os.lseek(self._descriptor, self._end, os.SEEK_SET)
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError as error:
            reason = f"cannot be written: {os.strerror(error.errno or 0).lower()}"
            raise ConfigurationError(reason, subject="--save", value=str(self._path)) from error
