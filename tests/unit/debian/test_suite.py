"""Targets in a Debian root, without the root: what an interrupt leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.debian.cache import REPOSITORY
from tests.harness.processes import alive, child
from tests.harness.waiting import until

RUN = """
import sys
from tests.debian import suite
suite.roots.root = lambda *arguments: suite.cache.folder()
suite.prepare = lambda name, root, source, log: source.mkdir(parents=True) or []
class Room:
    def __init__(self, *arguments, **options): pass
    def run(self, *command): return ["setpriv", "--pdeathsig=KILL", "sh", "-c", "echo $$; exec sleep 600"]
suite.Room = Room
sys.exit(suite.main("trixie", "make", "test"))
"""
"""The command, with a room that is none, and that ends with its parent as rooms do."""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_leaves_no_process_and_no_sources(tmp_path, number):
    # A shell's background job ignores SIGINT, and its children inherit that.
    run = ["env", "--default-signal=INT,HUP", sys.executable, "-c", RUN]
    environment = {**os.environ, "SIDESTEP_E2E_CACHE": str(tmp_path)}
    output = tmp_path / "output"
    with (
        open(output, "w") as file,
        child(run, cwd=REPOSITORY, env=environment, stdout=file, stderr=subprocess.PIPE, text=True) as process,
    ):
        try:
            pid = int(until(output.read_text, within=60, what="the room"))
            assert list(tmp_path.glob("suite-trixie-*"))
            process.send_signal(number)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert said.splitlines()[-1] == "sidestep: interrupted; nothing is left running"
    assert "Traceback" not in said
    until(lambda: not alive(pid), within=30, what="the room to end")
    assert not list(tmp_path.glob("suite-trixie-*"))
