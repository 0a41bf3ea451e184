"""Checks that apply to the values of every command before it runs.

No value may be empty, contain control characters or be invalid Unicode: such a value is a mistake of a script or a
shell, and would be displayed, stored or sent. The type of an option checks everything else. The words of a child
command (after `--`) are passed on unchecked.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from sidestep.model.errors import RefusedError
from sidestep.model.text import harmless
from sidestep.policy.names import is_label, is_subdomain
from sidestep.policy.workloads import parse_workload

_GIVEN = frozenset({ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT})


class Command(click.Command):
    """A click command that checks its values."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click.Command.parse_args."""
        rest = super().parse_args(ctx, args)
        for parameter in self.params:
            name = parameter.name or ""
            if ctx.get_parameter_source(name) in _GIVEN and parameter.type is not click.UNPROCESSED:
                _check(parameter, ctx.params.get(name), ctx)
        return rest


def _check(parameter: click.Parameter, value: object, ctx: click.Context) -> None:
    for each in value if isinstance(value, tuple) else (value,):
        if isinstance(each, str | Path):
            reason = fault(str(each), path=isinstance(each, Path))
            if reason:
                raise click.BadParameter(f"{harmless(repr(str(each)), 200)} {reason}", ctx, parameter)


def fault(text: str, *, path: bool = False) -> str:
    """Return why no option accepts this value; empty when it is acceptable. File names may contain non-UTF-8 bytes."""
    if not text:
        return "is empty"
    if any(unicodedata.category(character) == "Cc" and character != "\t" for character in text):
        return "contains control characters"
    if not path and any(unicodedata.category(character) == "Cs" for character in text):
        return "is not valid UTF-8"
    return ""


class FilePath(click.Path):
    """A path as in `click.Path`, but not the empty one, which would mean the working directory."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As click.ParamType.convert."""
        if value == "":
            self.fail("'' is empty", param, ctx)
        return super().convert(value, param, ctx)


class Completed(click.types.StringParamType):
    """A text that a function of `cli.completing` completes (see `cli.words`)."""

    def __init__(self, completing: str) -> None:
        self.completing = completing


class Name(click.ParamType[str]):
    """A text that a rule accepts; `what` describes its purpose in errors, `completing` names the function of
    `cli.completing` that completes it (see `cli.words`).
    """

    name = "text"

    def __init__(self, what: str, accepts: Callable[[str], bool], *, completing: str = "") -> None:
        self._what = what
        self._accepts = accepts
        self.completing = completing

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """As click.ParamType.convert."""
        text = str(value)
        if text and not fault(text) and not self._accepts(text):
            self.fail(
                f"{harmless(repr(text), 200)} is no {self._what}: lower-case letters, digits, - and . only", param, ctx
            )
        return text


class WorkloadType(click.ParamType[str]):
    """`name` or `kind/name`, as written."""

    name = "workload"
    completing = "workloads"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """As click.ParamType.convert."""
        text = str(value)
        if not text or fault(text):
            return text
        try:
            reference = parse_workload(text)
        except RefusedError as error:
            self.fail(str(error), param, ctx)
        if not is_subdomain(reference.name):
            self.fail(
                f"{harmless(repr(text), 200)} is no workload: write NAME or KIND/NAME, like deployment/orders",
                param,
                ctx,
            )
        return text


NAMESPACE = Name("namespace", is_label, completing="namespaces")
SESSION_NAME = Name("name of a session", is_subdomain)
CONTAINER_NAME = Name("container's name", is_label)
POD_NAME = Name("pod's name", is_subdomain)
