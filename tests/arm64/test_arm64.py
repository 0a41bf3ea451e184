"""The product's code and eBPF programs, as they are on arm64."""

from __future__ import annotations

import asyncio
import functools

import msgspec
import pytest

from sidestep.steering.client_names import ClientNames
from sidestep.steering.compiler import compile_source
from sidestep.steering.compiler_child import SOURCES
from sidestep.steering.layout import LOOKUP_SOURCE, PEER4, PEER6, PEERNAME_SOURCE, PROGRAM
from sidestep.steering.program import CompilerOutput, checked
from tests.arm64.conftest import installed
from tests.debian import cache
from tests.harness.cgroups import cgroup
from tests.harness.namespaces import pod_namespace
from tests.privileged.steering.answering import app, ask
from tests.privileged.steering.conftest import PORT, steered

pytestmark = pytest.mark.timeout(3600)

PACKAGES = ("model", "policy", "snapshots", "node/planning", "steering")
"""Packages without I/O, and what packs the values of the programs' maps.

The unit tests of `config`, `protocols` and `engine` take much longer under emulation.
"""
MARKED = "not alone and not privileged"
"""Neither what measures time nor what needs a kernel of arm64's."""


@pytest.fixture(scope="module")
def compiled(arm64):
    """A function: what the compiler child, with arm64's bcc, LLVM and kernel headers, makes of a source, once."""

    @functools.cache
    def compile_on_arm64(name):
        done = arm64.run("python3", "-m", "sidestep.steering.compiler_child", name, within=1200)
        assert done.returncode == 0, (done.stdout[-2000:], done.stderr[-2000:])
        return checked(msgspec.msgpack.decode(done.stdout, type=CompilerOutput), SOURCES[name])

    return compile_on_arm64


def test_the_emulated_machine_is_arm64(arm64):
    done = arm64.run("python3", "-c", "import platform; print(platform.machine())", within=120)
    assert done.stdout == b"aarch64\n", done.stderr


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_both_architectures_compile_to_the_same_instructions_and_maps(compiled, name):
    """Registers, keys, values and contexts are laid out alike: one Python side serves both."""
    here = asyncio.run(compile_source(SOURCES[name]))
    assert compiled(name) == here


def test_the_program_that_arm64_compiled_steers_a_connection(compiled):
    """The kernel's verifier accepts it, and its keys are those that the daemon writes."""
    program = compiled(LOOKUP_SOURCE.name)[PROGRAM]
    with pod_namespace() as pod, steered(program, pod) as pair, app(pod.pod, "::", PORT):
        assert [ask(pod.client, ip, PORT) for ip in pod.ips] == [b"app", b"app"]
        pair.steer()
        assert [ask(pod.client, ip, PORT) for ip in pod.ips] == [b"proxy", b"proxy"]
        assert [ask(pod.pod, ip, PORT) for ip in ("127.0.0.1", *pod.ips)] == [b"app"] * 3


def test_the_kernel_accepts_the_programs_that_arm64_compiled_for_client_addresses(compiled):
    functions = compiled(PEERNAME_SOURCE.name)
    with cgroup() as folder:
        names = ClientNames.attach((functions[PEER4], functions[PEER6]), str(folder))
        names.close()


@pytest.mark.parametrize("python", ["311", "313"])
def test_every_package_of_the_image_exists_for_arm64(python):
    packages = installed(cache.REPOSITORY / "deploy/runtime.lock", python)
    assert list(packages.glob(f"msgspec/*.cpython-{python}-aarch64-linux-gnu.so"))


@pytest.mark.parametrize("package", PACKAGES)
def test_unit_tests_of_a_package_without_io(arm64, package):
    quiet = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--timeout=3000", "-m", MARKED)
    done = arm64.run("python3", "-m", "pytest", *quiet, f"tests/unit/{package}", within=3500)
    assert done.returncode == 0, done.stdout.decode()[-8000:] + done.stderr.decode()[-2000:]
