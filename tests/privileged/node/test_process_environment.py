"""The variables of a process, read by a one-shot child of the reader."""

from __future__ import annotations

import contextlib
import subprocess
import sys

import pytest

from sidestep.model.intercept import MAX_ENVIRONMENT
from sidestep.node.certificates.reader import Reader, ReadError
from tests.harness.processes import alive, child, started
from tests.harness.waiting import until
from tests.privileged.node.test_key_reader import using

pytestmark = pytest.mark.privileged

SLEEP = [sys.executable, "-S", "-c", "import sys; print(1, flush=True); sys.stdin.read()"]


def reading(pid, birth=None):
    async def work(reader: Reader) -> bytes:
        return await reader.environment(pid, birth)

    return using(work)


def process(environment, *, user=None):
    return child(
        SLEEP, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, user=user, group=user, extra_groups=[]
    )


def test_it_is_what_a_process_of_another_user_was_started_with():
    with process({"A": "1", "B": "two words\nand more"}, user=65534) as app:
        app.stdout.readline()
        found = reading(app.pid, started(app.pid))
        assert found == b"A=1\0B=two words\nand more\0"


def test_a_process_without_variables():
    with process({}) as app:
        app.stdout.readline()
        assert reading(app.pid) == b"\0"


def test_another_process_of_the_same_id_is_not_read():
    with process({"A": "1"}) as app:
        app.stdout.readline()
        with pytest.raises(ReadError, match="No such process"):
            reading(app.pid, started(app.pid) + 1)
    with pytest.raises(ReadError, match="No such file"):
        reading(app.pid)


def test_more_than_the_bound_is_refused_and_not_cut():
    half = MAX_ENVIRONMENT // 16
    with process({f"A{number}": "x" * half for number in range(15)}) as app:
        app.stdout.readline()
        assert len(reading(app.pid)) > 15 * half
    with process({f"A{number}": "x" * half for number in range(17)}) as app:
        app.stdout.readline()
        with pytest.raises(ReadError, match="take more than 1048576 bytes"):
            reading(app.pid)


def test_a_process_that_has_ended_and_was_not_reaped_has_none():
    """Older kernels open its variables and find nothing there, newer ones say that it is gone."""
    with child(["true"]) as app:
        until(lambda: not alive(app.pid), within=10, what="the process to end")
        found = b""
        with contextlib.suppress(ReadError):
            found = reading(app.pid)
        assert found in {b"", b"\0"}
