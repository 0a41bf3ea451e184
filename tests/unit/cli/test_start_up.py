"""What is loaded before a word of help or a completion is printed, and the tables that stand for commands there.

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

from sidestep.cli import completing, words, words_table
from sidestep.cli.main import COMMANDS, sidestep

HEAVY = {"asyncio", "cryptography", "h2", "kubernetes", "msgspec", "ssl", "yaml"}
OURS = {
    "sidestep", "sidestep.cli", "sidestep.cli.importing", "sidestep.cli.main", "sidestep.cli.standard_streams",
    "sidestep.model", "sidestep.model.errors", "sidestep.model.text",
}  # fmt: skip
HELP = ["-h", "--help"]
COMPLETING = OURS | {"sidestep.cli.words"}
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


def assert_few(modules, ours=frozenset(OURS)):
    """Nothing but click, what that needs of the standard library, and the tables of commands."""
    packages = {name.partition(".")[0] for name in modules}
    assert {name for name in modules if name.partition(".")[0] == "sidestep"} <= ours
    assert packages - sys.stdlib_module_names <= {"sidestep", "click"}
    assert not packages & HEAVY


@pytest.mark.parametrize("call", ["run(['--help'])", "run([])", "run(['--version'])"])
def test_help_loads_no_command(call):
    modules, _ = loaded(call)
    assert_few(modules)


def completed(*words):
    """What a shell is told of the last word, and the modules that are loaded for it."""
    environment = {"_SIDESTEP_COMPLETE": "fish_complete", "COMP_WORDS": " ".join(["sidestep", *words])}
    return loaded("run([])", **environment, COMP_CWORD=words[-1])


def test_completing_a_command_loads_no_command():
    modules, text = completed("inter")
    assert text == "plain,intercept\tDivert matching requests to a handler on this machine.\n"
    assert_few(modules, COMPLETING)


def test_completing_an_option_loads_no_command():
    modules, text = completed("intercept", "orders", "--no-c")
    assert text == "plain,--no-color\tPrint no colours. [default: colours on a terminal, unless NO_COLOR is set]\n"
    assert_few(modules, COMPLETING)
    modules, text = completed("policy", "check", "--out")
    assert text.startswith("plain,--output\t")
    assert_few(modules, COMPLETING)


def test_completing_for_kubectl_loads_no_command():
    modules, text = loaded("from sidestep.cli.completion import for_kubectl; print(for_kubectl(['flows', '--las']))")
    assert text.startswith("--last\t")
    assert text.endswith("\n:4\n")
    assert_few(modules, COMPLETING | {"sidestep.cli.completion"})


def test_the_words_are_those_of_the_commands():
    said = json.loads(words.TABLE.read_text())
    assert said == json.loads(json.dumps(words_table.describe(sidestep))), "run: python -m sidestep.cli.words_table"


def each_command(real, made, path=()):
    """Every command below these two, beside the one that is made from the table."""
    yield path, real, made
    if isinstance(real, click.Group):
        context = click.Context(real)
        for name in real.list_commands(context):
            yield from each_command(real.get_command(context, name), made.get_command(context, name), (*path, name))


def options_of(command):
    """What of options a parser goes by; --help depends on where a command stands."""
    return [
        (each.name, each.opts, each.secondary_opts, each.nargs, getattr(each, "multiple", False),
         getattr(each, "is_flag", False), getattr(each, "hidden", False), getattr(each, "help", None) or "")
        for each in command.params
    ]  # fmt: skip


def test_commands_made_of_the_words_are_read_as_the_real_ones():
    found = [*each_command(sidestep, words.completed_commands())]
    assert {(), ("policy", "except"), ("intercept",), ("status",)} < {path for path, _, _ in found}
    for path, real, made in found:
        assert options_of(made) == options_of(real), path
        assert made.get_short_help_str(1000) == real.get_short_help_str(1000)


@pytest.mark.parametrize("width", [60, 100])
def test_help_that_is_made_of_the_words_is_that_of_the_commands(width):
    for path, real, made in each_command(sidestep, words.helping_commands()):
        if path:
            said = [
                each.get_help(click.Context(each, info_name=path[-1], terminal_width=width, help_option_names=HELP))
                for each in (real, made)
            ]
            assert said[0] == said[1]


def test_help_of_a_command_loads_no_command():
    modules, text = loaded("run(['policy', 'except', '-h'])")
    assert text.startswith("Usage: sidestep policy except [OPTIONS]")
    assert_few(modules, COMPLETING)


@pytest.mark.parametrize("kind", [words.FILES, words.DIRECTORIES])
def test_files_are_left_to_the_shell(kind):
    wanted = {words.FILES: "file", words.DIRECTORIES: "dir"}[kind]
    said = {"name": "x", "words": ["--x"], "completes": kind, "help": ""}
    [item] = words._parameter(said).shell_complete(click.Context(sidestep), "a")
    assert item.type == wanted


def test_what_completes_names_is_there():
    asked = set()
    for _, real, _ in each_command(sidestep, words.completed_commands()):
        asked |= {each.type.completing for each in real.params if getattr(each.type, "completing", "")}
    assert asked == {"contexts", "namespaces", "sessions", "workloads"}
    assert all(callable(getattr(completing, name)) for name in asked)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_says_what_the_command_says(name):
    module, _, attribute = COMMANDS[name][0].partition(":")
    command = getattr(importlib.import_module(module), attribute)
    assert (command.name, command.short_help) == (name, COMMANDS[name][1])


def test_help_lists_every_command():
    text = sidestep.get_help(click.Context(sidestep, info_name="sidestep"))
    listed = text.partition("Commands:\n")[2]
    assert [line.split()[0] for line in listed.splitlines() if line[:3].strip()] == sorted(COMMANDS)
