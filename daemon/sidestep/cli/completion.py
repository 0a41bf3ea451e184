"""`kubectl_complete-sidestep`: completes the words of kubectl's plugin.

kubectl runs it with the words so far as arguments, and reads completions as Cobra's programs print them: a value, a tab
and its description on each line, and at the end a directive (kubectl, "Extend kubectl with plugins").
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from click.shell_completion import ShellComplete

from sidestep.cli.main import COMPLETING
from sidestep.cli.words import completed_commands

NO_FILES, FILES = 4, 0
"""Cobra's directives: ShellCompDirectiveNoFileComp, and the default, by which the shell completes file names."""


def for_kubectl(words: Sequence[str]) -> str:
    """Return the completions of the last word, as kubectl reads them."""
    *before, last = words or ("",)
    found = ShellComplete(completed_commands(), {}, "kubectl sidestep", COMPLETING).get_completions(before, last)
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
