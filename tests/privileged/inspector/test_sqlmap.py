"""Real sqlmap against an app that can be dumped: without an inspector it is, with one before it is not."""

from __future__ import annotations

import subprocess

import pytest

from sidestep.protocols.waf_messages import Outcome
from tests.harness.inspectors import InspectorZygote
from tests.harness.vulnerable_app import SECRET, TABLE, VulnerableApp

TAMPERS = ("space2comment", "between,randomcase", "charencode")


def sqlmap(app, folder, *options):
    """What it finds out of the app."""
    command = [
        "sqlmap", "-u", f"http://127.0.0.1:{app.port}/items?id=1", "--batch", "--flush-session", "--disable-coloring",
        "--dbms=sqlite", "--technique=BU", "--threads=4", "--timeout=10", "--retries=0", "--random-agent",
        "--dump", "-T", TABLE, f"--output-dir={folder}", *options,
    ]  # fmt: skip
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=280, stdin=subprocess.DEVNULL)
    dumped = "".join(path.read_text(errors="replace") for path in folder.rglob("*.csv"))
    return done.stdout + dumped


@pytest.mark.timeout(300)
def test_without_an_inspector_the_table_is_dumped(tmp_path):
    with VulnerableApp() as app:
        assert SECRET in sqlmap(app, tmp_path)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("tampers", [None, *TAMPERS])
def test_with_an_inspector_nothing_is_dumped(tmp_path, tampers):
    with InspectorZygote() as zygote, zygote.spawn() as inspector:
        inspector.configure()

        def guard(request, body):
            fields = tuple((name.encode(), value.encode()) for name, value in request.headers.items())
            inspector.question(request.command.encode(), request.path.encode(), fields, body)
            return inspector.receive().outcome is Outcome.PASS

        with VulnerableApp(guard) as app:
            found = sqlmap(app, tmp_path, *(() if tampers is None else (f"--tamper={tampers}",)))
            assert app.refused > 0
    assert SECRET not in found
