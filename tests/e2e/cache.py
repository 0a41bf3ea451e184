"""What is built once and kept outside the tree, and how long work shows that it lives.

Everything lands in one folder (`$SIDESTEP_E2E_CACHE`, else `sidestep` in the user's cache folder). An entry is made
aside and renamed into place, so what exists is whole; a lock keeps two runs from building the same thing twice. Long
steps print a line when they begin, one every half minute, and their last lines of output only when they fail.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

MIRROR = os.environ.get("SIDESTEP_DEBIAN_MIRROR", "http://deb.debian.org/debian")
"""Where Debian's packages and sources come from."""

SUITE = "bookworm"
"""The Debian release whose Kubernetes, Go, etcd and containerd belong together."""

SIGN_OF_LIFE = 30.0
"""Seconds between two progress lines."""

ATTEMPTS = 3
"""How often a step is tried that fetches something."""
PAUSE = 10.0
"""Seconds between two attempts."""


class BuildError(Exception):
    """A step failed; the text says which, and ends with what it printed last."""


def folder() -> Path:
    """The cache folder, made when it does not exist."""
    named = os.environ.get("SIDESTEP_E2E_CACHE")
    base = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sidestep"
    base.mkdir(parents=True, exist_ok=True)
    return base


@contextlib.contextmanager
def locked() -> Iterator[Path]:
    """Hold the cache folder alone."""
    base = folder()
    with open(base / "lock", "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another run is preparing the cache; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield base


uncaptured: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext
"""What lets a progress line pass; the tests put pytest's way around its capture here."""


def say(text: str) -> None:
    """A progress line."""
    with uncaptured():
        print(f"e2e: {text}", file=sys.__stderr__, flush=True)


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
            if not left:
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
                os.killpg(process.pid, 9)
                process.wait()
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
    """Remove older versions of an entry."""
    for path in folder().glob(pattern):
        if path != but:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
