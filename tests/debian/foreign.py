"""Another architecture's Debian packages on this machine: unpacked without being run, then run by QEMU's user mode.

A root is made by unpacking the packages that apt resolves for the architecture. No maintainer script runs, which would
take minutes under emulation; what needs only its files (Python, bcc, a compiler) works. While `emulated` lasts, the
kernel starts the architecture's programs by QEMU (Documentation/admin-guide/binfmt-misc.rst).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.debian import cache, mirror
from tests.harness.processes import child

RECIPE = 1
"""To be raised when the way roots are made changes."""

BINFMT = Path("/proc/sys/fs/binfmt_misc")

_MERGED = ("bin", "sbin", "lib")
"""Folders of / that are links into /usr."""
_WITHIN = 15 * 60.0
"""Seconds that one attempt at one step may take on a busy machine; the longest takes a minute on an idle one."""

# The identification of an ELF program for AArch64, little-endian (elf(5)), and the bits of it that count.
_MAGIC = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
_MASK = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
_QEMU = "/usr/bin/qemu-aarch64-static"


def root(name: str, suite: str, packages: Sequence[str], *, alone: Sequence[str] = ()) -> Path:
    """An arm64 root of `suite` with `packages` and what they need, and with those of `alone` without what they need.

    A name in `alone` may be a metapackage: the packages that it depends on directly are meant then. Raises BuildError.
    The root must not be written to: enter it by `tests.debian.room.Room`.
    """
    origin = mirror.mirror()
    key = cache.digest(str(RECIPE), suite, origin, *sorted(packages), "alone", *sorted(alone))
    return cache.entry(f"{name}-{suite}-arm64", key, lambda made: _make(made, suite, origin, packages, alone)) / "root"


def _make(made: Path, suite: str, origin: str, packages: Sequence[str], alone: Sequence[str]) -> None:
    target, log, debs = made / "root", made / "log", made / "cache/archives"
    for folder in (made / "state/lists/partial", debs / "partial", made / "stage", target):
        folder.mkdir(parents=True)
    sources = made / "sources.list"
    sources.write_text(f"deb [signed-by={mirror.KEYRING}] {origin} {suite} main\n")
    settings = {
        "Dir::State": made / "state",
        "Dir::State::status": "/dev/null",
        "Dir::Cache": made / "cache",
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "/dev/null",
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "root",
        "APT::Install-Recommends": "false",
        "Acquire::Retries": "3",
    }
    options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]

    def apt(what: str, *words: str, cwd: Path = made) -> None:
        command = ["apt-get", *options, "-qq", *words]
        cache.step(what, command, log=log, within=_WITHIN, cwd=cwd, attempts=cache.ATTEMPTS)

    apt(f"reading what Debian {suite} has for arm64", "update")
    apt(f"fetching {len(packages)} arm64 packages and what they need", "install", "-y", "--download-only", *packages)
    for each in alone:
        apt(f"fetching {each}", "download", *_meant(each, options), cwd=debs)
    for folder in _MERGED:
        (target / "usr" / folder).mkdir(parents=True)
        (target / folder).symlink_to(f"usr/{folder}")
    unpack = (
        'for each in "$0"/*.deb; do dpkg-deb --fsys-tarfile "$each" | tar -x -C "$1" --keep-directory-symlink; done'
    )
    command = ["bash", "-euo", "pipefail", "-c", unpack, str(debs), str(target)]
    cache.step("unpacking them", command, log=log, within=_WITHIN)
    for folder in ("proc", "sys", "dev", "tmp", "run", "root", "etc/apt/apt.conf.d"):
        (target / folder).mkdir(parents=True, exist_ok=True)
    for folder in ("cache", "state"):
        cache.remove(made / folder)


def _meant(package: str, options: Sequence[str]) -> list[str]:
    """A package of headers or, for a metapackage, the packages of headers that it leads to."""
    found, left = [], [package]
    while left:
        one = left.pop()
        shown = subprocess.run(
            ["apt-cache", *options, "depends", one], capture_output=True, text=True, check=True, timeout=60
        ).stdout
        needed = [line.split()[-1] for line in shown.splitlines() if line.strip().startswith("Depends: linux-headers-")]
        left += [each for each in needed if each not in found]
        if one != package or not needed:
            found.append(one)
    return found


@contextlib.contextmanager
def emulated() -> Iterator[None]:
    """Let the kernel start arm64 programs by QEMU for as long as the block lasts. Raises BuildError.

    The entry is the machine's, not a namespace's: it has this process's number in its name and is removed at the end.
    """
    entry = f"sidestep-aarch64-{os.getpid()}"
    # With F the kernel opens the interpreter now: it need not exist in the root that is entered later.
    line = f":{entry}:M::{_MAGIC}:{_MASK}:{_QEMU}:F"
    hold = f"""
        [ -e {BINFMT}/register ] || mount -t binfmt_misc binfmt_misc {BINFMT}
        printf %s "$0" >{BINFMT}/register
        echo ready
        read -r end || true
        echo -1 >{BINFMT}/{entry}
    """
    command = ["unshare", "--mount", "sh", "-euc", hold, line]
    with child(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as holder:
        try:
            if holder.stdout.readline() != b"ready\n":
                raise cache.BuildError(f"arm64 programs cannot be emulated: {holder.stderr.read().decode().strip()}")
            yield
        finally:
            holder.stdin.close()
            holder.wait(30)
