"""`--transparent`: what it needs, and what it writes; tests/system/test_connect.py runs it."""

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from sidestep.cli import transparent
from sidestep.cli.main import sidestep
from sidestep.laptop.outbound.server import Urls


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("connect", "orders", "--transparent"), "belongs to a command behind --"),
        (("intercept", "orders", "--port", "1:1", "--transparent", "--", "true"), "belongs to --outbound"),
        (("intercept", "orders", "--port", "1:1", "--outbound", "--transparent"), "belongs to a command behind --"),
    ],
)
def test_it_needs_a_command_that_connects_through_a_pod(words, told, monkeypatch):
    monkeypatch.setattr(transparent, "check", lambda: None)
    done = CliRunner().invoke(sidestep, words)
    assert done.exit_code == 2
    assert told in done.output


@pytest.mark.parametrize(
    ("platform", "told"), [("linux", "Debian and Ubuntu: package proxychains4"), ("darwin", "needs Linux")]
)
def test_where_it_cannot_be_done_the_reason_is_told_before_anything_begins(platform, told, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "platform", platform)
    done = CliRunner().invoke(sidestep, ["connect", "orders", "--transparent", "--", "true"])
    assert done.exit_code != 0
    assert told in f"{done.output}{done.exception}"


def test_the_configuration_is_private_and_goes_with_the_command():
    with transparent.configuration(Urls(1080, "secret")) as variables:
        [path] = map(Path, variables.values())
        assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        assert path.read_text().endswith("[ProxyList]\nsocks5 127.0.0.1 1080 sidestep secret\n")
    assert not path.parent.exists()
