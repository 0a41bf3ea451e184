"""Demo: tells the story once, with real components. Exits with 0 only if every statement was observed."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType

from tests.demo.story import Story, tell
from tests.harness.waiting import DeadlineError


def main() -> int:
    """Exit status: 0 all observed, 1 something was not, 130 interrupted. Everything is cleaned up in each case."""
    argparse.ArgumentParser(prog="python -m tests.demo", description=__doc__).parse_args()
    if os.geteuid() != 0:
        print(
            "sidestep: the demo makes network namespaces and loads eBPF; run it as root: sudo make demo",
            file=sys.stderr,
        )
        return 1
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    story = Story()
    try:
        with tempfile.TemporaryDirectory(prefix="sidestep-demo-") as folder:
            tell(story, Path(folder))
    except KeyboardInterrupt:
        print("\nInterrupted. Everything that was set up is gone again.")
        return 130
    except (DeadlineError, AssertionError) as error:
        print(f"\nThe story ends early: {error}")
        return 1
    return story.end()


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
