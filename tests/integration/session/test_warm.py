"""`sidestep` from an interpreter that has imported it does what it does otherwise."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.harness import warm
from tests.harness.cli import sidestep
from tests.harness.processes import Process, alive, children
from tests.harness.waiting import until


@pytest.fixture
def both(monkeypatch):
    """Do something in both ways; returns what came of it."""

    def do(work):
        found = []
        for allowed in (True, False):
            monkeypatch.setattr(warm, "allowed", allowed)
            found.append(work())
        return found

    return do


@pytest.fixture
def starter():
    """One of the test's own, of a module that takes no time."""
    made = warm.Starter(["sidestep.model.errors"])
    yield made
    made._channel.close()
    made._process.wait(20)


def start(starter, *words):
    with open(os.devnull, "r+b") as nothing:
        return starter.start([*map(str, words)], os.environ, [nothing.fileno()] * 3)


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
def test_it_says_and_returns_the_same(both, words):
    assert warm.starter([*words], os.environ) is not None
    first, second = both(lambda: sidestep(*words))
    assert first == second


def test_it_has_the_folder_and_the_variables_of_who_started_it(both, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("sidestep.yaml").write_text("nonsense: [")
    first, second = both(lambda: sidestep("up", environment={"SIDESTEP_DEBUG": "1", "HOME": str(tmp_path)}))
    assert first == second
    assert "Traceback" in first.stderr


@contextlib.contextmanager
def waiting(tmp_path):
    """A daemon that answers."""
    words = ["node", "--manifests", tmp_path, "--socket", tmp_path / "node.sock", "--eve", tmp_path / "eve"]
    with Process([warm.SIDESTEP, *words], log=tmp_path / "log") as process:
        until(lambda: (tmp_path / "node.sock").exists() or not process.running, within=60, what=process.text)
        yield process
    (tmp_path / "node.sock").unlink(missing_ok=True)


@pytest.mark.privileged
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_it_ends_by_signals_as_otherwise(both, tmp_path, number):
    def ended():
        with waiting(tmp_path) as process:
            assert isinstance(process.popen, warm.WarmProcess) is warm.allowed
            process.signal(number)
            code = process.wait(40)
            until(lambda: not alive(process.pid), within=10, what="its end")
            return code

    first, second = both(ended)
    assert first == second


@pytest.mark.privileged
def test_ctrl_c_right_after_the_start_is_not_lost(starter, tmp_path):
    process = start(starter, "node", "--manifests", tmp_path, "--socket", tmp_path / "s", "--eve", tmp_path / "e")
    process.send_signal(signal.SIGINT)
    assert process.wait(40) in {0, 130, -signal.SIGINT}  # by where it was then, in Python or in the command


@pytest.mark.parametrize("name", ["PYTHONIOENCODING", "LC_ALL", "MALLOC_ARENA_MAX"])
def test_an_interpreter_that_would_be_another_is_started_the_ordinary_way(name):
    assert warm.starter(["status"], os.environ) is not None
    assert warm.starter(["status"], {**os.environ, name: "x"}) is None


def test_processes_that_measure_are_started_the_ordinary_way():
    words = "from tests.harness import warm; print(warm.popen([warm.SIDESTEP, 'x'], {}, stdin=0, stdout=1, stderr=2))"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "None\n"


@pytest.mark.cold
def test_so_are_those_of_tests_that_say_so():
    assert not warm.allowed


@pytest.mark.privileged
def test_a_start_that_is_broken_off_leaves_no_process_and_takes_no_other_ones_place(starter, monkeypatch, tmp_path):
    hear, calls = starter._hear, []

    def interrupted(within):
        calls.append(within)
        if len(calls) == 1:
            raise KeyboardInterrupt
        hear(within)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(starter, "_hear", interrupted)
        start(starter, "node", "--manifests", tmp_path, "--socket", tmp_path / "s", "--eve", tmp_path / "e")
    until(lambda: children(starter._process.pid) == [], within=20, what="its end")
    process = start(starter, "--version")
    assert process.wait(20) == 0
    assert (starter._begun, starter._broken_off) == ({}, set())


def test_a_request_that_is_too_large_concerns_no_other(starter):
    assert start(starter, "x" * (1 << 20)) is None
    assert start(starter, "--version").wait(20) == 0


def test_who_has_lost_the_starter_can_end_what_it_started(starter, tmp_path):
    process = start(starter, "node", "--manifests", tmp_path, "--socket", tmp_path / "s", "--eve", tmp_path / "e")
    starter._process.kill()
    process.kill()
    assert process.wait(20) == warm.UNKNOWN
    assert not alive(process.pid)
    assert start(starter, "--version") is None


def test_threads_start_and_wait_side_by_side(starter):
    codes = []

    def work():
        codes.extend(start(starter, *words).wait(60) for words in [("--version",), ("nonsense",)] * 5)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(120)
    assert sorted(codes) == [0] * 40 + [2] * 40
