"""Where memory cgroups are made, by what /proc and the mounted hierarchies say; with trees that stand for them."""

import os

import pytest

from sidestep.model.errors import ConfigurationError
from sidestep.node.proxies.memory_cgroups import MemoryCgroups

MOUNT = "40 30 0:{} {} {} rw,relatime shared:9 - {} {} rw{}\n"


@pytest.fixture
def machine(tmp_path):
    """A function that makes /proc for a mount table and the text of /proc/self/cgroup."""

    def make(*mounts, own):
        own_folder = tmp_path / "proc" / "self"
        own_folder.mkdir(parents=True)
        text = "".join(
            MOUNT.format(number, root, tmp_path / point, kind, kind, options)
            for number, (kind, root, point, options) in enumerate(mounts)
        )
        (own_folder / "mountinfo").write_text("22 1 0:1 / / rw - overlay overlay rw\n" + text)
        (own_folder / "cgroup").write_text(own)
        (tmp_path / "proc" / str(os.getpid())).mkdir()
        return tmp_path / "proc"

    return make


def test_version_1_is_used_below_the_own_group(machine, tmp_path):
    proc = machine(
        ("cgroup", "/", "v1/cpu", ",cpu,cpuacct"),
        ("cgroup", "/", "v1/memory", ",memory"),
        ("cgroup2", "/", "unified", ""),
        own="4:memory:/system.slice/x.service\n3:cpu,cpuacct:/\n0::/system.slice/x.service\n",
    )
    found = MemoryCgroups.find(proc)
    assert found.version == 1
    assert found.folder == tmp_path / "v1/memory/system.slice/x.service/sidestep-proxies"


def test_a_hierarchy_that_is_mounted_from_inside_is_found(machine, tmp_path):
    proc = machine(("cgroup", "/docker/1", "memory", ",memory"), own="4:memory:/docker/1/inner\n")
    assert MemoryCgroups.find(proc).folder == tmp_path / "memory/inner/sidestep-proxies"


def test_version_2_is_used_beside_the_own_group(machine, tmp_path):
    proc = machine(("cgroup2", "/", "cgroup", ""), own="0::/user.slice/session.scope\n")
    home = tmp_path / "cgroup/user.slice/session.scope"
    home.mkdir(parents=True)
    (home / "cgroup.type").write_text("domain\n")
    (home.parent / "cgroup.subtree_control").write_text("cpu memory pids\n")
    found = MemoryCgroups.find(proc)
    assert (found.version, found.folder) == (2, home.parent / "sidestep-proxies")
    found.prepare()
    assert (found.folder / "cgroup.subtree_control").read_text() == "+memory"


def test_version_2_is_used_below_the_root(machine, tmp_path):
    proc = machine(("cgroup2", "/", "cgroup", ""), own="0::/\n")
    (tmp_path / "cgroup").mkdir()
    (tmp_path / "cgroup/cgroup.subtree_control").write_text("memory\n")
    assert MemoryCgroups.find(proc).folder == tmp_path / "cgroup/sidestep-proxies"


@pytest.mark.parametrize(
    ("mounts", "own"),
    [
        ((), ""),
        ((), "0::/\n"),
        ((("cgroup2", "/", "cgroup", ""),), "0::/\n"),
        ((("cgroup", "/", "cpu", ",cpu"),), "4:memory:/\n"),
        ((("cgroup", "/docker/1", "memory", ",memory"),), "4:memory:/docker/12\n"),
    ],
)
def test_without_the_controller_it_says_so(machine, mounts, own):
    with pytest.raises(ConfigurationError):
        MemoryCgroups.find(machine(*mounts, own=own))


def test_only_groups_of_dead_daemons_are_removed(machine, tmp_path):
    proc = machine(own="")
    # No number here is this process's own, however low that is in a new PID namespace.
    ours = os.getpid()
    other, daemon, dead = ours + 1, ours + 2, ours + 3
    for pid in (other, daemon):
        (proc / str(pid)).mkdir()
    groups = MemoryCgroups(tmp_path, tmp_path, 1, proc=proc)
    alive = [f"{other}-1", f"{ours}-{daemon}"]
    for name in (*alive, f"{dead}-{daemon}", f"{ours}-{dead}", "strange"):
        (groups.folder / name).mkdir(parents=True)
    groups.prepare()
    assert sorted(each.name for each in groups.folder.iterdir()) == sorted(alive)
    groups.remove_folder()
    assert groups.folder.exists()
