"""Every test begins with the logging of a process that has not configured any."""

from __future__ import annotations

import pytest
import structlog


@pytest.fixture(autouse=True)
def _unconfigured_logs():
    yield
    structlog.reset_defaults()
