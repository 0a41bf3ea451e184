"""Every test begins with the logging of a process that has not configured any, and none fails for a slow machine.

Hypothesis' deadline and its judgement of slow strategies go by the wall clock, which on a busy machine says nothing of
the code under test; a test that hangs meets pytest's timeout.
"""

from __future__ import annotations

import pytest
import structlog
from hypothesis import HealthCheck, settings

settings.register_profile("steady", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")


@pytest.fixture(autouse=True)
def _unconfigured_logs():
    yield
    structlog.reset_defaults()
