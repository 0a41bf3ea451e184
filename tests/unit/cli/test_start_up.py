"""What is loaded before a word of help or a completion is printed. Counted in modules: times depend on the machine."""

import importlib
import json
import os
import subprocess
import sys

import click
import pytest

from sidestep.cli.main import COMMANDS, sidestep

HEAVY = ("asyncio", "cryptography", "h2", "kubernetes", "msgspec", "ssl", "yaml")
SCRIPT = """
import json, sys
from sidestep.cli.main import run
{call}
print(json.dumps([name for name in sys.modules]), file=sys.stderr)
"""


def loaded(call, **environment):
    """The modules that a process has loaded after a call, and what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(call=call)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, **environment},
    )
    return set(json.loads(done.stderr.splitlines()[-1])), done.stdout


@pytest.mark.parametrize("call", ["run(['--help'])", "run([])", "run(['--version'])"])
def test_help_loads_no_command(call):
    modules, _ = loaded(call)
    assert not modules & {*HEAVY, *(module.partition(":")[0] for module, _ in COMMANDS.values())}
    assert len(modules) < 150


def test_completing_a_command_loads_no_command():
    """A bare interpreter with click's completion has some 130 modules."""
    modules, text = loaded(
        "run([])", _SIDESTEP_COMPLETE="fish_complete", COMP_WORDS="sidestep inter", COMP_CWORD="inter"
    )
    assert text == "plain,intercept\tDivert matching requests to a handler on this machine.\n"
    assert not modules & {*HEAVY, *(module.partition(":")[0] for module, _ in COMMANDS.values())}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_says_what_the_command_says(name):
    module, _, attribute = COMMANDS[name][0].partition(":")
    command = getattr(importlib.import_module(module), attribute)
    assert (command.name, command.short_help) == (name, COMMANDS[name][1])


def test_help_lists_every_command():
    text = sidestep.get_help(click.Context(sidestep, info_name="sidestep"))
    listed = text.partition("Commands:\n")[2]
    assert [line.split()[0] for line in listed.splitlines() if line[:3].strip()] == sorted(COMMANDS)
