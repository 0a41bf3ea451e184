"""What each run-time dependency costs: `python -m tests.bench.imports` prints a table for CONTRIBUTING.md.

Cost means: on top of what the process has imported anyway. For each dependency two interpreters are started. The first
imports the process (the node daemon, or the command line for what the daemon does not import) and notes the modules in
their order. The second imports all of them except Sidestep's own and those of the dependency, measures, imports those
of the dependency, and measures again. The modules of a dependency are those of its distribution and of what only it
requires. RSS is `VmRSS` after a collection, in MiB; the time is CPU time in ms; both are medians of `RUNS`. The size is
that of the installed files, byte code included.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

RUNS = 5
ROOTS = {
    "daemon": (
        "sidestep.node.daemon",
        "sidestep.node.cluster.service",
        "sidestep.kube.transport",
        "sidestep.proxy.runtime.zygote",
        "sidestep.proxy.runtime.worker",
    ),
    "command line": ("sidestep.cli.main", "sidestep.laptop.cluster_session", "sidestep.kube.portforward"),
}
"""What a process imports sooner or later."""
IMPORTED_BY = {"pyroute2": ["sidestep.netns.messages"], "kubernetes": ["sidestep.kube.transport"]}
"""Modules of Sidestep that import a dependency in a way of their own, and are measured in its place."""

_CHILD = """
import gc, importlib, json, sys, time

def rss():
    gc.collect()
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))

def load(names):
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            pass  # a module that exists only as an attribute of its package

before, measured = json.loads(sys.stdin.read())
load(before)
memory, began = rss(), time.process_time()
load(measured)
spent = time.process_time() - began
print(json.dumps([(rss() - memory) / 1024, spent * 1000]))
"""


def _run(program: str, given: str = "") -> str:
    return subprocess.run(
        [sys.executable, "-c", program], input=given, text=True, capture_output=True, check=True
    ).stdout


def modules(roots: Iterable[str]) -> list[str]:
    """The modules that a process imports, in their order."""
    lines = "".join(f"import {root}\n" for root in roots)
    found: list[str] = json.loads(_run(f"import json, sys\n{lines}print(json.dumps(list(sys.modules)))"))
    return [name for name in found if name != "__main__"]


def requirements(distribution: str) -> set[str]:
    """The names of the distributions that one requires, itself included, extras left out."""
    found, open_ = set(), [distribution]
    while open_:
        name = _canonical(open_.pop())
        if name in found:
            continue
        try:
            needed = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        found.add(name)
        open_ += [re.split(r"[\s;<>=!~\[(]", each, maxsplit=1)[0] for each in needed if "extra ==" not in each]
    return found


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def of_their_own(declared: Iterable[str]) -> dict[str, set[str]]:
    """For each declared dependency the distributions that nothing else requires."""
    needed = {name: requirements(name) for name in declared}
    return {
        name: {
            one
            for one in all_
            if one == name or not any(one in others for key, others in needed.items() if key != name)
        }
        for name, all_ in needed.items()
    }


def size(distributions: Iterable[str]) -> float:
    """MiB of their installed files."""
    files = {Path(str(file.locate())) for name in distributions for file in metadata.files(name) or ()}
    return sum(path.stat().st_size for path in files if path.is_file()) / 1024 / 1024


def main() -> None:
    """Measure and print the table."""
    runtime = [each for each in metadata.requires("sidestep") or () if "extra ==" not in each]
    declared = [_canonical(re.split(r"[\s;<>=!~\[(]", each, maxsplit=1)[0]) for each in runtime]
    packages = metadata.packages_distributions()
    imported = {process: modules(roots) for process, roots in ROOTS.items()}

    def owners(module: str) -> set[str]:
        return {_canonical(each) for each in packages.get(module.partition(".")[0], ())}

    print("| dependency | in | RSS, MiB | import, ms | installed, MiB |\n|---|---|---|---|---|")
    for name, group in sorted(of_their_own(declared).items()):
        process, mine = next(
            (
                (process, [module for module in found if owners(module) & group])
                for process, found in imported.items()
                if any(owners(module) & group for module in found)
            ),
            ("daemon", []),
        )
        others = [each for each in imported[process] if each not in mine and not each.startswith("sidestep")]
        runs = (
            [json.loads(_run(_CHILD, json.dumps([others, IMPORTED_BY.get(name, mine)]))) for _ in range(RUNS)]
            if mine
            else [[0.0, 0.0]]
        )
        memory, spent = (statistics.median(each[index] for each in runs) for index in (0, 1))
        version = metadata.version(name)
        shown = process if mine else "nothing at the start"
        print(f"| `{name}` {version} | {shown} | {memory:.1f} | {spent:.0f} | {size(group):.1f} |", flush=True)


if __name__ == "__main__":
    main()
