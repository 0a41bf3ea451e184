"""The demo is a promise of the README, so it is a test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.harness.processes import Process
from tests.harness.waiting import until

ROOT = Path(__file__).parents[2]


def command():
    """The demo, as `make demo` runs it, from anywhere."""
    return [sys.executable, "-m", "tests.demo"]


def test_every_statement_is_observed():
    done = subprocess.run(command(), cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "✘" not in done.stdout
    assert done.stdout.count("✔") > 15
    assert done.stderr == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_cleans_up(tmp_path, number, monkeypatch):
    monkeypatch.chdir(ROOT)
    short = Path(tempfile.mkdtemp(prefix="sdi-"))  # a unix socket's path is at most 108 bytes
    environment = {"TMPDIR": str(short)}
    with Process(command(), log=tmp_path / "log", stdout=tmp_path / "out", environment=environment) as demo:
        half = "✔ with the header the handler answers"
        until(lambda: not demo.running or half in demo.output(), within=60, what="half of the story")
        mark = f"sdi-{demo.pid}-"
        assert any(mark in name for name in os.listdir("/run/netns"))
        demo.signal(number)
        assert demo.wait(45) == 130
    assert not any(mark in name for name in os.listdir("/run/netns"))
    short.rmdir()  # empty, that is
    assert "Traceback" not in demo.text()
