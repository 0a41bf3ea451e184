"""Stands in for bcc in the compiler child of a daemon that a test started: compiles each source once per test run.

The child imports the module `bcc` from the folder that `tests.harness.node` puts on its path, which is this one. All of
the product's code runs: the child starts, finds the kernel headers and shows them, drops its capabilities, and its
answer is checked. Only clang is left out, and only when the folder in $SIDESTEP_TEST_COMPILED has what the real bcc
made of the same source with the same options, headers and kernel earlier in the run.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

VARIABLE = "SIDESTEP_TEST_COMPILED"
"""Environment variable with the folder of a test run, which root owns: the child has no capability left."""

PACKAGES = "/usr/lib/python3/dist-packages"
"""Where Debian puts the real one."""


class BPF:
    """What the child uses of `bcc.BPF`."""

    def __init__(self, *, src_file: bytes, cflags: list[str]) -> None:
        self._arguments = {"src_file": src_file, "cflags": cflags}
        self._key = _key(Path(os.fsdecode(src_file)), cflags)
        self._real: Any = None

    def dump_func(self, name: bytes) -> bytes:
        """The instructions of a function."""
        kept = Path(os.environ[VARIABLE]) / f"{self._key}-{name.decode()}"
        if kept.exists():
            return kept.read_bytes()
        if self._real is None:
            self._real = _real_bcc().BPF(**self._arguments)
        instructions: bytes = self._real.dump_func(name)
        partial = kept.with_name(f"{kept.name}.{os.getpid()}")
        partial.write_bytes(instructions)
        partial.rename(kept)
        return instructions


def _key(source: Path, options: list[str]) -> str:
    """A name for everything that the instructions depend on and that may change within a test run."""
    release = os.uname().release
    modules = Path("/lib/modules") / release
    headers = (os.environ.get("BCC_KERNEL_SOURCE"), (modules / "build").resolve(), (modules / "source").resolve())
    whole = hashlib.sha256("\0".join([source.name, release, *options, *map(str, headers)]).encode())
    for path in sorted(source.parent.glob("*.[ch]")):
        whole.update(b"\0" + path.read_bytes())
    return whole.hexdigest()[:32]


def _real_bcc() -> Any:
    spec = importlib.machinery.PathFinder.find_spec("bcc", [PACKAGES])
    if spec is None or spec.loader is None:
        raise ImportError(f"no bcc in {PACKAGES}")
    # Its modules import each other by the name of the package.
    module = sys.modules["bcc"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
