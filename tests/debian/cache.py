"""What is built once and kept outside the tree, and how long work shows that it lives.

Everything lands in one folder (`$SIDESTEP_E2E_CACHE`, else `sidestep` in the user's cache folder). An entry is made
aside and renamed into place, so what exists is whole; a lock for each entry keeps two runs from making the same thing
twice. Long steps print a line when they begin, one every half minute, and their last lines of output only when they
fail.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")
R = TypeVar("R")

REPOSITORY = Path(__file__).resolve().parents[2]

SIGN_OF_LIFE = 30.0
"""Seconds between two progress lines."""

ATTEMPTS = 3
"""How often a step is tried that fetches something."""
PAUSE = 10.0
"""Seconds between two attempts."""

IN_USE = 24 * 3600.0
"""Seconds for which an older version of an entry stays after its last use: another checkout may be using it."""


class BuildError(Exception):
    """A step failed; the text says which, and ends with what it printed last."""


def folder() -> Path:
    """The cache folder, made when it does not exist."""
    named = os.environ.get("SIDESTEP_E2E_CACHE")
    base = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sidestep"
    base.mkdir(parents=True, exist_ok=True)
    return base


@contextlib.contextmanager
def locked(name: str) -> Iterator[Path]:
    """Hold one part of the cache alone, against other processes and other threads; yields the cache folder."""
    base = folder()
    (base / "locks").mkdir(exist_ok=True)
    with open(base / "locks" / name, "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another run is preparing {name}; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield base


def entry(name: str, key: str, make: Callable[[Path], None]) -> Path:
    """The folder `NAME-KEY`, filled by `make` when it is not there yet; older versions of `name` are forgotten.

    `make` gets an empty folder, which is renamed when it returns. When it raises, its folder stays, with its
    logs, until the next attempt.
    """
    made = folder() / f"{name}-{key}"
    if not _used(made):
        with locked(name):
            if not _used(made):
                partial = folder() / f"{name}.partial"
                remove(partial)
                partial.mkdir()
                make(partial)
                partial.rename(made)
                forget(f"{name}-{'[0-9a-f]' * len(key)}", but=made)
    return made


def _used(made: Path) -> bool:
    """Whether an entry is there; it counts as used now. One step, because another run may be forgetting it."""
    try:
        os.utime(made)
    except FileNotFoundError:
        return False
    return True


uncaptured: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext
"""What lets a progress line pass; the tests put pytest's way around its capture here."""


_saying = threading.Lock()
_running: set[subprocess.Popen] = set()


class _Thread(threading.local):
    """What a thread works for."""

    given_up: threading.Event | None = None
    """Set when no step is to begin any more."""

    @property
    def is_given_up(self) -> bool:
        return self.given_up is not None and self.given_up.is_set()


_thread = _Thread()


def side_by_side(first: Callable[[], A], second: Callable[[], B]) -> tuple[A, B]:
    """Run two works at the same time. When one fails, or this is interrupted, the steps of the other are killed."""
    given_up = threading.Event()

    def begin(work: Callable[[], R]) -> R:
        _thread.given_up = given_up
        return work()

    with ThreadPoolExecutor(2) as pool:
        try:  # an interruption may come while a work is handed over, too
            begun: tuple[Future[A], Future[B]] = (pool.submit(begin, first), pool.submit(begin, second))
            wait(begun, return_when=FIRST_EXCEPTION)
            if failed := [one.exception() for one in begun if one.done() and one.exception()]:
                raise failed[0]
        except BaseException:
            given_up.set()
            for process in list(_running):
                _kill(process)
            raise
        return begun[0].result(), begun[1].result()


def _kill(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def say(text: str) -> None:
    """A progress line."""
    with _saying, uncaptured():
        print(f"sidestep: {text}", file=sys.__stderr__, flush=True)


def step(
    what: str,
    command: Sequence[str | Path],
    *,
    log: Path,
    within: float,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    attempts: int = 1,
) -> None:
    """Run a long command quietly, `within` seconds for each attempt. Raises BuildError with the end of its output.

    Whoever tells it to be tried more than once has made sure that it may begin again where it failed.
    """
    for left in reversed(range(attempts)):
        try:
            _attempt(what, command, log=log, within=within, cwd=cwd, environment=environment)
        except BuildError as error:
            if not left or _thread.is_given_up:
                raise
            say(f"{error}\ntrying again in {PAUSE:.0f} s")
            time.sleep(PAUSE)
        else:
            return


def _attempt(
    what: str,
    command: Sequence[str | Path],
    *,
    log: Path,
    within: float,
    cwd: Path | None,
    environment: Mapping[str, str] | None,
) -> None:
    if _thread.is_given_up:
        raise BuildError(f"{what}: not begun, because something else failed")
    say(what)
    words = ["nice", "-n", "19", *(str(word) for word in command)]
    begin = time.monotonic()
    with open(log, "ab") as output:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=cwd,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
        _running.add(process)
        if _thread.is_given_up:  # after the look above, and whoever kills steps may not have seen this one
            _kill(process)
        try:
            while True:
                try:
                    code = process.wait(SIGN_OF_LIFE)
                    break
                except subprocess.TimeoutExpired:
                    spent = time.monotonic() - begin
                    if spent > within:
                        raise BuildError(f"{what}: not done after {spent:.0f} s\n{tail(log)}") from None
                    say(f"  … {spent:.0f} s")
        finally:
            if process.poll() is None:
                _kill(process)
                process.wait()
            _running.discard(process)
    if code != 0:
        raise BuildError(f"{what}: exit status {code}\n{tail(log)}")


def tail(log: Path, *, lines: int = 40) -> str:
    """The end of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def digest(*parts: Path | str) -> str:
    """A name for inputs: texts, files, and folders of files (caches of Python left out)."""
    whole = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            whole.update(part.encode() + b"\0")
            continue
        for path in files(part):
            whole.update(f"{path.relative_to(part.parent)}\0{path.stat().st_mode & 0o777}\0".encode())
            whole.update(hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()[:16]


def files(path: Path) -> Iterable[Path]:
    """A file itself, or the files below a folder in a fixed order."""
    if path.is_file():
        return [path]
    return sorted(one for one in path.rglob("*") if one.is_file() and "__pycache__" not in one.parts)


def forget(pattern: str, *, but: Path) -> None:
    """Remove older versions of an entry that nobody used for a day. Its lock is held.

    They lose their name first: an entry is whole, also when its removal is interrupted.
    """
    for path in folder().glob(f"{pattern}.forgotten"):
        remove(path)
    for path in folder().glob(pattern):
        if path != but and time.time() - path.stat().st_mtime > IN_USE:
            remove(path.rename(path.with_name(f"{path.name}.forgotten")))


def remove(path: Path) -> None:
    """Remove a file, or a folder with everything in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
