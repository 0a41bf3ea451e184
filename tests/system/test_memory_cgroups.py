"""What a daemon leaves of its proxies' memory cgroups when it is killed, the next one removes."""

from __future__ import annotations

from sidestep.node.proxies.memory_cgroups import MemoryCgroups
from tests.harness.node import node
from tests.harness.waiting import until


def test_the_next_daemon_removes_what_a_killed_one_left(tmp_path):
    folder = MemoryCgroups.find().folder
    left = folder / "4194305-1"  # no process has such a number
    left.mkdir(parents=True)
    with node(tmp_path):
        until(lambda: not left.exists(), within=10, what="the group to be removed")
