"""The words of the command line, for whoever completes them or asks for help: commands, options, and their values.

A shell runs `sidestep` for each TAB. To import a command, and all that it needs to run, takes longer than a person
should wait. So all options stand in `words.json`, which `cli.words_table` writes from the real commands (a test
compares them), and click completes with commands that are made from it: they read a command line, and run nothing.
The help of a command is printed by them, too.

    commands     name -> short help, text, options, and commands below it
    options      words ("--port"; none: an argument), the name by which `cli.completing` finds it, help, what help
                 shows where that is more (`shown`), the name of its value there (`metavar`), whether it takes one, how
                 often it may come
    completes    what completes the value: a list of words, FILES, DIRECTORIES, or a function of `cli.completing`, whose
                 name the type of the real option says (`completing`); "": nothing does

A name that only a server knows takes longer: `cli.completing`, and what asks, are loaded then.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from collections.abc import Mapping

TABLE: Final = Path(__file__).with_name("words.json")
FILES: Final = "files"
DIRECTORIES: Final = "directories"

Described = dict[str, Any]
"""A command, or an option, in the table."""


def completed_commands() -> click.Group:
    """Return `sidestep` as far as words can be completed with it."""
    return _Group("sidestep", json.loads(TABLE.read_text(encoding="utf-8")))


def helping_commands() -> click.Group:
    """Return `sidestep` as far as help of its commands can be printed with it."""
    return _Group("sidestep", json.loads(TABLE.read_text(encoding="utf-8")), shown=True)


class _Group(click.Group):
    """A group of the table, whose commands are made when they are asked for."""

    def __init__(self, name: str, said: Mapping[str, Any], *, shown: bool = False) -> None:
        super().__init__(name, **_options(said, shown=shown))
        self._said = said["commands"]
        self._shown = shown

    def list_commands(self, ctx: click.Context) -> list[str]:
        """As Group.list_commands."""
        del ctx
        return sorted(self._said)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """As Group.get_command."""
        del ctx
        said = self._said.get(cmd_name)
        if said is None:
            return None
        if "commands" in said:
            return _Group(cmd_name, said, shown=self._shown)
        return click.Command(cmd_name, **_options(said, shown=self._shown))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """As Group.shell_complete, from the table."""
        named = [
            CompletionItem(name, help=said["help"])
            for name, said in sorted(self._said.items())
            if name.startswith(incomplete)
        ]
        return [*named, *click.Command.shell_complete(self, ctx, incomplete)]


def _options(said: Mapping[str, Any], *, shown: bool) -> dict[str, Any]:
    return {
        "params": [_parameter(each, shown=shown) for each in said["options"]],
        "short_help": said["help"],
        "help": said["text"] or None,
        "context_settings": said.get("settings", {}),
    }


def _parameter(said: Mapping[str, Any], *, shown: bool = False) -> click.Parameter:
    completes = said["completes"]
    kind: click.ParamType[Any]
    if isinstance(completes, list):
        kind = click.Choice(completes)
    elif completes in {FILES, DIRECTORIES}:
        kind = click.Path(dir_okay=True, file_okay=completes == FILES, path_type=Path)
    else:
        kind = _Asked(completes)
    values = said.get("values", 1)
    if not said["words"]:
        required = not said.get("optional", False)
        return click.Argument([said["name"]], type=kind, nargs=values, required=required, metavar=said["metavar"])
    words = "/".join([*said["words"][:1], *said.get("off", ())])
    settings = {"is_flag": True, "type": None} if said.get("flag") else {"type": kind, "nargs": values}
    return click.Option(
        [said["name"], words, *said["words"][1:]],
        help=said.get("shown", said["help"]) if shown else said["help"],
        metavar=said.get("metavar"),
        multiple=said.get("multiple", False),
        hidden=said.get("hidden", False),
        is_eager=said.get("eager", False),
        **settings,
    )


class _Asked(click.types.StringParamType):
    """A text that a function of `cli.completing` completes; "": nothing does."""

    def __init__(self, completing: str) -> None:
        self._completing = completing

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """As ParamType.shell_complete."""
        del param
        if not self._completing:
            return []
        from sidestep.cli import completing

        found: list[CompletionItem] = getattr(completing, self._completing)(ctx, incomplete)
        return found
