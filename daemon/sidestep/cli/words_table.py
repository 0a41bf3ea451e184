"""Writes `words.json` from the real commands, for `cli.words`: python -m sidestep.cli.words_table."""

from __future__ import annotations

import inspect
import json
from typing import Any

import click

from sidestep.cli.main import sidestep
from sidestep.cli.words import DIRECTORIES, FILES, TABLE, Described


def describe(command: click.Command) -> Described:
    """Return what the table says of a command."""
    context = click.Context(command)
    said: Described = {"help": command.get_short_help_str(limit=1000)}
    if command.context_settings:
        said["settings"] = dict(command.context_settings)
    said["text"] = inspect.cleandoc(command.help or "")
    said["options"] = [_describe(param, context) for param in command.params]
    if isinstance(command, click.Group):
        found = {name: command.get_command(context, name) for name in command.list_commands(context)}
        said["commands"] = {name: describe(each) for name, each in found.items() if each is not None}
    return said


def _describe(param: click.Parameter, context: click.Context) -> Described:
    said: Described = {"name": param.name, "words": [], "completes": _completes(param.type)}
    if isinstance(param, click.Option):
        said |= {"words": [*param.opts], "help": param.help or ""}
        shown = param.get_help_record(context)
        if shown is not None and shown[1] != said["help"]:
            said["shown"] = shown[1]
        if param.secondary_opts:
            said["off"] = [*param.secondary_opts]
        if param.is_flag:
            said["flag"] = True
        if param.multiple:
            said["multiple"] = True
        if param.hidden:
            said["hidden"] = True
        if param.is_eager:
            said["eager"] = True
    if not (isinstance(param, click.Option) and param.is_flag):
        said["metavar"] = param.make_metavar(context)
    if param.nargs != 1:
        said["values"] = param.nargs
    if not param.required and not isinstance(param, click.Option):
        said["optional"] = True
    return said


def _completes(kind: click.ParamType[Any]) -> str | list[str]:
    if isinstance(kind, click.Choice):
        return [str(choice) for choice in kind.choices]
    if isinstance(kind, click.Path):
        return DIRECTORIES if kind.dir_okay and not kind.file_okay else FILES
    return str(getattr(kind, "completing", ""))


def main() -> None:
    """Write the table."""
    TABLE.write_text(json.dumps(describe(sidestep), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
