"""Filter options shared by all commands that select requests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from sidestep.config.filters import parse_filter
from sidestep.model.filter import Filter
from sidestep.policy.matching import compile_filter
from sidestep.tunnel.messages import HeaderSpec, PathSpec

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    ("--http-header", "headers", "NAME[=VALUE|=~REGEX]", "Only with this header."),
    ("--http-method", "methods", "METHOD", "Only this method; more are OR-ed."),
    ("--http-path-equal", "path_equal", "PATH", "Only this path; paths are OR-ed."),
    ("--http-path-prefix", "path_prefix", "PREFIX", "Only paths that begin so."),
    ("--http-path-regex", "path_regex", "REGEX", "Only paths that match (RE2)."),
)


def filter_options(command: F) -> F:
    """Add `--http-…`; the command receives `headers`, `methods`, `path_equal`, `path_prefix` and `path_regex`."""
    for option, name, metavar, text in reversed(_OPTIONS):
        command = click.option(option, name, multiple=True, metavar=metavar, help=text)(command)
    return command


def filter_of(values: dict[str, Any]) -> Filter:
    """Return the filter that the options describe. Raises ConfigurationError, RefusedError."""
    wanted = parse_filter(
        headers=values["headers"],
        methods=values["methods"],
        path_equal=values["path_equal"],
        path_prefix=values["path_prefix"],
        path_regex=values["path_regex"],
    )
    compile_filter(wanted)  # reports a regex that does not compile
    return wanted


def filter_spec(wanted: Filter) -> dict[str, Any]:
    """Return the filter as fields of a `SessionSpec`."""
    return {
        "headers": tuple(HeaderSpec(each.name, each.test.value, each.value) for each in wanted.headers),
        "methods": wanted.methods,
        "paths": tuple(PathSpec(each.test.value, each.value) for each in wanted.paths),
    }
