"""The program behind a command's first word: on Windows one that PATHEXT names, and what a batch file is not given."""

from __future__ import annotations

import os
import shutil
import sys

import pytest

from sidestep.cli.started_program import INTERPRETED, started_program
from sidestep.model.errors import ConfigurationError


@pytest.fixture
def windows(monkeypatch, tmp_path):
    """A folder with npm.cmd and go.exe, which is the PATH."""
    monkeypatch.setattr(sys, "platform", "win32")
    if hasattr(shutil, "_win_path_needs_curdir"):  # Python 3.12 asks Windows
        monkeypatch.setattr(shutil, "_win_path_needs_curdir", lambda *_: False)
    monkeypatch.setenv("PATHEXT", os.pathsep.join((".exe", ".cmd")))
    folder = tmp_path / "Program Files (x86)"
    folder.mkdir()
    for name in ("npm.cmd", "go.exe"):
        (folder / name).touch(mode=0o755)
    return folder


def test_elsewhere_a_command_is_what_it_is(tmp_path):
    (tmp_path / "npm").touch(mode=0o755)
    assert started_program(("npm", "%A%"), {"PATH": str(tmp_path)}) == ("npm", "%A%")


def test_a_program_is_found_in_the_path_that_the_command_gets(windows):
    path = {"PATH": str(windows)}
    assert started_program(("npm", "run", "dev server"), path) == (str(windows / "npm.cmd"), "run", "dev server")
    assert started_program(("go", 'a "%B%" & c'), path) == (str(windows / "go.exe"), 'a "%B%" & c')
    assert started_program(("no-such-program", "x"), path) == ("no-such-program", "x")


def test_a_program_with_a_folder_is_one_of_where_it_runs(windows):
    found = started_program(("./npm.cmd", "ci"), {"PATH": ""}, folder=windows)
    assert found == (str(windows / "npm.cmd"), "ci")


@pytest.mark.parametrize("character", sorted(INTERPRETED))
def test_a_batch_file_is_given_nothing_that_its_interpreter_takes_for_its_own(windows, character):
    with pytest.raises(ConfigurationError, match=r"cannot be given to npm\.cmd, a batch file") as caught:
        started_program(("npm", "run", f"a{character}b"), {"PATH": str(windows)})
    assert caught.value.value == f"a{character}b"


def test_nor_is_one_started_under_such_a_path(windows):
    folder = windows / "R&D"
    folder.mkdir()
    (folder / "npm.cmd").touch(mode=0o755)
    with pytest.raises(ConfigurationError, match="would interpret '&'"):
        started_program(("npm",), {"PATH": str(folder)})
