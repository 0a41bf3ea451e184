"""Every test begins with the logging of a process that has not configured any, and none fails for a slow machine.

Hypothesis' deadline and its judgement of slow strategies go by the wall clock, which on a busy machine says nothing of
the code under test; a test that hangs meets pytest's timeout. An ordinary run always looks at the same random examples,
so that it says something about the change it tests; `make fuzz` looks at others, each time.
"""

from __future__ import annotations

import gc
import importlib
import os
import pkgutil
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
import structlog
from hypothesis import HealthCheck, settings

from tests.effort import FACTOR

if TYPE_CHECKING:
    from collections.abc import Generator

    from coverage import Coverage

HERE: Final = Path(__file__).parent

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


class Measurement:
    """What `make coverage` measures: the covered packages, in the tests in the folders of these packages.

    The tracer makes the code of these packages five times as slow, and pytest itself twice. So it is off, except

        while all modules of the packages are imported, before any test is
        while a test function of these folders runs

    It stays off in randomised tests, whose share depends on chance, in those with the marker `unmeasured`, in fixtures,
    in threads that tests start, and when a test that failed runs again.
    """

    def __init__(self, measured: Coverage) -> None:
        self._measured: Final = measured
        self._packages: Final[list[str]] = measured.get_option("run:source")
        self._folders: Final = {HERE / each.removeprefix("sidestep.").replace(".", "/") for each in self._packages}
        self._tracer: Final = sys.gettrace()
        assert self._tracer is not None, "coverage measures by a tracer that cannot be switched off"

    @pytest.hookimpl
    def pytest_sessionstart(self) -> None:
        """Run the statements of modules, and no other code yet."""
        for each in self._packages:
            package = importlib.import_module(each)
            for module in pkgutil.walk_packages(package.__path__, f"{each}."):
                importlib.import_module(module.name)
        threading.settrace(None)
        sys.settrace(None)

    @pytest.hookimpl(wrapper=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> Generator[None, object, object]:
        """Measure a test of the packages."""
        if not self._measures(pyfuncitem):
            return (yield)
        sys.settrace(self._tracer)
        try:
            return (yield)
        finally:
            sys.settrace(None)

    def _measures(self, test: pytest.Function) -> bool:
        randomised = getattr(test.obj, "is_hypothesis_test", False)
        unmeasured = randomised or test.get_closest_marker("unmeasured")
        return not unmeasured and not self._folders.isdisjoint(test.path.parents)

    @pytest.hookimpl
    def pytest_sessionfinish(self) -> None:
        """Save what was measured: pytest-xdist kills a process that takes long to exit."""
        self._measured.stop()
        self._measured.save()


@pytest.hookimpl
def pytest_configure(config: pytest.Config) -> None:
    """Measure where tests run; the process that distributes them runs none."""
    coverage = sys.modules.get("coverage")
    measured = coverage.Coverage.current() if coverage is not None else None
    if measured is None:
        return
    if config.getoption("numprocesses", None):
        measured.stop()
    else:
        config.pluginmanager.register(Measurement(measured))
