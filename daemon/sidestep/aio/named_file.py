"""Reading a file that a person named, on a command line or in a configuration: bounded in kind, size and time.

A path may lead to anything: a FIFO that nobody writes to, `/dev/zero`, a folder, a network file system that hangs. Only
regular files are read, up to a limit, in a thread that is given up after DEADLINE, so that Ctrl-C always works.
"""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path
from typing import BinaryIO

from sidestep.aio.open_flags import open_flags
from sidestep.model.errors import ConfigurationError

LIMIT = 1024 * 1024
"""Bytes of a file, unless told otherwise: certificates and keys are far smaller."""
DEADLINE = 5.0
"""Seconds for a file system to answer."""

_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def other_kind(mode: int) -> str:
    """What a path is that is no regular file, in words; empty for a regular file."""
    if stat.S_ISREG(mode):
        return ""
    return next((text for applies, text in _KINDS if applies(mode)), "no file")


def mode_of(path: Path) -> int:
    """The mode of what a path leads to; 0 when that cannot be told. `Path.exists` and its kin raise OSError for names
    that are too long and folders that may not be entered.
    """
    try:
        return path.stat().st_mode
    except (OSError, ValueError):
        return 0


def read_named(path: Path, *, subject: str, limit: int = LIMIT) -> bytes:
    """The content of a regular file. `subject` is the option or setting that names it.

    Raises ConfigurationError naming subject, path and reason. Called outside of event loops: it blocks for DEADLINE.
    """
    answer: list[bytes | ConfigurationError] = []

    def read() -> None:
        try:
            answer.append(_read(path, subject, limit))
        except OSError as error:
            answer.append(_unusable(subject, path, f"cannot be read: {os.strerror(error.errno or 0)}"))
        except ValueError:
            answer.append(_unusable(subject, path, "is no path"))
        except ConfigurationError as error:
            answer.append(error)

    thread = threading.Thread(target=read, name="named file", daemon=True)
    thread.start()
    thread.join(DEADLINE)
    content = answer[0] if answer else _unusable(subject, path, f"could not be read within {DEADLINE:g} s")
    if isinstance(content, ConfigurationError):
        raise content
    return content


def opened(path: Path, *, subject: str) -> BinaryIO:
    """Open a regular file of any size for reading. Raises ConfigurationError naming subject, path and reason."""
    try:
        _check(path.stat().st_mode, path, subject)
        return path.open("rb")
    except OSError as error:
        raise _unusable(subject, path, f"cannot be read: {os.strerror(error.errno or 0)}") from error
    except ValueError as error:
        raise _unusable(subject, path, "is no path") from error


def _read(path: Path, subject: str, limit: int) -> bytes:
    _check(path.stat().st_mode, path, subject)  # opening a device may have effects of its own
    fd = os.open(path, os.O_RDONLY | open_flags("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC"))
    with os.fdopen(fd, "rb") as file:
        _check(os.fstat(fd).st_mode, path, subject)
        content: bytes | None = file.read(limit + 1)
    if content is None:  # some files of /proc wait for what happens next
        raise _unusable(subject, path, "has no content now")
    if len(content) > limit:
        raise _unusable(subject, path, f"is larger than {limit // 1024} KiB")
    return content


def _check(mode: int, path: Path, subject: str) -> None:
    kind = other_kind(mode)
    if kind:
        raise _unusable(subject, path, f"is {kind}, not a file")


def _unusable(subject: str, path: Path, reason: str) -> ConfigurationError:
    return ConfigurationError(reason, subject=subject, value=str(path))
