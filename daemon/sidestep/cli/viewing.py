"""What `list` and `status` have in common: the forms in which they show what there is, once or again and again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import click
import msgspec

from sidestep.model.text import harmless

F = TypeVar("F", bound=Callable[..., Any])

EVERY = 2.0
"""Seconds between two looks."""

Look = Callable[[], tuple[object, Iterable[str]]]
"""Asks what there is; returns what tells a change, and the lines to print."""


def view_options(command: F) -> F:
    """`--output` with the forms of views, and `--watch`."""
    for option in (
        click.option("--watch", "-w", is_flag=True, help="Print again what has changed, until Ctrl-C."),
        click.option(
            "--output",
            "-o",
            type=click.Choice(["text", "wide", "json", "yaml", "name"]),
            default="text",
            show_default=True,
            help="text and wide for people, json and yaml for programs, name: KIND/NAME alone.",
        ),
    ):
        command = option(command)
    return command


def show(look: Look, *, watch: bool) -> None:
    """Print what there is. With `watch` look every EVERY seconds, and print again when it has changed."""
    before: list[object] = []
    try:
        while True:
            what, lines = look()
            if [what] != before:
                for line in ["", *lines] if before else lines:
                    click.echo(line)
            if not watch:
                return
            before = [what]
            time.sleep(EVERY)
    except KeyboardInterrupt:
        if not watch:
            raise


def yaml_lines(views: Sequence[object]) -> list[str]:
    """The views as a YAML sequence; characters that are not printable are escaped."""
    import yaml

    return str(yaml.safe_dump(msgspec.to_builtins(views), sort_keys=False, width=10_000)).splitlines()


def name_lines(names: Iterable[tuple[str, str]]) -> list[str]:
    """`kind/name`, each on a line."""
    return [harmless(f"{kind}/{name}") for kind, name in names]
