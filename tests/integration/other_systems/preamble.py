"""Runs the command line as on macOS or Windows, as far as Linux can pretend:

    python -m tests.integration.other_systems.preamble darwin|win32 WORD…

What is taken away comes from typeshed (`known_names`): every name of `os`, `socket`, `signal`, `select`, `asyncio` and
`time` that the system lacks, and modules such as `fcntl`. On "Windows" moreover

* the event loop handles no signals, watches no descriptors and knows no unix sockets, as the proactor does;
* `socketpair` is a pair of TCP sockets, as Python makes it there;
* a file that is open cannot be renamed, and one that exists is not renamed over;
* opening a file without O_BINARY fails, where the real one would change line ends.

The libraries of others and the standard library's own modules are loaded before: they decide by `sys.platform` what
they are, and here they must remain what works on Linux. `os.name` and paths stay those of Linux as well.
"""

from __future__ import annotations

import asyncio
import asyncio.unix_events
import errno
import importlib
import os
import select
import selectors
import shutil
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.integration.other_systems.known_names import ABSENT, LOOP, MODULES, missing

LOADED_BEFORE = (
    "aiohttp", "click", "concurrent.futures.thread", "ctypes", "cryptography", "h2.connection", "kubernetes.aio.client",
    "kubernetes.config", "logging.handlers", "msgspec", "multiprocessing", "platform", "random", "shutil", "structlog",
    "subprocess", "tempfile", "urllib.request", "uuid", "yaml",
)  # fmt: skip
O_BINARY = 0x8000
"""Windows' number; on Linux it is O_LARGEFILE, which changes nothing."""


class WindowsLikeLoop(asyncio.SelectorEventLoop):
    """A loop that refuses what the one of Windows refuses. Its `remove_…` are asyncio's own, which uses them itself."""


def _refuse(*_arguments: Any, **_options: Any) -> None:
    raise NotImplementedError


for _name in LOOP["win32"]:
    setattr(WindowsLikeLoop, _name, _refuse)


class WindowsLikePolicy(asyncio.DefaultEventLoopPolicy):
    """Makes such loops."""

    _loop_factory = WindowsLikeLoop


def pretend(system: str) -> None:
    """Make this process one of that system; it stays so."""
    for name in LOADED_BEFORE:
        importlib.import_module(name)
    if system == "win32":
        _as_windows()
    else:
        selectors.DefaultSelector = selectors.PollSelector  # type: ignore[misc]  # macOS has kqueue, this machine not
    if hasattr(os, "process_cpu_count"):  # Python 3.13 has chosen at import that it asks sched_getaffinity
        os.process_cpu_count = os.cpu_count
    if hasattr(subprocess, "_HAVE_POSIX_SPAWN_CLOSEFROM"):  # the same of POSIX_SPAWN_CLOSEFROM
        subprocess._HAVE_POSIX_SPAWN_CLOSEFROM = False
    # Where the current folder belongs to the PATH: Python 3.12 asks Windows.
    shutil._win_path_needs_curdir = lambda *_: False  # type: ignore[attr-defined]
    for module in MODULES:
        for name in missing(module, system):
            if hasattr(sys.modules[module], name):
                delattr(sys.modules[module], name)
    for name in ABSENT[system]:
        sys.modules[name] = None  # type: ignore[assignment]  # importing it raises ModuleNotFoundError
    sys.platform = system


def _as_windows() -> None:
    selectors.DefaultSelector = selectors.SelectSelector  # type: ignore[misc]
    asyncio.set_event_loop_policy(WindowsLikePolicy())
    socket.socketpair = _socketpair  # type: ignore[assignment]
    ssl.enum_certificates = lambda _store: []  # type: ignore[attr-defined]
    select_on_anything, opened, replaced = select.select, os.open, os.replace

    def sockets_only(reading: Any, writing: Any, exceptional: Any, timeout: float | None = None) -> Any:
        for each in (*reading, *writing):
            if (
                not Path(f"/proc/self/fd/{each if isinstance(each, int) else each.fileno()}")
                .readlink()
                .match("socket:*")
            ):
                raise OSError(errno.EBADF, "Windows' select takes sockets only")
        return select_on_anything(reading, writing, exceptional, timeout)

    def binary_only(path: Any, flags: int, mode: int = 0o777, **options: Any) -> int:
        if not flags & O_BINARY and str(path) != os.devnull:
            raise OSError(errno.EINVAL, "Windows would change line ends", str(path))
        return opened(path, flags, mode, **options)

    def rename(source: Any, target: Any, **options: Any) -> None:
        if Path(target).exists():
            raise FileExistsError(errno.EEXIST, "Windows renames over no file", str(target))
        replace(source, target, **options)

    def replace(source: Any, target: Any, **options: Any) -> None:
        whole = str(Path(source).resolve())
        if any(os.path.realpath(link) == whole for link in Path("/proc/self/fd").iterdir()):
            raise PermissionError(errno.EACCES, "Windows renames no open file", str(source))
        replaced(source, target, **options)

    select.select = sockets_only
    os.O_BINARY = O_BINARY  # type: ignore[attr-defined]
    os.open, os.rename, os.replace = binary_only, rename, replace


def _socketpair(*arguments: Any) -> tuple[socket.socket, socket.socket]:
    """As Python makes it on Windows; it knows no family but AF_INET there."""
    if arguments:
        raise ValueError("Only AF_INET and AF_INET6 socket address families are supported")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
        return ours, theirs


def main() -> None:
    """Entry point."""
    system, *words = sys.argv[1:]
    pretend(system)
    from sidestep.cli.main import main as sidestep

    sys.argv = ["sidestep", *words]
    sidestep()


if __name__ == "__main__":
    main()
