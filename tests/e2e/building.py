"""A run whose cluster cannot be built ends at once.

No test of it could pass, and tests that want one of the programs would begin the build anew, which may take most of an
hour before it fails again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.debian.cache import BuildError

NOT_BUILT = 3
"""Exit status of such a run; not that of failed tests (1), which would be run again (tests/again.py)."""


@contextlib.contextmanager
def required() -> Iterator[None]:
    """End the run when something in the block cannot be built."""
    try:
        yield
    except BuildError as error:
        pytest.exit(f"the cluster cannot be built: {error}", returncode=NOT_BUILT)
