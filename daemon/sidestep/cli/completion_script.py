"""`sidestep completion`: prints what makes a shell complete the words of `sidestep`.

The scripts are click's: on each TAB they run `sidestep` with the words so far in the environment (`cli.words`).
"""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from sidestep.cli.command import Command
from sidestep.cli.main import COMPLETING
from sidestep.cli.words import completed_commands

SHELLS = ("bash", "fish", "zsh")


@click.command(cls=Command, short_help="Print what completes words in a shell.")
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print a script that completes the words of sidestep: commands, options, and names of contexts, namespaces,
    workloads and sessions, which are asked for where the command line so far points to.

    `kubectl sidestep` is completed by kubectl's own completion, if kubectl_complete-sidestep is on the PATH; it is
    installed beside sidestep.

    \b
      source <(sidestep completion bash)
      sidestep completion zsh > "${fpath[1]}/_sidestep"
      sidestep completion fish > ~/.config/fish/completions/sidestep.fish
    """
    made = get_completion_class(shell)
    assert made is not None  # noqa: S101 - one of SHELLS
    click.echo(made(completed_commands(), {}, "sidestep", COMPLETING).source())
