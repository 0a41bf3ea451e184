"""The command that runs with a session: when it starts, its exit code, how it ends."""

import asyncio
import sys

import pytest

from sidestep.aio.time_limit import time_limit
from sidestep.cli import child_command
from sidestep.cli.child_command import ChildCommand
from sidestep.model.errors import ConfigurationError
from tests.unit.tunnel.ends import eventually


def run(test):
    async def bounded():
        async with time_limit(30):
            return await test()

    return asyncio.run(bounded())


def active():
    event = asyncio.Event()
    event.set()
    return event


@pytest.mark.parametrize(("program", "code"), [("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137)])
def test_the_exit_code_is_that_of_a_shell(program, code):
    async def test():
        command = ChildCommand((sys.executable, "-c", program))
        assert command.code is None
        assert await command.run(active()) == code
        assert command.code == code
        await command.end()

    run(test)


def test_it_starts_when_the_intercept_is_active_and_in_any_case_after_a_while(monkeypatch):
    async def test():
        event = asyncio.Event()
        running = asyncio.ensure_future(ChildCommand(("true",)).run(event))
        done, _ = await asyncio.wait({running}, timeout=0.2)
        assert not done
        event.set()
        assert await running == 0
        monkeypatch.setattr(child_command, "START_ANYWAY", 0.01)
        assert await ChildCommand(("true",)).run(asyncio.Event()) == 0

    run(test)


@pytest.mark.parametrize("patience", [10.0, 0.05], ids=["SIGTERM is enough", "SIGKILL"])
def test_the_session_ends_it(tmp_path, monkeypatch, patience):
    async def test():
        monkeypatch.setattr(child_command, "GRACE", patience)
        ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN);" if patience < 1 else ""
        ready = tmp_path / "ready"
        program = f"import signal, pathlib; {ignore} pathlib.Path({str(ready)!r}).touch(); signal.pause()"
        command = ChildCommand((sys.executable, "-c", program))
        running = asyncio.ensure_future(command.run(active()))
        await eventually(ready.exists, what="the command to be ready")
        await command.end()
        assert await running == (137 if ignore else 143)
        assert command.code is None, "it has not ended by itself"

    run(test)


def test_what_cannot_be_started_is_an_error_of_the_command():
    with pytest.raises(ConfigurationError, match="cannot be started") as caught:
        run(lambda: ChildCommand(("/nonexistent/program",)).run(active()))
    assert caught.value.value == "/nonexistent/program"
