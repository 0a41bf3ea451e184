"""Where a capture is written: standard output, or a file that is made once there is something to write.

A file holds decrypted traffic, and who captures is often root. So it is always a new one, readable by its owner only,
that takes the place of a regular file of that name: whoever has the old one open, or owns it, or made the name a link,
does not see the new content. Anything else of that name (a pipe, a device, a link) is refused.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from sidestep.aio.named_file import other_kind
from sidestep.aio.open_flags import open_flags
from sidestep.model.errors import ConfigurationError, RefusedError

STANDARD_OUTPUT = "-"


class CaptureTarget:
    """Where to write. `check` before a session begins, `open` once it is accepted."""

    def __init__(self, path: Path, *, standard_output: int, option: str = "--write") -> None:
        self._path = path
        self._option = option
        self._standard_output = standard_output

    @property
    def is_pipe(self) -> bool:
        """Whether it is standard output."""
        return str(self._path) == STANDARD_OUTPUT

    def check(self) -> None:
        """Raise ConfigurationError for what `open` would fail with, and RefusedError for a terminal. Writes nothing."""
        if self.is_pipe:
            if os.isatty(self._standard_output):
                raise RefusedError("standard output is a terminal; pipe it into tshark -r -, or name a file")
            return
        try:
            folder = self._path.parent.stat()
            if not stat.S_ISDIR(folder.st_mode):
                raise self._unusable("its folder is none")
            if not os.access(self._path.parent, os.W_OK | os.X_OK):
                raise self._unusable("its folder may not be written to")
            mode = self._path.lstat().st_mode
        except FileNotFoundError as error:
            if self._path.parent.exists():
                return
            raise self._unusable("its folder does not exist") from error
        except OSError as error:
            raise self._failed(error) from error
        kind = "a link" if stat.S_ISLNK(mode) else other_kind(mode)
        if kind:
            raise self._unusable(f"is {kind}, not a file; -w - writes to standard output")

    def open(self) -> int:
        """Return a descriptor, which the caller closes. Raises ConfigurationError."""
        if self.is_pipe:
            return os.dup(self._standard_output)
        self.check()
        fresh = self._path.with_name(f".{secrets.token_hex(8)}.sidestep-capture")
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | open_flags("O_NOFOLLOW", "O_CLOEXEC")
            descriptor = os.open(fresh, flags, 0o600)
            try:
                fresh.replace(self._path)
            except PermissionError:
                os.close(descriptor)
                return self._reopened(fresh)
            except OSError:
                os.close(descriptor)
                fresh.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise self._failed(error) from error
        return descriptor

    def _reopened(self, fresh: Path) -> int:
        """Let a file take its place while it is not open, which Windows insists on, and open it there."""
        made = fresh.stat()
        try:
            fresh.replace(self._path)
        except OSError:
            fresh.unlink(missing_ok=True)
            raise
        descriptor = os.open(self._path, os.O_WRONLY | open_flags("O_NOFOLLOW", "O_CLOEXEC"))
        if not os.path.samestat(made, os.fstat(descriptor)):
            os.close(descriptor)
            raise self._unusable("was replaced by somebody else")
        return descriptor

    def _failed(self, error: OSError) -> ConfigurationError:
        return self._unusable(f"cannot be written: {os.strerror(error.errno or 0).lower()}")

    def _unusable(self, reason: str) -> ConfigurationError:
        return ConfigurationError(reason, subject=self._option, value=str(self._path))
