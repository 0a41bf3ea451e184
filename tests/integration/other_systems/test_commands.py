"""Every command on macOS and Windows, as far as Linux can pretend: a row for each command, a column for each system."""

from __future__ import annotations

import re

import pytest

from sidestep.cli.main import COMMANDS
from tests.integration.kube.cluster import run
from tests.integration.other_systems.commands import ROWS, nothing_chosen
from tests.integration.other_systems.known_names import missing
from tests.integration.other_systems.stage import CERTAINLY_WITHIN, ROOT, stage

pytestmark = pytest.mark.long

COLUMNS = {"darwin": "macOS", "win32": "Windows"}


def on(system, folder, check):
    async def test(api):
        async with stage(system, folder, api) as scene:
            await check(scene)

    run(test, within=CERTAINLY_WITHIN)


def test_every_command_has_a_row():
    assert list(ROWS) == sorted(COMMANDS)


@pytest.mark.parametrize("system", COLUMNS)
@pytest.mark.parametrize("command", ROWS)
def test_a_command(tmp_path, command, system):
    on(system, tmp_path, ROWS[command].check)


@pytest.mark.parametrize("system", COLUMNS)
def test_without_a_cluster(tmp_path, system):
    on(system, tmp_path, nothing_chosen)


def test_the_table_of_the_documents_says_the_same():
    text = (ROOT / "docs" / "install.md").read_text()
    lines = re.findall(r"^\| `sidestep ([a-z]+)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", text, re.MULTILINE)
    assert {name: (linux, mac, windows) for name, linux, mac, windows in lines} == {
        name: ("yes", "yes", "yes") if row.works else ("yes", "no", "no") for name, row in ROWS.items()
    }


def test_what_is_missing_is_known():
    """An empty table would take nothing away, and every test would pass."""
    assert {"SOCK_NONBLOCK", "SO_PEERCRED"} <= missing("socket", "darwin")
    assert "AF_UNIX" not in missing("socket", "darwin")
    assert {"AF_UNIX", "SOCK_NONBLOCK"} <= missing("socket", "win32")
    assert "AF_INET" not in missing("socket", "win32")
    assert "O_PATH" in missing("os", "darwin")
    assert {"getuid", "O_CLOEXEC"} <= missing("os", "win32")
    assert "SIGHUP" in missing("signal", "win32")
    assert "poll" in missing("select", "win32")
    assert "open_unix_connection" in missing("asyncio", "win32")
