"""Programs that the tests start meet the environment that users have, not what is set in this shell.

With PYTHONUNBUFFERED Python's streams have neither a buffer nor a lock, so that neither can be found to be in the way.
With PYTHONDONTWRITEBYTECODE every command of a checkout compiles its modules again, which is a quarter of the CPU time
of the system tests. Where SIGINT is ignored, as in the background of a shell, it is not for them: tests interrupt them.

Tests that need Landlock are left out on a kernel that has none, and the summary names them.

What runs at a lower priority beside other tests gets what these leave: its tests have more time (`PATIENCE`).

Where files run side by side, those with the marker `long` begin first, then those with the most tests: what begins last
should be short, or one process works while the others have nothing left.
"""

import collections
import os
import signal

import pytest

from sidestep.ids.confinement import landlock_version
from tests.harness import warm

for name in ("PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"):
    os.environ.pop(name, None)
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

PATIENCE = 6
"""So many times as long may a test take that runs at a lower priority."""
NO_LANDLOCK = pytest.StashKey[list[str]]()


def pytest_collection_modifyitems(config, items):
    """Leave out what this kernel cannot have."""
    absent = [] if landlock_version() else [item for item in items if item.get_closest_marker("landlock")]
    if absent:
        config.hook.pytest_deselected(items=absent)
        items[:] = [item for item in items if item not in absent]
    config.stash[NO_LANDLOCK] = [item.nodeid for item in absent]
    if os.nice(0) > 0:
        asked = config.getoption("timeout", None)
        usual = float(config.getini("timeout") or 0) if asked is None else asked
        for item in items:
            own = item.get_closest_marker("timeout")
            seconds, *others = own.args if own and own.args else (usual,)
            options = own.kwargs if own else {}
            item.add_marker(pytest.mark.timeout(PATIENCE * seconds, *others, **options), append=False)
    if config.getoption("numprocesses", None) or "PYTEST_XDIST_WORKER" in os.environ:
        tests = collections.Counter(item.path for item in items)
        long = {item.path for item in items if item.get_closest_marker("long")}
        items.sort(key=lambda item: (item.path not in long, -tests[item.path], item.path))


def _starts(request):
    """Set whether what is started meanwhile may come from an interpreter that has imported it; set it back."""
    before = warm.allowed
    warm.allowed = not any(request.node.get_closest_marker(name) for name in ("cold", "alone"))
    yield
    warm.allowed = before


@pytest.fixture(scope="module", autouse=True)
def _starts_of_module(request):
    """For the scenes that the tests of a file share."""
    yield from _starts(request)


@pytest.fixture(autouse=True)
def _starts_of_test(request):
    """For one test."""
    yield from _starts(request)


def pytest_terminal_summary(terminalreporter, config):
    for name in config.stash.get(NO_LANDLOCK, []):
        terminalreporter.write_line(f"left out: {name} (this kernel has no Landlock)")
