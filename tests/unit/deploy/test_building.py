"""A run whose cluster cannot be built ends at once, with a status of its own."""

from __future__ import annotations

import subprocess
import sys

from tests.debian.cache import REPOSITORY
from tests.e2e import building

TESTS = """
import pytest
from tests.debian.cache import BuildError
from tests.e2e import building

@pytest.fixture(scope="session")
def cluster():
    with building.required():
        raise BuildError("building Kubernetes: not done after 2700 s")

def test_on_the_cluster(cluster):
    pass

def test_that_would_build_again():
    raise AssertionError("this ran")
"""


def test_nothing_more_is_tried(tmp_path):
    file = tmp_path / "test_some.py"
    file.write_text(TESTS)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        f"--rootdir={tmp_path}",
        "-c",
        "/dev/null",
    ]
    done = subprocess.run([*command, file], cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == building.NOT_BUILT, done
    assert "the cluster cannot be built: building Kubernetes: not done after 2700 s" in done.stdout
    assert "this ran" not in done.stdout
