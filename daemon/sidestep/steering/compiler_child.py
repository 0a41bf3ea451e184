"""The compiler child: the only process that imports bcc. `python -m sidestep.steering.compiler_child SOURCE`.

Standard output carries exactly one `CompilerOutput`; whatever bcc or clang print goes to standard error. bcc creates
the maps in order to compile, so the instructions come with this process's map descriptors in them; they leave as
indices. The maps end with the process.
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
from sidestep.steering.headers import HeaderView, candidates
from sidestep.steering.layout import PROGRAM, SOURCES, Source
from sidestep.steering.program import FORMAT, CompilerOutput, MapLayout, rewrite_references

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
        result = CompilerOutput(format=FORMAT, error=str(error), functions={}, maps=())
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
    bcc = _import_bcc()
    release = os.uname().release
    trees = candidates(environment=os.environ, release=release)
    view = HeaderView(release=release)
    for headers in trees[:_MAX_ATTEMPTS]:
        view.show(headers)
        try:
            module = bcc.BPF(src_file=bytes(folder / f"{source.name}.c"), cflags=[f"-I{folder}"])
        except Exception as error:  # noqa: BLE001 - bcc raises nothing more precise; the next tree may serve
            print(f"error: {headers.build}: {error}", file=sys.stderr, flush=True)  # noqa: T201 - the parent reads it
            continue
        return _extract(bcc.lib, module, source)
    raise ConfigurationError(f"bcc cannot compile {source.name}.c with the headers in {trees[0].build}")


def _import_bcc() -> Any:
    sys.path.append(DISTRIBUTION_PACKAGES)
    try:
        import bcc
    except (ImportError, OSError) as error:
        raise ConfigurationError(MISSING_BCC) from error
    if not hasattr(bcc, "BPF"):
        raise ConfigurationError(MISSING_BCC)
    return bcc


def _extract(lib: Any, module: Any, source: Source) -> CompilerOutput:
    lib.bpf_table_name.restype = ctypes.c_char_p
    handle = module.module
    maps: list[MapLayout] = []
    indices: dict[int, int] = {}
    for index in range(lib.bpf_num_tables(handle)):
        indices[lib.bpf_table_fd_id(handle, index)] = index
        maps.append(
            MapLayout(
                name=lib.bpf_table_name(handle, index).decode(),
                type=lib.bpf_table_type_id(handle, index),
                key_size=lib.bpf_table_key_size_id(handle, index),
                value_size=lib.bpf_table_leaf_size_id(handle, index),
                entries=lib.bpf_table_max_entries_id(handle, index),
                flags=lib.bpf_table_flags_id(handle, index),
            ),
        )
    functions = {name: rewrite_references(module.dump_func(name.encode()), indices) for name in source.functions}
    return CompilerOutput(format=FORMAT, error="", functions=functions, maps=tuple(maps))


if __name__ == "__main__":
    sys.exit(main())
