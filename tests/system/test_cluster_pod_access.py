"""Access to a pod's world in a cluster, with the processes of test_cluster: the right, and how it ends."""

from __future__ import annotations

import json
import os

import pytest

from tests.harness import cluster
from tests.harness.cli import Result
from tests.harness.processes import Process, children
from tests.harness.waiting import until
from tests.harness.warm import SIDESTEP, run
from tests.system.test_cluster import WITHIN, scene

pytestmark = pytest.mark.timeout(600)  # others may have a daemon of a cluster first

__all__ = ["scene"]

GROUP = "/apis/sidestep.dev/v1alpha1"


def command(scene, *words):
    """A command line that uses the kubeconfig, and no proxy."""
    config = scene.server.kubeconfig(scene.folder / "config")
    variables = {name: "" for name in os.environ if name.lower().endswith("_proxy")}
    return [SIDESTEP, *words, "--kubeconfig", config], variables


def ran(scene, *words):
    """What a command ended with."""
    line, variables = command(scene, *words)
    done = run(line, within=100, environment=variables)
    return Result(done.returncode, done.stdout, done.stderr)


def accesses(scene):
    return [*scene.server.api.objects.get((GROUP, "podaccesses"), {}).values()]


def readers(daemon):
    """The processes below the daemon's reader."""
    found = []
    for pid in children(daemon.pid):
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            if b"reader_child" in file.read():
                found += children(pid)
    return found


def test_variables_and_files_come_and_nothing_of_the_access_is_left(scene):
    (scene.folder / "data").mkdir()
    (scene.folder / "data" / "file").write_text("content")
    with cluster.cluster_node(scene.folder / "node", scene.server):
        done = ran(scene, "env", "pod/orders-1", "-o", "json")
        assert done.code == 0, done.stderr
        assert json.loads(done.stdout)["PATH"] == os.environ["PATH"]
        done = ran(scene, "files", "pod/orders-1", scene.folder / "data", "--to", scene.folder / "copy")
        assert done.code == 0, done.stderr
        copied = scene.folder / "copy" / str(scene.folder).lstrip("/") / "data" / "file"
        assert copied.read_text() == "content"
        assert accesses(scene) == []


@pytest.mark.parametrize("words", [("env", "pod/orders-1"), ("files", "pod/orders-1", "/etc", "--to", "COPY")])
def test_without_the_right_the_verb_and_the_role_are_named(scene, words):
    scene.server.api.forbid("create", "podaccesses")
    copy = scene.folder / "copy"
    with cluster.cluster_node(scene.folder / "node", scene.server):
        done = ran(scene, *(copy if word == "COPY" else word for word in words))
    assert done.code == 1
    assert "you may not create podaccesses.sidestep.dev in namespace shop" in done.error
    assert "--clusterrole=sidestep-pod-access" in done.error
    assert not copy.exists()


def test_the_access_ends_with_its_resource_in_the_middle_of_a_file(scene):
    with (scene.folder / "huge").open("wb") as file:
        file.truncate(3 << 30)
    to = scene.folder / "copy"
    line, variables = command(scene, "files", "pod/orders-1", scene.folder / "huge", "--max-size", "4096", "--to", to)
    with (
        cluster.cluster_node(scene.folder / "node", scene.server) as daemon,
        Process(line, log=scene.folder / "files.log", environment=variables, patience=20) as process,
    ):
        copied = to / str(scene.folder).lstrip("/") / "huge"
        begun = lambda: copied.exists() or not process.running  # noqa: E731
        until(begun, within=WITHIN, what=lambda: f"the copy to begin: {process.text()}")
        [access] = accesses(scene)
        assert access["spec"]["allow"] == ["Files"]
        assert len(readers(daemon)) == 1
        scene.server.do(scene.server.api.remove(GROUP, "podaccesses", "shop", access["metadata"]["name"]))
        assert process.wait(40) == 1, process.text()
        assert "has ended: somebody deleted it" in process.text()
        assert "Traceback" not in process.text()
        assert not copied.exists()
        until(lambda: readers(daemon) == [], within=WITHIN, what="the child that sends files to end")
