"""What a pod has, on the developer's machine, with the real daemon: variables for a handler, as file and inherited."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
import sys

import pytest

from tests.harness import manifests, scene
from tests.harness.cli import sidestep
from tests.harness.namespaces import pod_namespace
from tests.harness.node import node
from tests.harness.processes import child
from tests.harness.waiting import until
from tests.harness.warm import SIDESTEP

VARIABLES = {
    "DB_HOST": "db.shop",
    "DB_PASSWORD": "it's $ecret",
    "PATH": "/container/bin",
    "LD_PRELOAD": "/container.so",
}
APP = [sys.executable, "-S", "-c", "import sys; print(1, flush=True); sys.stdin.read()"]


@contextlib.contextmanager
def app(space, variables):
    command = ["nsenter", f"--net={space.pod.path}", "--", *APP]
    with child(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**variables, "PATH": os.environ["PATH"]}
    ) as found:
        found.stdout.readline()
        yield found


@pytest.fixture
def pod(tmp_path):
    """A pod whose main process has variables, and the daemon of its node."""
    with pod_namespace() as space, app(space, {**VARIABLES, "LD_PRELOAD": ""}) as process, node(tmp_path) as daemon:
        stated = {"sidestep.dev/pid": str(process.pid)}
        daemon.write("pod.yaml", manifests.pod("orders", space, annotations=stated,
                                               ports=[manifests.container_port(8080, "http")]))  # fmt: skip
        until(lambda: daemon.get("/v1/workloads"), within=10, what="the pod")
        yield space, process, daemon


def test_the_variables_are_printed(pod):
    _, _, daemon = pod
    done = sidestep("env", "pod/orders", "-n", "shop", "-o", "json", socket=daemon.socket)
    assert done.code == 0, done.stderr
    found = done.json
    assert (found["DB_HOST"], found["DB_PASSWORD"]) == ("db.shop", "it's $ecret")
    globbed = sidestep(
        "env", "orders", "-n", "shop", "--env-include", "DB_*", "--env-exclude", "*PASS*", socket=daemon.socket
    )
    assert (globbed.code, globbed.stdout) == (0, "DB_HOST=db.shop\n")
    shell = sidestep("env", "orders", "-n", "shop", "-o", "shell", socket=daemon.socket).stdout
    assert "export DB_HOST=db.shop\n" in shell
    assert "PATH=" not in shell
    assert "LD_PRELOAD=" not in shell
    asked = sidestep("env", "orders", "-n", "shop", "-o", "shell", "--env-include", "LD_PRELOAD", socket=daemon.socket)
    assert asked.stdout == "export LD_PRELOAD=''\n"
    status = daemon.status()
    assert status is not None
    assert status["intercepts"] == []
    assert status["pods"] == []


def test_a_handler_finds_them_and_keeps_what_is_about_its_machine(pod, tmp_path):
    _, _, daemon = pod
    written, program = tmp_path / "pod.env", "import os, json; print(json.dumps(dict(os.environ)))"
    words = ["intercept", "orders", "-n", "shop", "--port", "9999:http", "--http-header", scene.DEV.replace(": ", "=")]
    done = subprocess.run(
        [SIDESTEP, *words, "--env-file", written, "--socket", daemon.socket, "--", sys.executable, "-c", program],
        capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "MINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    assert (found["DB_HOST"], found["DB_PASSWORD"], found["MINE"]) == ("db.shop", "it's $ecret", "1")
    assert found["PATH"] == os.environ["PATH"]
    assert found["SIDESTEP_WORKLOAD"] == "orders"
    assert stat.S_IMODE(written.stat().st_mode) == 0o600
    assert "DB_HOST=db.shop\n" in written.read_text()


def test_a_command_never_starts_without_them(pod, tmp_path):
    _, process, daemon = pod
    process.stdin.close()
    process.wait(20)
    started = tmp_path / "started"
    words = ["intercept", "orders", "-n", "shop", "--port", "9999:http", "--http-header", "x-dev=ada", "--env"]
    done = subprocess.run(
        [SIDESTEP, *words, "--socket", daemon.socket, "--", "touch", started],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "No such" in done.stderr
    assert "Traceback" not in done.stderr
    assert not started.exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["env", "orders", "-n", "shop", "-c", "db"], "no container db"),
        (["env", "pod/absent", "-n", "shop"], "no workload pod/absent"),
    ],
)
def test_refusals_are_one_line(pod, words, told):
    _, _, daemon = pod
    done = sidestep(*words, socket=daemon.socket)
    assert done.code == 1
    assert told in done.error
