"""`sidestep` from an interpreter that has imported it does what it does otherwise."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.harness import warm
from tests.harness.cli import sidestep
from tests.harness.processes import Process, alive
from tests.harness.waiting import until


@pytest.mark.parametrize(
    "words",
    [
        ("--version",),
        ("flows", "--help"),
        ("status", "--socket", "/nonexistent/node.sock"),
        ("intercept", "orders", "--port", "9", "--socket", "/nonexistent/node.sock", "--", "true"),
        ("node", "--manifests", "/nonexistent"),
        ("nonsense",),
    ],
)
def test_it_says_and_returns_the_same(words):
    assert warm.starter(words, os.environ) is not None
    assert sidestep(*words) == sidestep(*words, warm=False)


def test_it_has_the_folder_and_the_variables_of_who_started_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("sidestep.yaml").write_text("nonsense: [")
    found = sidestep("up", environment={"SIDESTEP_DEBUG": "1", "HOME": str(tmp_path)})
    assert found == sidestep("up", environment={"SIDESTEP_DEBUG": "1", "HOME": str(tmp_path)}, warm=False)
    assert "Traceback" in found.stderr


def waiting(tmp_path, **options):
    words = [
        warm.SIDESTEP,
        "node",
        "--manifests",
        tmp_path,
        "--socket",
        tmp_path / "node.sock",
        "--eve",
        tmp_path / "eve",
    ]
    process = Process(words, log=tmp_path / "log", **options)
    until(lambda: (tmp_path / "node.sock").exists() or not process.running, within=60, what=process.text)
    return process


@pytest.mark.privileged
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_it_ends_by_signals_as_otherwise(tmp_path, number):
    codes = []
    for is_warm in (True, False):
        with waiting(tmp_path, warm=is_warm) as process:
            assert isinstance(process.popen, warm.WarmProcess) is is_warm
            process.signal(number)
            codes.append(process.wait(40))
            until(lambda: not alive(process.pid), within=10, what="its end")
        (tmp_path / "node.sock").unlink(missing_ok=True)
    assert codes[0] == codes[1]


@pytest.mark.parametrize("name", ["PYTHONIOENCODING", "LC_ALL", "MALLOC_ARENA_MAX"])
def test_an_interpreter_that_would_be_another_is_started_the_ordinary_way(name):
    assert warm.starter(("status",), os.environ) is not None
    assert warm.starter(("status",), {**os.environ, name: "x"}) is None
