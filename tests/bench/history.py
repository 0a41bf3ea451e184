"""What runs of the benchmark measured, one JSON file each, and how a figure changed from run to run.

    python -m tests.bench.history [FOLDER]

`make bench` adds a file to the folder; whoever commits it makes the trend longer. Runs on different machines do not
compare, so each says what it ran on; ratios wobble less than figures, because a peer was measured beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import ssl
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "history"
SHOWN = 8
"""Runs that are shown beside each other; older ones stay in the folder."""

_PROGRAMS = {"haproxy": ["haproxy", "-v"], "nginx": ["nginx", "-v"], "h2load": ["h2load", "--version"]}


def facts() -> dict[str, Any]:
    """What a run depends on: date, commit, kernel, processor, versions of what takes part, load before it began."""
    return {
        "date": time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime()),
        "commit": _first_line(["git", "-C", str(FOLDER.parent), "describe", "--always", "--dirty"]) or "unknown",
        "kernel": platform.release(),
        "processor": _processor(),
        "processors": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "openssl": ssl.OPENSSL_VERSION.split()[1],
        **{name: _first_line(command) for name, command in _PROGRAMS.items()},
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _first_line(command: list[str]) -> str:
    """What a program says of itself first; empty if it is not there, or fails."""
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError:
        return ""
    return "" if ended.returncode else (ended.stdout or ended.stderr).partition("\n")[0].strip()


def add(folder: Path, content: Mapping[str, Any]) -> Path:
    """Write what `report.content` gave, with the facts in it, to a file of its own; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    run = content["facts"]
    path = folder / f"{run['date'].replace(':', '')}-{run['commit']}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def values(content: Mapping[str, Any]) -> dict[str, float]:
    """Every figure of a run by its name: ratios, then the others with their units."""
    found = {each["row"]: each["ratio"] for each in content["ratios"]}
    return found | {f"{each['row']} [{each['unit']}]": each["value"] for each in content["figures"]}


def trend(runs: list[Mapping[str, Any]]) -> list[str]:
    """A table: a line for each figure, a column for each of the last runs, oldest first; empty: not measured."""
    runs = sorted(runs, key=lambda content: content["facts"]["date"])[-SHOWN:]
    columns = [values(content) for content in runs]
    names = list(dict.fromkeys(name for column in columns for name in column))
    width = max(map(len, names), default=0)
    lines = [
        " ".join([f"{title:{width}}", *(f"{str(content['facts'][title])[:10]:>10}" for content in runs)])
        for title in ("date", "commit", "load", "python", "openssl")
    ]
    for name in names:
        cells = (f"{column[name]:10.3f}" if name in column else " " * 10 for column in columns)
        lines.append(" ".join([f"{name:{width}}", *cells]).rstrip())
    return lines


def main() -> int:
    """Print the trend."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.history", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER, help=f"default: {FOLDER.name} beside this file")
    folder = parser.parse_args().folder
    files = sorted(folder.glob("*.json"))
    if not files:
        print(f"no runs in {folder}; make bench adds one", file=sys.stderr)
        return 1
    print("\n".join(trend([json.loads(path.read_text()) for path in files])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
