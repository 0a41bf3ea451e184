"""Every option and argument of every command: the empty value and control characters are usage errors."""

from __future__ import annotations

import click
import pytest

from sidestep.cli.command import Command
from sidestep.cli.main import run, sidestep
from tests.harness.table import each_row

NEEDED = {
    "node": [],
    "intercept": ["orders", "--port", "9:8443"],
    "wiretap": ["orders", "--port", "9:8443"],
    "flows": ["orders"],
    "ui": ["orders"],
    "capture": ["orders", "-w", "x.pcapng"],
    "inspect": ["orders"],
    "connect": ["orders"],
    "env": ["orders"],
    "files": ["orders", "--to", "somewhere"],
    "leave": ["orders"],
    "list": [],
    "status": [],
    "policy check": ["policies.yaml"],
    "policy except": ["2c6db743-1"],
    "replay": ["x.har", "--to", "http://127.0.0.1:8080"],
    "completion": ["bash"],
    "up": [],
    "doctor": [],
}
"""What each command cannot do without."""


def commands(group=sidestep, path=()):
    """All commands by their words, those of groups included."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


def options():
    for name, command in commands():
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.is_flag:
                yield from ((name, spelling) for spelling in parameter.opts)


def refused(capsys, *words):
    assert run(words) == 2, words
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.strip().isprintable()
    return captured.err


def test_every_command_checks_its_words():
    assert {name for name, _ in commands()} == set(NEEDED)
    assert all(isinstance(command, Command) for _, command in commands())


@each_row("command, option", list(options()))
@each_row("value", ["", "a\x1b[2Jb", "a\nb", "a\x7f", "\x9b1m"])
def test_no_option_takes_an_empty_value_or_control_characters(capsys, command, option, value):
    said = refused(capsys, *command.split(), *NEEDED[command], option, value)
    assert option.lstrip("-")[0] in said
    assert "--" in said


@pytest.mark.parametrize("command", ["intercept", "wiretap", "flows", "capture", "inspect", "leave", "policy except"])
@pytest.mark.parametrize("value", ["", "a\x1bb", "a/b/c", "/", "deployment/", "/orders"])
def test_no_argument_does(capsys, command, value):
    refused(capsys, *command.split(), value, *NEEDED[command][1:])


@pytest.mark.parametrize(
    ("option", "value", "mentioned"),
    [
        ("--address", "999.1.1.1", "999.1.1.1"),
        ("--address", "1.2.3", "1.2.3"),
        ("--address", "1.2.3.4.5", "1.2.3.4.5"),
        ("--address", "127.0.0.1:80", "127.0.0.1:80"),
        ("--address", "fe80::zz", "fe80::zz"),
        ("--address", "[::1]", "[::1]"),
        ("--address", "two words", "two words"),
        ("--address", "-x", "-x"),
        ("--address", "a..b", "a..b"),
        ("--address", "a" * 64, "aaaa"),
        ("--name", "Mine", "Mine"),
        ("--name", "a_b", "a_b"),
        ("--name", "..", ".."),
        ("-n", "Shop", "Shop"),
        ("-n", "a.b", "a.b"),
        ("-n", "a" * 64, "aaaa"),
        ("--pod", "orders/1", "orders/1"),
        ("--port", "9:", "9:"),
        ("--handler-ca", "/dev/zero", "a device"),
        ("--handler-ca", "/", "a folder"),
    ],
)
def test_what_an_option_cannot_be(capsys, option, value, mentioned):
    said = refused(capsys, "intercept", *NEEDED["intercept"], f"{option}={value}" if value[0] == "-" else option, value)
    assert mentioned in said


@pytest.mark.parametrize("value", ["::1", "fe80::1%lo", "10.0.0.1", "localhost", "a.b-c.d.", "my_host"])
def test_where_a_handler_may_listen(value):
    from sidestep.laptop.handler import Handler, HandlerSettings

    assert str(Handler(HandlerSettings(port=1, address=value)).settings)
