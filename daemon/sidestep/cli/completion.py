"""`sidestep completion`: what makes a shell complete the words of `sidestep`, and kubectl those of its plugin.

The scripts are click's: on each TAB they run `sidestep` with the words so far in the environment. kubectl instead runs
`kubectl_complete-sidestep` with the words as arguments, and reads completions as Cobra's programs print them: a value,
a tab and its description on each line, and at the end a directive (kubectl, "Extend kubectl with plugins").
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click
from click.shell_completion import ShellComplete, get_completion_class

from sidestep.cli.command import Command

SHELLS = ("bash", "fish", "zsh")
VARIABLE = "_SIDESTEP_COMPLETE"
"""Environment variable by which click knows that words are to be completed."""
NO_FILES, FILES = 4, 0
"""Cobra's directives: ShellCompDirectiveNoFileComp, and the default, by which the shell completes file names."""


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
    root = click.get_current_context().find_root().command
    click.echo(made(root, {}, "sidestep", VARIABLE).source())


def for_kubectl(words: Sequence[str]) -> str:
    """Return the completions of the last word, as kubectl reads them."""
    from sidestep.cli.main import sidestep

    *before, last = words or ("",)
    found = ShellComplete(sidestep, {}, "kubectl sidestep", VARIABLE).get_completions(before, last)
    lines = [f"{item.value}\t{item.help}" if item.help else item.value for item in found if item.type == "plain"]
    directive = FILES if any(item.type != "plain" for item in found) else NO_FILES
    return "\n".join([*lines, f":{directive}"])


def kubectl() -> None:
    """Entry point of `kubectl_complete-sidestep`. An error is no completion."""
    try:
        text = for_kubectl(sys.argv[1:])
    except Exception:  # noqa: BLE001 - whoever presses TAB can do nothing about it
        text = f":{NO_FILES}"
    sys.stdout.write(text + "\n")
