"""The compiler child: the only process that imports bcc. `python -m sidestep.steering.compiler_child SOURCE`.

Standard output carries exactly one `CompilerOutput`; whatever bcc or clang print goes to standard error.

Order: find the kernel headers, mount them where bcc looks, drop every capability, and only then import bcc. LLVM is
100 MiB of code that parses text and needs no capability: the sources refer to their maps by number (bpf/layout.h), so
compiling creates no map.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec

from sidestep.model.errors import ConfigurationError, SidestepError
from sidestep.steering import locked_memory
from sidestep.steering.egress_layout import EGRESS_SOURCE
from sidestep.steering.headers import HeaderView, candidates
from sidestep.steering.layout import LOOKUP_SOURCE, PEERNAME_SOURCE, PROGRAM, Source
from sidestep.steering.program import FORMAT, CompilerOutput
from sidestep.steering.unprivileged import drop_capabilities

SOURCES = {source.name: source for source in (LOOKUP_SOURCE, PEERNAME_SOURCE, EGRESS_SOURCE)}

DISTRIBUTION_PACKAGES = "/usr/lib/python3/dist-packages"
"""Where Debian puts python3-bpfcc; no virtual environment sees it."""

MISSING_BCC = "bcc is missing: install Debian's python3-bpfcc (the package called bcc on PyPI is something else)"

_PR_SET_PDEATHSIG = 1
_MAX_ATTEMPTS = 4


def main() -> int:
    """Compile, print, return 0; a failure is printed too, with status 1."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    output = os.dup(1)
    os.dup2(2, 1)
    try:
        result = compile_source(source_folder(), SOURCES[sys.argv[1] if len(sys.argv) > 1 else PROGRAM])
    except SidestepError as error:
        result = CompilerOutput(format=FORMAT, error=str(error), functions={})
    with os.fdopen(output, "wb") as stream:
        stream.write(msgspec.msgpack.encode(result))
    return 1 if result.error else 0


def source_folder() -> Path:
    """The folder of the C sources: inside the installed package, or beside `daemon/` in a checkout."""
    here = Path(__file__).resolve()
    for folder in (here.parents[1] / "bpf", here.parents[3] / "bpf"):
        if (folder / f"{PROGRAM}.c").is_file():
            return folder
    raise ConfigurationError(
        f"{PROGRAM}.c is missing from the installation: install Sidestep again", subject="steering"
    )


def compile_source(folder: Path, source: Source) -> CompilerOutput:
    """Compile one source of `folder` with the first kernel headers that serve."""
    release = os.uname().release
    view = HeaderView(release=release)
    trees = view.prepare(candidates(environment=os.environ, release=release)[:_MAX_ATTEMPTS])
    if locked_memory.is_charged():
        locked_memory.lift()  # bcc makes a map of its own, which needs no capability but counts against the limit
    drop_capabilities()
    bcc = _import_bcc()
    for headers in trees:
        view.show(headers)
        try:
            module = bcc.BPF(src_file=bytes(folder / f"{source.name}.c"), cflags=[f"-I{folder}"])
        except Exception as error:  # noqa: BLE001 - bcc raises nothing more precise; the next tree may serve
            print(f"error: {headers.build}: {error}", file=sys.stderr, flush=True)  # noqa: T201 - the parent reads it
            continue
        functions = {name: module.dump_func(name.encode()) for name in source.functions}
        return CompilerOutput(format=FORMAT, error="", functions=functions)
    raise ConfigurationError(f"bcc cannot compile {source.name}.c with the headers in {trees[0].build}")


def _import_bcc() -> Any:
    sys.path.append(DISTRIBUTION_PACKAGES)
    try:
        import bcc
    except (ImportError, OSError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "bcc":
            raise ConfigurationError(MISSING_BCC) from error
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise ConfigurationError(
            f"bcc is there and cannot be imported: {reason} (Debian's python3-bpfcc is for its own Python)"
        ) from error
    if not hasattr(bcc, "BPF"):
        raise ConfigurationError(MISSING_BCC)
    return bcc


if __name__ == "__main__":
    sys.exit(main())
