"""Limits of a process, read back in a process of their own."""

import json
import subprocess
import sys

import pytest

PROGRAM = """
import json, resource, sys
from sidestep.sandbox import rlimits
hard = int(sys.argv[3])
if hard:
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
rlimits.apply(memory=int(sys.argv[1]), descriptors=int(sys.argv[2]), file_size=4096)
names = ("CORE", "DATA", "FSIZE", "MEMLOCK", "MSGQUEUE", "NOFILE", "NPROC")
print(json.dumps({name: resource.getrlimit(getattr(resource, "RLIMIT_" + name)) for name in names}))
"""


def limits(memory, descriptors, hard=0):
    """Apply the limits; those of the process after that, soft and hard."""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(memory), str(descriptors), str(hard)],
        capture_output=True,
        check=True,
        timeout=60,
    )
    return json.loads(result.stdout)


def test_soft_and_hard_limits_are_set():
    told = limits(1 << 30, 100)
    assert told == {
        "CORE": [0, 0],
        "DATA": [1 << 30, 1 << 30],
        "FSIZE": [4096, 4096],
        "MEMLOCK": [0, 0],
        "MSGQUEUE": [0, 0],
        "NOFILE": [100, 100],
        "NPROC": [0, 0],
    }


def test_without_a_bound_memory_is_not_limited():
    assert limits(0, 100)["DATA"] == [-1, -1]


@pytest.mark.parametrize(("hard", "descriptors", "limit"), [(50, 100, 50), (200, 100, 100)])
def test_descriptors_are_bounded_by_the_limit_that_there_is(hard, descriptors, limit):
    assert limits(0, descriptors, hard)["NOFILE"] == [limit, limit]
