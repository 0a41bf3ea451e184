"""Runs the tests that have failed beside others once more, by themselves: `python -m tests.again [CACHE]`.

Most tests wait for real processes, several at a time on two cores, with hundreds of others before and after them. One
failure in a run of thousands says little about the test that has it, and a run that fails for it says nothing about the
others. So each test that failed gets a second run with the machine to itself. That must pass, or the run has failed:

    no test failed (collection broke, the run was interrupted)    nothing is run again, the run has failed
    more than MOST failed                                         so many do not fail by accident: likewise
    otherwise                                                     they run one after another, and decide

Whoever reads the output sees both runs, and the names: a test that needs its second run twice in a row has a fault, or
is about one.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Final, NoReturn

MOST: Final = 4
"""Failed tests that are run again."""
CACHE: Final = ".pytest_cache"
"""Where pytest keeps what failed last unless told another folder; the run before begins with `--cache-clear`."""


def failed(cache: Path) -> list[str]:
    """The tests that failed last, by their node ids, in order. Without a record there are none."""
    try:
        return sorted(json.loads((cache / "v" / "cache" / "lastfailed").read_text()))
    except FileNotFoundError:
        return []


def main() -> NoReturn:
    """Replace this process by pytest, or exit with 1."""
    cache = sys.argv[1] if len(sys.argv) > 1 else CACHE
    tests = failed(Path(cache))
    if not 0 < len(tests) <= MOST:
        sys.exit(f"sidestep: {len(tests)} tests failed; of 1 to {MOST} each would be run again by itself")
    print(f"sidestep: {len(tests)} failed; each must pass by itself:", *tests, sep="\n  ", flush=True)
    os.execv(sys.executable, [sys.executable, "-m", "pytest", "-q", "-o", f"cache_dir={cache}", *tests])


if __name__ == "__main__":
    main()
