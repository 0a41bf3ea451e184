"""Processes of pods: looked for when they should be there, dropped when their container ends or runs again."""

from __future__ import annotations

import asyncio

from sidestep.kube.processes import PodToLocate
from sidestep.model.pod import Location
from sidestep.node.cluster.pod_locations import CHECK, FIRST_LOOK, LAST_LOOK, PodLocations

SANDBOX = 10


class Node:
    """Processes by pid, and containers by id, as a walk through /proc would find them."""

    def __init__(self):
        self.now = 1000.0
        self.births = {SANDBOX: 1}
        self.running = {}
        """Process of each container id."""
        self.walks = 0
        self.reported = {}
        self.locations = PodLocations(self.find, born=lambda pid: self.births.get(pid, -1), now=lambda: self.now)

    def find(self, wanted):
        self.walks += 1
        found = {}
        for uid, each in wanted.items():
            pids = {name: self.running[id_] for id_, name in each.containers.items() if id_ in self.running}
            births = {pid: self.births[pid] for pid in (SANDBOX, *pids.values()) if pid in self.births}
            oldest = min(births, default=None)
            if oldest is not None:
                found[uid] = Location(netns=f"/proc/{oldest}/ns/net", pids=pids, births=births)
        return found

    def start(self, container, pid):
        self.running[container], self.births[pid] = pid, pid

    def stop(self, container):
        del self.births[self.running.pop(container)]

    def report(self, **containers):
        """What the kubelet says: name of each running container by id."""
        self.reported = {"u": PodToLocate("u", containers)}
        return self.look()

    def look(self):
        asyncio.run(self.locations.update(self.reported))
        return dict(self.locations.found["u"].pids) if "u" in self.locations.found else None


def test_the_sandbox_is_found_before_a_container_runs_and_each_container_when_it_is_reported():
    node = Node()
    assert node.report() == {}
    node.start("a", 20)
    assert node.look() == {}  # it was not reported yet, so nobody looks for it
    assert node.report(a="app") == {"app": 20}
    node.start("b", 30)
    assert node.report(a="app", b="side") == {"app": 20, "side": 30}
    assert node.walks == 3


def test_a_container_that_runs_again_has_the_process_of_its_present_run():
    node = Node()
    node.start("a", 20)
    node.report(a="app")
    node.stop("a")
    node.start("b", 21)
    assert node.report(b="app") == {"app": 21}


def test_a_container_between_two_runs_has_no_process_and_nobody_looks_for_one():
    node = Node()
    node.start("a", 20)
    node.report(a="app")
    node.stop("a")
    walks = node.walks
    assert node.report() == {}
    assert node.locations.found["u"].netns == f"/proc/{SANDBOX}/ns/net"
    node.now += 60
    assert node.look() == {}
    assert node.walks == walks
    assert node.locations.patience == CHECK


def test_a_process_that_ended_is_noticed_before_it_is_reported():
    node = Node()
    node.start("a", 20)
    node.report(a="app")
    node.stop("a")
    assert node.look() == {"app": 20}
    node.now += CHECK
    assert node.look() == {}
    assert 20 not in node.locations.found["u"].births
    node.births[20] = 999  # another process has this id now
    node.now += LAST_LOOK
    assert node.look() == {}


def test_a_pod_without_sandbox_process_is_located_by_its_containers():
    node = Node()
    del node.births[SANDBOX]
    node.start("a", 20)
    assert node.report(a="app") == {"app": 20}
    node.stop("a")
    assert node.report() is None
    node.start("b", 21)
    assert node.report(b="app") == {"app": 21}
    assert node.locations.found["u"].netns == "/proc/21/ns/net"


def test_a_process_that_never_appears_is_looked_for_less_and_less_often():
    node = Node()
    node.report(a="app")
    assert node.locations.patience < 2 * FIRST_LOOK
    for _ in range(3000):
        node.now += 0.1
        node.look()
    assert node.walks <= 300 / LAST_LOOK + 10
    node.reported["v"] = PodToLocate("v", {})
    walks = node.walks
    node.look()
    assert node.walks == walks + 1  # another pod is looked for at once


def test_a_pod_that_is_gone_is_forgotten():
    node = Node()
    node.report()
    node.reported = {}
    assert node.look() is None
    assert node.locations.found == {}
