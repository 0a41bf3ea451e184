"""Debian's cloud kernels: fetched with an apt configuration of their own, unpacked once, kept in the cache.

The lists of a suite are read in every run, so that each run takes the newest kernel that the suite has; what was
unpacked before is used again when it is that kernel.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.debian import cache, mirror
from tests.debian.cache import BuildError

SUITES = {"5.10": "bullseye", "6.1": "bookworm", "6.12": "trixie", "newest": "sid"}
"""The suite whose kernel is meant, by the name that a run gives to it."""

META = "linux-image-cloud-amd64"
"""Depends on the newest kernel of a suite. The cloud kernels are the smallest that have what is needed."""

RECIPE = 1
"""To be raised when the way kernels are unpacked changes."""

_WITHIN = 15 * 60.0


@dataclass(frozen=True)
class Kernel:
    """One unpacked kernel. `base` is the folder that depmod(8) and modprobe(8) take with `-b`."""

    release: str
    image: Path
    base: Path

    @property
    def modules(self) -> Path:
        """The folder of its modules."""
        return self.base / "lib/modules" / self.release


def chosen(names: Sequence[str]) -> list[str]:
    """The names of the kernels of a run, oldest first; all when none is given. Raises BuildError."""
    unknown = [name for name in names if name not in SUITES]
    if unknown:
        raise BuildError(f"no such kernel: {', '.join(unknown)} (there are {', '.join(SUITES)})")
    return [name for name in SUITES if not names or name in names]


def kernel(name: str) -> Kernel:
    """Fetch and unpack the newest cloud kernel of a suite. Raises BuildError."""
    if mirror.architecture() != "amd64":
        raise BuildError("the kernels and the emulated machine are amd64; run this on an amd64 machine")
    suite = SUITES[name]
    with tempfile.TemporaryDirectory(prefix=f"kernel-{name}-", dir=cache.folder()) as folder:
        options = _apt(Path(folder), suite)
        log = Path(folder) / "log"
        cache.step(
            f"fetching Debian's list of packages of {suite}",
            ["apt-get", *options, "-qq", "--error-on=any", "update"],
            log=log,
            within=_WITHIN,
            attempts=cache.ATTEMPTS,
        )
        wanted = packages(lambda package: _printed("apt-cache", *options, "depends", package))
        # One line a package: URL, file name, size, digest.
        key = cache.digest(str(RECIPE), _printed("apt-get", *options, "-qq", "download", "--print-uris", *wanted))
        made = cache.entry(f"kernel-{name}", key, lambda partial: _unpack(partial, wanted, options))
    return unpacked(made)


def packages(depends: Callable[[str], str]) -> list[str]:
    """The packages that make up the newest kernel of a suite. Raises BuildError.

    `depends` returns what `apt-cache depends` prints of a package. Up to Linux 6.12 the image's package has the modules
    too; later ones depend on a package with the image and one with the modules.
    """
    found = _dependencies(depends(META), r"linux-image-\S+")
    if len(found) != 1:
        raise BuildError(f"{META} depends on {len(found)} kernels, not on one")
    return [*found, *_dependencies(depends(found[0]), r"linux-(?:binary|modules)-\S+")]


def _dependencies(printed: str, pattern: str) -> list[str]:
    return re.findall(rf"^ +Depends: ({pattern})$", printed, re.MULTILINE)


def unpacked(base: Path) -> Kernel:
    """The kernel in a folder that `_unpack` filled. Raises BuildError."""
    modules = list((base / "lib/modules").iterdir())
    if len(modules) != 1:
        raise BuildError(f"{base}: modules of {len(modules)} kernels, not of one")
    release = modules[0].name
    # From Linux 7 on the image lies beside its modules.
    images = [path for path in (base / f"boot/vmlinuz-{release}", modules[0] / "vmlinuz") if path.is_file()]
    if len(images) != 1:
        raise BuildError(f"{base}: {len(images)} images of Linux {release}, not one")
    return Kernel(release, images[0], base)


def _unpack(work: Path, wanted: Sequence[str], options: Sequence[str]) -> None:
    log = work / "log"
    cache.step(
        f"fetching {wanted[0]} (40 to 90 MB)",
        ["apt-get", *options, "-qq", "download", *wanted],
        log=log,
        within=_WITHIN,
        attempts=cache.ATTEMPTS,
        cwd=work,
    )
    for package in sorted(work.glob("*.deb")):
        cache.step(f"unpacking {package.name}", ["dpkg-deb", "-x", package, work], log=log, within=_WITHIN)
        package.unlink()
    if (work / "usr/lib/modules").is_dir():
        (work / "lib").mkdir()
        (work / "usr/lib/modules").rename(work / "lib/modules")
    release = unpacked(work).release
    cache.step(f"indexing the modules of {release}", ["depmod", "-b", work, release], log=log, within=_WITHIN)


def _apt(work: Path, suite: str) -> list[str]:
    """Options of apt that keep the machine's proxy and trust, and leave its sources, lists and packages alone."""
    for name in ("lists", "archives"):
        (work / name / "partial").mkdir(parents=True)
    sources = work / "kernel.sources"
    sources.write_text(
        f"Types: deb\nURIs: {mirror.mirror()}\nSuites: {suite}\nComponents: main\nArchitectures: amd64\n"
        f"Signed-By: {mirror.KEYRING}\n"
    )
    settings = {
        "Dir::Etc::SourceList": sources,
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": work / "lists",
        "Dir::State::status": "/dev/null",
        "Dir::Cache": work,
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
    }
    return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]


def _printed(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode:
        raise BuildError(f"{command[0]}: exit status {done.returncode}: {done.stderr.strip()}")
    return done.stdout
