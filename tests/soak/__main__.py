"""`python -m tests.soak [SECONDS [SEED]]`: the soak, 30 minutes unless told otherwise, a third of it at the limits."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from tests.soak.limits import at_limits
from tests.soak.soak import soaking


def main() -> int:
    """Run; the exit status."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 1800.0
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else int(time.time())
    print(f"Soaking for {seconds:.0f} s, seed {seed}", flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="sidestep-soak-") as folder,
        at_limits(Path(folder), seed=seed, hold=6.0) as limits,
    ):
        findings = limits.run(seconds / 3)
    print(findings.text(), flush=True)
    with tempfile.TemporaryDirectory(prefix="sidestep-soak-") as folder, soaking(Path(folder), seed=seed) as soak:
        account = soak.run(seconds * 2 / 3)
    print(account.text())
    return int(bool(account.wrong or findings.wrong))


if __name__ == "__main__":
    sys.exit(main())
