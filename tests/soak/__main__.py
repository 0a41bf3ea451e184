"""`python -m tests.soak [SECONDS [SEED]]`: the soak, 30 minutes unless told otherwise."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from tests.soak.soak import soaking


def main() -> int:
    """Run; the exit status."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 1800.0
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else int(time.time())
    print(f"Soaking for {seconds:.0f} s, seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="sidestep-soak-") as folder, soaking(Path(folder), seed=seed) as soak:
        account = soak.run(seconds)
    print(account.text())
    return int(bool(account.wrong))


if __name__ == "__main__":
    sys.exit(main())
