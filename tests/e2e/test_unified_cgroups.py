"""A node with cgroup version 2 alone: where its pods lie, and what the daemon does with that.

Machines with hierarchies of version 1 leave this out; `make kernels` runs it in a guest.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e import cgroups, machine
from tests.e2e import shop as shops
from tests.harness.waiting import until

pytestmark = pytest.mark.unified

COMMAND = "/opt/sidestep/bin/sidestep"
FILTER = ("--http-header", "x-dev=ada")
PATIENCE = 120.0
"""Seconds for a command that compiles the eBPF programs, where the processor may be emulated."""


def folder(cluster, pod):
    """The folder of a pod's app, by the one line that each of its processes has in /proc/PID/cgroup."""
    [line] = Path(f"/proc/{cluster.processes(pod)[-1]}/cgroup").read_text().splitlines()
    number, controllers, path = line.split(":", 2)
    assert (number, controllers) == ("0", "")
    return cgroups.CGROUPS / path.removeprefix("/")


def clients(cluster, pod, path):
    """Who asked for a path, by the access log of a pod's nginx."""
    lines = cluster.kubectl("logs", "-n", pod.namespace, pod.name).splitlines()
    return [line.split()[0] for line in lines if f" {path} " in line]


def test_the_kubelet_runs_pods_below_the_nodes_folder_with_a_memory_controller(cluster, shop):
    for pod in shop.pods():
        lies = folder(cluster, pod)
        assert str(lies).startswith(f"{cgroups.CGROUPS}{cluster.node.cgroup}/kubepods/")
        assert {"memory", "pids", "cpu"} <= set((lies / "cgroup.controllers").read_text().split())


def test_the_app_sees_the_address_of_its_client(cluster, product, shop):
    """The daemon finds each pod's folder through the path of the node's cgroups that is mounted into it."""
    with product.handler() as handler, product.intercept("orders", *FILTER, port=f"{handler}:https", pods=3):
        status = json.loads(cluster.exec(product.daemon(), COMMAND, "status", "--output", "json", within=PATIENCE))
        assert [pod["client_addresses"] for pod in status["pods"]] == ["on"] * 3
        for pod in shop.pods():
            path = f"/seen-by-{pod.name}"
            assert shop.get(pod, path, shops.DEV).served_by == "handler"
            assert shop.get(pod, path).served_by == "app"
            until(lambda pod=pod, path=path: clients(cluster, pod, path), within=10, every=0.3, what="the access log")
            assert clients(cluster, pod, path) == [machine.LAPTOP_IP]


def test_the_daemons_doctor_misses_nothing_that_is_essential(cluster, product):
    done = cluster.exec(product.daemon(), COMMAND, "doctor", "--output", "json", within=PATIENCE)
    found = {each["check"]: each for each in map(json.loads, done.splitlines())}
    assert [each for each in found.values() if each["essential"] and each["state"] != "ok"] == []
    assert found["client addresses"]["state"] == "ok", found
    assert found["node daemon"]["state"] == "ok", found
