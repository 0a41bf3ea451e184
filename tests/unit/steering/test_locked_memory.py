"""Kernels before 5.11 count maps and programs against RLIMIT_MEMLOCK: the limit is lifted, or the error names it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from sidestep.steering import locked_memory

KERNEL = """
import ctypes, errno, json, platform, resource, sys
from types import SimpleNamespace
from sidestep.model.errors import KernelError
from sidestep.steering import bpf

calls = []

def syscall(number, command, attributes, size):
    calls.append(command)
    if command != 28 and 0 <= resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] < int(sys.argv[2]):
        ctypes.set_errno(errno.EPERM)
        return -1
    return 77

bpf._libc = SimpleNamespace(syscall=syscall)
platform.release = lambda: sys.argv[1]
_, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, hard))
said = []
for work in (
    lambda: bpf.map_create(name="m", map_type=1, key_size=4, value_size=4, entries=1, flags=0),
    lambda: bpf.prog_load(name="p", instructions=bytes(8)),
    lambda: bpf.link_create(3, 4),
):
    try:
        said.append(work())
    except KernelError as error:
        said.append(str(error))
print(json.dumps({"said": said, "calls": calls}))
"""
"""A process whose bpf(2) refuses everything, as a kernel that charges does, while RLIMIT_MEMLOCK is limited."""


WITHOUT = ("setpriv", "--inh-caps=-all", "--bounding-set=-sys_resource", "prlimit", "--memlock=65536:65536")
"""Runs a command that cannot lift its limit."""


def on_a_kernel(release, *wrapper, needed=1 << 20):
    command = [*wrapper, sys.executable, "-c", KERNEL, release, str(needed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    return json.loads(done.stdout)


@pytest.mark.privileged
def test_where_the_limit_may_be_lifted_it_is_and_the_call_made_again():
    """Up to the hard limit that takes no capability."""
    seen = on_a_kernel("5.10.0-30-cloud-amd64", "prlimit", "--memlock=65536:8388608")
    assert seen["said"] == [77, 77, 77]
    assert seen["calls"] == [0, 0, 5, 28]


@pytest.mark.privileged
def test_without_the_capability_the_error_names_the_limit_the_kernel_and_the_way_out():
    seen = on_a_kernel("5.10.0-30-cloud-amd64", *WITHOUT)
    assert seen["calls"] == [0, 0, 5, 5, 28]
    for said in seen["said"][:2]:
        for words in ("Linux 5.10.0-30-cloud-amd64", "RLIMIT_MEMLOCK", "64 KiB", "CAP_SYS_RESOURCE", "deploy/patches"):
            assert words in said
    assert seen["said"][2] == 77  # attaching is not charged


@pytest.mark.privileged
def test_a_kernel_that_charges_nothing_is_not_suspected():
    seen = on_a_kernel("5.11.0", *WITHOUT)
    assert seen["calls"] == [0, 5, 28]
    assert "Operation not permitted" in seen["said"][0]
    assert not any("RLIMIT_MEMLOCK" in str(said) for said in seen["said"])


@pytest.mark.parametrize(
    ("release", "version"),
    [("5.10.0-30-cloud-amd64", (5, 10)), ("6.18.44-fc-v657", (6, 18)), ("7.2.12+deb14-amd64", (7, 2)), ("odd", ())],
)
def test_the_version_is_read_from_a_release(release, version):
    assert locked_memory.kernel_version(release) == version
