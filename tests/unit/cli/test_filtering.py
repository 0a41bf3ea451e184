"""The filter options of the command line."""

import click
import pytest
from click.testing import CliRunner

from sidestep.cli.filtering import filter_of, filter_options, filter_spec
from sidestep.model.errors import ConfigurationError, RefusedError
from sidestep.tunnel.messages import HeaderSpec, PathSpec


def parsed(*words):
    found = []

    @click.command()
    @filter_options
    def command(**values):
        found.append(filter_of(values))

    outcome = CliRunner().invoke(command, words, catch_exceptions=False, standalone_mode=False)
    assert outcome.exit_code == 0
    return found[0]


def test_options_become_a_filter_and_fields_of_a_session():
    wanted = parsed(
        *("--http-header", "x-dev=ada", "--http-method", "GET", "--http-method", "PUT"),
        *("--http-path-equal", "/a", "--http-path-prefix", "/b/", "--http-path-regex", "^/c"),
    )
    assert filter_spec(wanted) == {
        "headers": (HeaderSpec("x-dev", "exact", "ada"),),
        "methods": ("GET", "PUT"),
        "paths": (PathSpec("equal", "/a"), PathSpec("prefix", "/b/"), PathSpec("regex", "^/c")),
    }


def test_no_option_is_a_global_filter():
    assert parsed().is_global


@pytest.mark.parametrize(
    "words",
    [("--http-method", "get"), ("--http-header", "a b=c"), ("--http-path-regex", "("), ("--http-header", "a=~(")],
)
def test_what_could_never_match_is_an_error(words):
    with pytest.raises((ConfigurationError, RefusedError)):
        parsed(*words)
