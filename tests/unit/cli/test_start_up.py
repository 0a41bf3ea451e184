"""What is loaded before a word of help or a completion is printed.

Told by the names of modules: times depend on the machine, and how many modules a bare interpreter has on what is
installed beside it.
"""

import importlib
import json
import os
import subprocess
import sys

import click
import pytest

from sidestep.cli.main import COMMANDS, sidestep

HEAVY = {"asyncio", "cryptography", "h2", "kubernetes", "msgspec", "ssl", "yaml"}
OURS = {
    "sidestep", "sidestep.cli", "sidestep.cli.main", "sidestep.cli.standard_streams", "sidestep.model",
    "sidestep.model.errors", "sidestep.model.text",
}  # fmt: skip
SCRIPT = """
import json, sys
before = set(sys.modules)
from sidestep.cli.main import run
{call}
print(json.dumps([*set(sys.modules) - before]), file=sys.stderr)
"""


def loaded(call, **environment):
    """The modules that a call loads in a bare process, and what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(call=call)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, **environment},
    )
    return set(json.loads(done.stderr.splitlines()[-1])), done.stdout


def assert_few(modules):
    """Nothing but click, what that needs of the standard library, and the table of commands."""
    packages = {name.partition(".")[0] for name in modules}
    assert {name for name in modules if name.partition(".")[0] == "sidestep"} <= OURS
    assert packages - sys.stdlib_module_names <= {"sidestep", "click"}
    assert not packages & HEAVY


@pytest.mark.parametrize("call", ["run(['--help'])", "run([])", "run(['--version'])"])
def test_help_loads_no_command(call):
    modules, _ = loaded(call)
    assert_few(modules)


def test_completing_a_command_loads_no_command():
    modules, text = loaded(
        "run([])", _SIDESTEP_COMPLETE="fish_complete", COMP_WORDS="sidestep inter", COMP_CWORD="inter"
    )
    assert text == "plain,intercept\tDivert matching requests to a handler on this machine.\n"
    assert_few(modules)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_says_what_the_command_says(name):
    module, _, attribute = COMMANDS[name][0].partition(":")
    command = getattr(importlib.import_module(module), attribute)
    assert (command.name, command.short_help) == (name, COMMANDS[name][1])


def test_help_lists_every_command():
    text = sidestep.get_help(click.Context(sidestep, info_name="sidestep"))
    listed = text.partition("Commands:\n")[2]
    assert [line.split()[0] for line in listed.splitlines() if line[:3].strip()] == sorted(COMMANDS)
