"""How a command that somebody has written is started on this system: the program behind its first word, and its words.

Everywhere but on Windows the system looks for the program itself. There it finds `.exe` only, and much of what
developers write is a batch file (`npm.cmd`), so the program is looked for as a shell does it (PATH and PATHEXT), in the
PATH that the command gets.

Windows runs a batch file by cmd.exe, which reads the command line by rules of its own: no way of quoting keeps it from
expanding `%NAME%`, and Python quotes for programs, not for cmd.exe (documentation of `subprocess`, "Security
Considerations"). So a batch file is started only with words, and under a path, that hold nothing that makes cmd.exe run
or expand anything. It still takes `,`, `;` and `=` for spaces between `%1` and `%2`.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Final

from sidestep.model.errors import ConfigurationError

BATCH: Final = frozenset((".bat", ".cmd"))
INTERPRETED: Final = frozenset('"%!&|<>^()\r\n\0')
"""Characters that cmd.exe interprets in words of a command, or in the lines of a batch file that has taken them."""
_OF_PATHS: Final = INTERPRETED - frozenset("()")
"""In the path of a batch file: many are below `C:\\Program Files (x86)`."""


def started_program(
    command: Sequence[str], environment: Mapping[str, str], *, folder: Path | None = None
) -> tuple[str, ...]:
    """Return the words to start: `command`, on Windows with the path of its program, if it is found.

    `folder` is where it will run; a program that is written with a folder is looked for there, as elsewhere. Raises
    ConfigurationError for a word that a batch file cannot be given.
    """
    program, *words = command
    on_windows = sys.platform == "win32"  # the type checker takes the rest for unreachable in an `if`
    if not on_windows:
        return (program, *words)
    if PurePath(program).name != program and folder is not None:
        program = str(folder / program)
    found = shutil.which(program, path=environment.get("PATH"))
    if found is None:
        return (program, *words)  # starting it says what is wrong
    if PurePath(found.rstrip(". ")).suffix.lower() in BATCH:  # Windows ignores these at the end of a name
        _check(found, found, _OF_PATHS)
        for word in words:
            _check(word, found, INTERPRETED)
    return (found, *words)


def _check(text: str, batch: str, refused: frozenset[str]) -> None:
    bad = sorted(refused.intersection(text))
    if bad:
        reason = f"cannot be given to {PurePath(batch).name}, a batch file: cmd.exe would interpret {bad[0]!r} in it"
        raise ConfigurationError(reason, subject="command", value=text[:100])
