"""Cgroups where version 2 is the only hierarchy, as Debian and Ubuntu mount it.

The machine of the tests may have hierarchies of version 1 too. The commands run in a mount namespace with version 2
alone, at /sys/fs/cgroup. The folders are real, and so are the controllers: those that version 1 has not taken.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from tests.debian.cache import REPOSITORY
from tests.e2e.cgroups import remove
from tests.harness import cgroups
from tests.harness.processes import child

UID = str(uuid.uuid4())
CONTAINER = "a" * 64

WITHIN = 400.0
"""Seconds that tests may take that are run by a test here."""

LOCATE = f"""
import json, sys
from sidestep.kube.processes import PodToLocate, locate_pods
found = locate_pods({{"{UID}": PodToLocate("{UID}", {{"{CONTAINER}": "app"}})}}, **json.loads(sys.argv[1]))["{UID}"]
print(json.dumps([found.cgroup, found.pids]))
"""
MAKE = "import sys; from tests.e2e import cgroups; print(*cgroups.roots()); cgroups.make(sys.argv[1])"
REMOVE = "import sys; from tests.e2e import cgroups; cgroups.remove(sys.argv[1])"

TESTS = (
    "tests/privileged/steering/test_client_names.py::test_the_app_sees_the_client",
    "tests/system/test_client_address.py::test_nginx_logs_the_clients_own_address",
    "tests/system/test_doctor.py::test_in_a_pod_every_check_tells_the_truth",
)
"""What uses cgroups of version 2: client addresses, alone and with a daemon, and doctor."""
MEMORY_TESTS = (
    "tests/privileged/proxy/test_supervisor.py::test_each_process_has_a_memory_cgroup_that_goes_with_it",
    "tests/system/test_memory_cgroups.py",
)
"""What uses its memory controller. Version 1 has it on many machines; a machine with version 2 alone runs them."""

FIND = """
from sidestep.model.errors import ConfigurationError
from sidestep.node.proxies.memory_cgroups import MemoryCgroups
try:
    found = MemoryCgroups.find()
    print(found.version, found.folder)
except ConfigurationError as error:
    print(error.reason)
"""


def python(script: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", script, *arguments]


def run(command: list[str], within: float = 60) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=within, cwd=REPOSITORY)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]
    return done.stdout


def words(folder: Path, name: str) -> set[str]:
    return set((folder / name).read_text().split())


@pytest.fixture
def controllers():
    """The controllers that version 2 has on this machine, handed down from its root while the test runs."""
    root = cgroups.mount()
    found, before = words(root, "cgroup.controllers"), words(root, "cgroup.subtree_control")
    if not found:
        pytest.skip("version 1 has every controller of this machine")
    (root / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in found))
    yield found
    with contextlib.suppress(OSError):  # somebody else has begun to use one
        (root / "cgroup.subtree_control").write_text(" ".join(f"-{name}" for name in found - before))


@pytest.fixture
def pod():
    """A process in the cgroup of a container; yields its pid and the pod's folder."""
    with cgroups.cgroup() as machine:
        group = machine / "kubepods" / f"pod{UID}" / CONTAINER
        group.mkdir(parents=True)
        with child(cgroups.inside(group, ["cat"]), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            process.stdin.write(b"x")
            process.stdin.flush()
            assert process.stdout.read(1) == b"x"  # it has moved
            yield process.pid, group.parent


def pytest_of(names: tuple[str, ...]) -> list[str]:
    options = ["-q", "-p", "no:cacheprovider", f"--timeout={WITHIN:.0f}"]
    return cgroups.unified([sys.executable, "-m", "pytest", *options, *names])


@pytest.mark.timeout(WITHIN)
def test_client_addresses_work_and_doctor_tells_of_them():
    assert " passed" in run(pytest_of(TESTS), within=WITHIN)


@pytest.mark.timeout(2 * WITHIN)
@pytest.mark.alone
def test_proxies_get_memory_cgroups_if_the_controller_is_of_version_2(controllers):
    """A daemon in the root makes them below it, any other one beside its own group."""
    shown = run(cgroups.unified(python(FIND)))
    if "memory" not in controllers:
        assert shown in ("no memory controller for this process\n", "the memory controller is not mounted\n")
        return
    with cgroups.cgroup() as parent:
        (parent / "cgroup.subtree_control").write_text("+memory")
        home = parent / "home"
        home.mkdir()
        beside = run(cgroups.inside(home, cgroups.unified(python(FIND))))
        assert beside == f"2 /sys/fs/cgroup/{parent.name}/sidestep-proxies\n"
        assert " passed" in run(cgroups.inside(home, pytest_of(MEMORY_TESTS)), within=WITHIN)
    assert shown.startswith("2 /sys/fs/cgroup/")
    assert " passed" in run(pytest_of(MEMORY_TESTS), within=WITHIN)


def test_a_pods_folder_is_found(pod):
    pid, folder = pod
    below = folder.relative_to(cgroups.mount())
    expected = [f"/sys/fs/cgroup/{below}", {"app": pid}]
    assert json.loads(run(cgroups.unified(python(LOCATE, "{}")))) == expected


def test_a_daemon_in_a_cgroup_namespace_of_its_own_finds_it(pod):
    """Paths in /proc begin with /.. there; the node's mount shows the folders."""
    pid, folder = pod
    with cgroups.cgroup() as own:
        command = cgroups.unified(["unshare", "--cgroup", *python(LOCATE, "{}")])
        found = json.loads(run(cgroups.inside(own, command)))
    assert found == [f"/sys/fs/cgroup/{folder.relative_to(cgroups.mount())}", {"app": pid}]


def test_the_folder_of_the_end_to_end_node_hands_down_every_controller(controllers):
    name = f"sidestep-test-{os.getpid()}-node"
    folder = cgroups.mount() / name
    try:
        assert run(cgroups.unified(python(MAKE, name))) == "/sys/fs/cgroup\n"
        assert words(folder, "cgroup.subtree_control") == controllers
        (folder / "kubepods" / "burstable").mkdir(parents=True)
        assert words(folder / "kubepods", "cgroup.controllers") == controllers
        run(cgroups.unified(python(REMOVE, name)))
        assert not folder.exists()
    finally:
        remove(name)


def test_in_a_container_whose_root_holds_processes_too(controllers):
    """Its root is a folder of the machine's tree, which hands controllers down only after its processes have moved."""
    with cgroups.cgroup() as container:
        made = f"{MAKE}; print(open('/proc/self/cgroup').read())"
        shown = run(cgroups.inside(container, ["unshare", "--cgroup", *cgroups.unified(python(made, "node"))]))
        assert shown.splitlines()[0] == "/sys/fs/cgroup"
        assert "0::/sidestep-residents" in shown.splitlines()
        assert words(container / "node", "cgroup.subtree_control") == controllers
