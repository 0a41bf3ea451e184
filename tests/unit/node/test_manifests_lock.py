"""One daemon per folder of manifests."""

from __future__ import annotations

import asyncio
import contextlib
import os

import pytest

from sidestep.aio.time_limit import time_limit
from sidestep.model.errors import ConfigurationError
from sidestep.node import manifests_lock
from sidestep.node.manifests_lock import ManifestsLock
from tests.harness.processes import child


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(manifests_lock, "RETRY", 0.01)
    monkeypatch.setattr(manifests_lock, "PATIENCE", 0.05)


def test_the_second_daemon_is_told_who_holds_the_folder(tmp_path):
    with contextlib.closing(ManifestsLock(tmp_path)) as first, contextlib.closing(ManifestsLock(tmp_path)) as second:
        first.acquire()
        with pytest.raises(ConfigurationError, match=f"another node daemon .* \\(pid {os.getpid()}, "):
            second.acquire()


def test_the_successor_of_the_holder_goes_on_and_gets_the_lock_later(tmp_path):
    with contextlib.closing(ManifestsLock(tmp_path)) as second:
        first = ManifestsLock(tmp_path)
        first.acquire()
        second.acquire(after=os.getpid())

        async def go() -> None:
            waiting = asyncio.ensure_future(second.wait_for())
            await asyncio.sleep(0)
            assert not waiting.done()
            first.close()
            async with time_limit(5):
                await waiting

        asyncio.run(go())
        with contextlib.closing(ManifestsLock(tmp_path)) as third, pytest.raises(ConfigurationError):
            third.acquire()


def test_the_successor_of_somebody_else_is_refused(tmp_path):
    with contextlib.closing(ManifestsLock(tmp_path)) as first, contextlib.closing(ManifestsLock(tmp_path)) as second:
        first.acquire()
        with pytest.raises(ConfigurationError, match="another node daemon"):
            second.acquire(after=os.getpid() + 1)


def test_a_holder_that_has_closed_is_followed(tmp_path):
    first = ManifestsLock(tmp_path)
    first.acquire()
    first.close()
    with contextlib.closing(ManifestsLock(tmp_path)) as second:
        second.acquire()


def test_a_folder_that_cannot_be_opened(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot be opened: No such file or directory"):
        ManifestsLock(tmp_path / "gone")


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--socket", "/tmp/a.sock"], "socket /tmp/a.sock"),
        (["--socket=/tmp/b.sock"], "socket /tmp/b.sock"),
        ([], "the default socket"),
    ],
)
def test_the_holders_socket_is_read_from_its_command_line(arguments, shown):
    import subprocess
    import sys

    script = "import sys; print('up', flush=True); sys.stdin.read()"
    with child([sys.executable, "-c", script, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        assert manifests_lock._socket_of(process.pid) == shown
        process.communicate()
    assert manifests_lock._socket_of(process.pid) == "the default socket"
