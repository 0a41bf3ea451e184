"""Kernel headers for bcc: which tree to use, and how to show it to bcc without leaving a trace on the machine.

The program uses types of the kernel's user interface only, so any kernel's headers serve. Trees come in two shapes:

* merged: one folder has everything (an image, most distributions). bcc takes it through BCC_KERNEL_SOURCE.
* split: Debian's `build` (generated, per flavour) and `source` (common) folders. bcc knows these only as
  /lib/modules/<running release>/{build,source}. Where the running kernel has other headers or none, a private mount
  namespace gets an empty tmpfs over /lib/modules with these two links: nobody else sees it, it ends with the process.

Order: the folder that SIDESTEP_KERNEL_HEADERS names, the folder an image brings, the running kernel's own, then any
other installed, newest first. Used in the compiler child only.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from sidestep.model.errors import ConfigurationError, KernelError

VARIABLE = "SIDESTEP_KERNEL_HEADERS"
"""Environment variable that names a merged tree."""

IMAGE_TREE = Path("/usr/share/sidestep/kernel-headers")
"""Where a container image keeps its merged tree."""

MODULES = Path("/lib/modules")

MISSING = (
    f"no kernel headers found: install Debian's linux-headers-amd64 (or -arm64), or let {VARIABLE} name one merged tree"
)

_MARK = Path("include/linux/kconfig.h")
_CLONE_NEWNS = 0x00020000
_MS_REC = 0x4000
_MS_PRIVATE = 0x40000


class Headers(msgspec.Struct, frozen=True):
    """One usable tree: `build` alone when merged, with `source` when split. Both are absolute, without links."""

    build: Path
    source: Path | None = None


def candidates(*, environment: Mapping[str, str], release: str, modules: Path = MODULES) -> tuple[Headers, ...]:
    """Usable trees, best first. Raises ConfigurationError when a named tree is unusable or none is found."""
    named = environment.get(VARIABLE)
    if named:
        tree = Path(named)
        if not (tree / _MARK).is_file():
            raise ConfigurationError(f"has no {_MARK}: it must name one merged tree", subject=VARIABLE, value=named)
        return (Headers(build=tree.resolve()),)
    found: list[Headers] = []
    if (IMAGE_TREE / _MARK).is_file():
        found.append(Headers(build=IMAGE_TREE.resolve()))
    for folder in sorted(modules.glob("*"), key=lambda each: (each.name == release, _version(each.name)), reverse=True):
        build, source = folder / "build", folder / "source"
        if (build / _MARK).is_file():
            found.append(Headers(build=build.resolve()))
        elif build.is_dir() and (source / _MARK).is_file():
            found.append(Headers(build=build.resolve(), source=source.resolve()))
    if not found:
        raise ConfigurationError(MISSING, subject="steering")
    return tuple(found)


def _version(release: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d{1,9}", release))


class HeaderView:
    """Shows one tree after another to bcc in this process."""

    def __init__(self, *, release: str, modules: Path = MODULES) -> None:
        self._folder = modules / release
        self._private = False

    def prepare(self, trees: Iterable[Headers]) -> tuple[Headers, ...]:
        """Mount what showing these takes; afterwards `show` takes no capability. Returns those that can be shown: where
        nothing can be mounted, the ones that are in place. Raises KernelError when that is none."""
        wanted = tuple(trees)
        in_place = tuple(headers for headers in wanted if self._in_place(headers))
        if len(in_place) < len(wanted):
            try:
                _mount_private_tmpfs(self._folder.parent)
            except KernelError:
                if not in_place:
                    raise
                return in_place
            self._private = True
        return wanted

    def show(self, headers: Headers) -> None:
        """Make `headers`, one of those that were prepared, what bcc finds."""
        if headers.source is None:
            os.environ["BCC_KERNEL_SOURCE"] = str(headers.build)
            return
        os.environ.pop("BCC_KERNEL_SOURCE", None)
        if not self._private:
            return
        self._folder.mkdir(exist_ok=True)
        for link, target in ((self._folder / "build", headers.build), (self._folder / "source", headers.source)):
            link.unlink(missing_ok=True)
            link.symlink_to(target)

    def _in_place(self, headers: Headers) -> bool:
        build, source = self._folder / "build", self._folder / "source"
        return headers.source is None or (build.resolve(), source.resolve()) == (headers.build, headers.source)


def _mount_private_tmpfs(where: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) < 0:
        raise KernelError("unshare", ctypes.get_errno(), doing="making a private view of the kernel headers")
    for source, target, kind, flags in (
        (b"none", b"/", None, _MS_REC | _MS_PRIVATE),
        (b"tmpfs", bytes(where), b"tmpfs", 0),
    ):
        if libc.mount(source, target, kind, ctypes.c_ulong(flags), None) < 0:
            raise KernelError("mount", ctypes.get_errno(), doing="making a private view of the kernel headers")
