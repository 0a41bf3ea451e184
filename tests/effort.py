"""How long the randomised tests look: a while in every run, longer with `make fuzz` (SIDESTEP_FUZZ times as long)."""

import os

FACTOR = int(os.environ.get("SIDESTEP_FUZZ", "1"))


def examples(count: int = 100) -> int:
    """`count` examples in an ordinary run."""
    return count * FACTOR
