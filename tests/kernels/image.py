"""The disks and the initial RAM disk of a guest.

Two disks, of which QEMU writes to neither: the Debian root with all packages, made once and kept in the cache, and one
made in each run, with the sources, their virtual environment, the modules of the kernels and, for the step that boots a
Kubernetes node, all parts of that node. The initial RAM disk has
busybox and the modules without which the kernel sees no disk.
"""

from __future__ import annotations

import lzma
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.debian import cache, roots, suite
from tests.debian.cache import BuildError
from tests.debian.room import Room
from tests.kernels import node
from tests.kernels.packages import Kernel

SUITE = "trixie"
"""The Debian whose userland all guests have."""

NEEDED = ("virtio_pci", "virtio_blk", "ext4")
"""Modules without which the disks cannot be mounted."""

RECIPE = 1
"""To be raised when the way the disk of the root is made changes."""

_BUSYBOX = Path("/bin/busybox")
_HERE = Path(__file__).parent
_WITHIN = 15 * 60.0


def root(packages: Sequence[str]) -> Path:
    """The disk with the Debian root. Raises BuildError."""
    folder = _folder(packages)

    def make(partial: Path) -> None:
        _disk(partial / "disk", folder, "4G", partial / "log")

    return cache.entry("kernels-disk", cache.digest(str(RECIPE), folder.parent.name), make) / "disk"


def _folder(packages: Sequence[str]) -> Path:
    return roots.root("kernels", SUITE, sorted({*suite.MAKE, "kmod", *packages}))


def sources(folder: Path, packages: Sequence[str], kernels: Sequence[Kernel], *, cluster: bool = False) -> Path:
    """The disk with the working tree's files and environment, and the modules, made in `folder`. Raises BuildError.

    With `cluster` it also has what a Kubernetes node is made of, as the cache of the guest.
    """
    content, log = folder / "content", folder / "log"
    place = _folder(packages)
    binds = suite.prepare(SUITE, place, content / "src", log)
    # The emulated processor would spend minutes on this.
    room = Room(place, binds=binds, memory=["/tmp"], directory="/src")
    compiling = room.run(".venv/bin/python", "-m", "compileall", "-q", "daemon", "tests")
    cache.step("compiling the sources", compiling, log=log, within=_WITHIN)
    for kernel in kernels:
        shutil.copytree(kernel.modules, content / "modules" / kernel.release, symlinks=True)
    if cluster:
        node.furnish(content / "cache", log)
    _disk(folder / "disk", content, "12G" if cluster else "4G", log)
    shutil.rmtree(content)
    return folder / "disk"


def initrd(folder: Path, kernel: Kernel) -> Path:
    """The initial RAM disk, made in `folder`. Raises BuildError."""
    content = folder / f"initrd-{kernel.release}"
    for name in ("bin", "modules", "new", "proc", "dev"):
        (content / name).mkdir(parents=True)
    shutil.copy2(_BUSYBOX, content / "bin/busybox")
    shutil.copy2(_HERE / "initrd.sh", content / "init")
    (content / "init").chmod(0o755)
    for number, path in enumerate(in_order((kernel.modules / "modules.dep").read_text(), NEEDED)):
        module = content / "modules" / f"{number:02}-{Path(path).name.split('.')[0]}.ko"
        module.write_bytes(_plain(kernel.modules / path))
    made = folder / f"initrd-{kernel.release}.gz"
    packing = ["sh", "-euc", 'find . | cpio --quiet -o -H newc | gzip -1 >"$1"', "sh", made]
    cache.step(
        f"packing the initial RAM disk of {kernel.release}", packing, log=folder / "log", within=_WITHIN, cwd=content
    )
    return made


def in_order(dependencies: str, names: Sequence[str]) -> list[str]:
    """The files of modules and of those they need, in the order in which they are loaded.

    `dependencies` is the text of modules.dep(5). What the kernel has built in is not in it, and is left out.
    """
    needs = {}
    for line in dependencies.splitlines():
        path, _, others = line.partition(":")
        # The last one named is the first to be loaded.
        needs[Path(path).name.split(".")[0].replace("-", "_")] = [*reversed(others.split()), path]
    return list(dict.fromkeys(path for name in names for path in needs.get(name, [])))


def _plain(path: Path) -> bytes:
    """The content of a module, which Debian compresses from Linux 6.12 on."""
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    if path.suffix == ".zst":
        done = subprocess.run(["zstd", "-qdc", path], capture_output=True, check=False, timeout=60)
        if done.returncode:
            raise BuildError(f"zstd: {path}: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout
    return path.read_bytes()


def _disk(target: Path, content: Path, size: str, log: Path) -> None:
    # Sparse; without a journal, because a guest's writes are never kept.
    command = ["mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d", content, target, size]
    cache.step(f"making a disk of {content.name}", command, log=log, within=_WITHIN)
