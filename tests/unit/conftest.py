"""Every test begins with the logging of a process that has not configured any, and none fails for a slow machine.

Hypothesis' deadline and its judgement of slow strategies go by the wall clock, which on a busy machine says nothing of
the code under test; a test that hangs meets pytest's timeout. An ordinary run always looks at the same random examples,
so that it says something about the change it tests; `make fuzz` looks at others, each time.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import TYPE_CHECKING

import pytest
import structlog
from hypothesis import HealthCheck, settings

from tests.effort import FACTOR

if TYPE_CHECKING:
    from collections.abc import Generator

settings.register_profile("steady", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ordinary", settings.get_profile("steady"), derandomize=True)
settings.load_profile("ordinary" if FACTOR == 1 else "steady")


@pytest.fixture(autouse=True)
def _unconfigured_logs():
    yield
    structlog.reset_defaults()


@pytest.hookimpl
def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name long bytes after their argument: a ClientHello is random, and processes must agree on names of tests."""
    return argname if isinstance(val, bytes) and len(val) > 16 else None


if "PYTEST_XDIST_WORKER" in os.environ:
    # This process is measured (`make coverage`); the commands that tests start are not.
    os.environ.pop("COVERAGE_PROCESS_CONFIG", None)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect without the garbage collector: all tests stay, and looking at them takes it a quarter of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Run tests with the marker `unmeasured` without the tracer of `make coverage`: it makes them five times slower."""
    tracer = sys.gettrace()
    if tracer is None or not pyfuncitem.get_closest_marker("unmeasured"):
        return (yield)
    sys.settrace(None)
    try:
        return (yield)
    finally:
        sys.settrace(tracer)


@pytest.hookimpl
def pytest_sessionfinish() -> None:
    """Save what `make coverage` has measured: pytest-xdist kills a process that takes long to exit."""
    coverage = sys.modules.get("coverage")
    measured = coverage.Coverage.current() if coverage is not None else None
    if measured is not None and "PYTEST_XDIST_WORKER" in os.environ:
        measured.stop()
        measured.save()
