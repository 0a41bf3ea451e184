import contextlib
import fcntl
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.harness import manifests
from tests.harness.cli import sidestep
from tests.harness.node import START, node
from tests.harness.waiting import until
from tests.harness.warm import SIDESTEP

pytestmark = pytest.mark.privileged

NOBODY = manifests.deployment("orders", labels={"app": "orders"})


def lines(daemon):
    return [json.loads(line) for line in daemon.log().splitlines()]


def test_it_says_ready_and_every_line_is_json(tmp_path):
    with node(tmp_path) as daemon:
        # The log is written by a thread of its own, which an answer may overtake.
        until(lambda: "ready" in [line["event"] for line in lines(daemon)], within=5, what="the daemon to say so")
        assert [line["event"] for line in lines(daemon) if line["level"] == "error"] == []
        (ready,) = (line for line in lines(daemon) if line["event"] == "ready")
        assert ready["socket"] == str(daemon.socket)


def test_its_memory_goes_to_no_core_file(tmp_path):
    with node(tmp_path) as daemon:
        (line,) = [
            line
            for line in Path(f"/proc/{daemon.pid}/limits").read_text().splitlines()
            if line.startswith("Max core file size")
        ]
        assert line.split()[4:6] == ["0", "0"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(tmp_path, number):
    with node(tmp_path) as daemon:
        daemon.process.signal(number)
        assert daemon.process.wait(10) == 0
        assert not daemon.socket.exists()
        assert not daemon.family()


@pytest.mark.parametrize("ending", ["full", "closed", "stalled"])
def test_a_log_that_takes_nothing_does_not_end_or_hold_up_the_daemon(tmp_path, ending):
    (tmp_path / "run").mkdir(mode=0o700)
    (tmp_path / "manifests").mkdir()
    path = tmp_path / "run" / "node.sock"
    with contextlib.ExitStack() as stack:
        stderr: Any
        if ending == "full":
            stderr = stack.enter_context(open("/dev/full", "w"))
        else:
            ends = os.pipe()
            reader, stderr = (stack.enter_context(os.fdopen(each, mode)) for each, mode in zip(ends, "rw", strict=True))
            fcntl.fcntl(stderr, fcntl.F_SETPIPE_SZ, 4096)
            os.set_blocking(stderr.fileno(), False)
            with contextlib.suppress(BlockingIOError):
                while ending == "stalled":
                    os.write(stderr.fileno(), b"x" * 4096)
            os.set_blocking(stderr.fileno(), True)
            if ending == "closed":
                reader.close()
        command = [SIDESTEP, "node", "--manifests", str(tmp_path / "manifests"), "--socket", str(path)]
        daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr)
        try:
            until(lambda: daemon.poll() is not None or path.exists(), within=START, what="the daemon to serve")
            assert sidestep("status", socket=path).code == 0
            daemon.send_signal(signal.SIGTERM)
            assert daemon.wait(30) == 0
        finally:
            daemon.kill()
            daemon.wait(10)


def test_what_a_killed_daemon_left_is_no_obstacle(tmp_path):
    with node(tmp_path) as daemon:
        daemon.kill()
        until(lambda: not daemon.family(), within=5, what="its children to end")
        assert daemon.socket.exists()
        daemon.start()
        assert daemon.status()["node"]["pid"] == daemon.pid


def test_bad_manifests_are_one_condition_each_and_come_and_go(tmp_path):
    with node(tmp_path) as daemon:
        daemon.write("good.yaml", NOBODY)
        daemon.write("bad.yaml", {"apiVersion": "v1", "kind": "Pod"}, {"apiVersion": "v1", "kind": "Service"}, NOBODY)

        def stated():
            return [each["text"] for each in daemon.status()["conditions"]]

        until(lambda: len(stated()) == 3, within=2, what=lambda: f"three conditions, not {stated()}")
        assert all(text.startswith(("bad.yaml", "good.yaml")) for text in stated())
        assert [each["name"] for each in daemon.get("/v1/workloads")] == ["orders"]
        (daemon.manifests / "bad.yaml").unlink()
        until(lambda: not stated(), within=2, what="the conditions to go")


def test_node_annotations_take_effect_live_and_a_bad_value_keeps_the_last(tmp_path):
    with node(tmp_path) as daemon:
        some: dict[str, Any] = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n", "annotations": {}}}
        some["metadata"]["annotations"] = {"sidestep.dev/enabled": "false"}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "a", "namespace": "shop", "annotations": {"sidestep.dev/netns": "/run/netns/none"}},
            "spec": {"containers": [{"name": "app", "image": "none", "ports": [{"containerPort": 8080}]}]},
        }
        daemon.write("a.yaml", some, pod)
        words = ("intercept", "pod/a", "-n", "shop", "--port", "9:8080", "--http-header", "x=1", "--plaintext")

        def refusal():
            return sidestep(*words, socket=daemon.socket).error

        until(lambda: "sidestep.dev/enabled" in refusal(), within=5, what="the node to refuse")
        some["metadata"]["annotations"] = {"sidestep.dev/enabled": "perhaps"}
        daemon.write("a.yaml", some, pod)
        until(lambda: "perhaps" in str(daemon.status()["conditions"]), within=5, what="the condition")
        assert "sidestep.dev/enabled" in refusal()
        some["metadata"]["annotations"] = {}
        daemon.write("a.yaml", some, pod)
        until(lambda: "/run/netns/none" in refusal(), within=5, what="the next reason")
