"""Variables of a process: read from /proc/PID/environ, chosen by globs, written in the syntaxes that other tools read.

    dotenv     NAME=value for python-dotenv, Node.js, Docker Compose and their kin, which differ: Node.js knows no
               escape but \\n in double quotes, python-dotenv undoes \\\\ and \\' in single quotes, all of them undo
               some in double quotes. So a value is bare, in single or in double quotes, whichever leaves nothing to
               be undone. What has no such way (a quote beside a dollar sign or a double quote; a backslash at the end
               of a value that cannot be bare) is in single quotes with \\' and \\\\, which only python-dotenv reads
               exactly
    json       one object
    shell      export NAME='value', for POSIX shells
    docker     NAME=value without quotes, for `docker run --env-file`; it has no line breaks
    compose    a mapping for `environment:` of a Compose file, with $$ for a dollar sign

Names that a syntax cannot hold are left out and named, and so are values that are no UTF-8 or that a syntax has no way
to write. A process that is started with the variables gets all of them, byte for byte.
"""

from __future__ import annotations

import fnmatch
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import msgspec

from sidestep.model.text import harmless

# fmt: off
OF_THE_MACHINE: Final = (
    "PATH", "HOME", "HOSTNAME", "PWD", "OLDPWD", "SHLVL", "SHELL", "USER", "LOGNAME", "TERM", "TMPDIR", "XDG_*",
    "DISPLAY", "SSH_*", "LD_*", "DYLD_*", "BASH_ENV", "ENV", "PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP", "JAVA_HOME",
    "CLASSPATH", "NODE_PATH", "GOPATH", "GOROOT", "GEM_HOME", "GEM_PATH", "VIRTUAL_ENV",
)
# fmt: on
"""Globs of variables that say where things are in the container. A command keeps its own, unless they are included by
name."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_BARE = re.compile(r"[A-Za-z0-9_./:@%+,-]*")
_BARE_WITH_BACKSLASHES = re.compile(r"[A-Za-z0-9_./:@%+,\\-]*")
_UNDONE_IN_SINGLE_QUOTES = re.compile(r"'|\\\\|\\\Z")
_UNDONE_IN_DOUBLE_QUOTES = re.compile(r"[\"$`\n]|\\[\\'a-z0-9]|\\\Z")

Variables = Mapping[bytes, bytes]


def parse(content: bytes) -> dict[bytes, bytes]:
    """Return the variables of /proc/PID/environ; of a name that occurs twice the first, which getenv(3) finds."""
    found: dict[bytes, bytes] = {}
    for entry in content.split(b"\0"):
        name, equals, value = entry.partition(b"=")
        if name and equals:
            found.setdefault(name, value)
    return found


def chosen(variables: Variables, include: Iterable[str], exclude: Iterable[str]) -> dict[bytes, bytes]:
    """Return the variables of which one of the globs `include` (none: every one) and none of `exclude` is the name."""
    wanted, unwanted = [*include], [*exclude]

    def is_chosen(name: str) -> bool:
        return (not wanted or _matches(name, wanted)) and not _matches(name, unwanted)

    return {name: value for name, value in variables.items() if is_chosen(name.decode("utf-8", "surrogateescape"))}


def for_a_command(variables: Variables, include: Iterable[str]) -> dict[bytes, bytes]:
    """Return those of the variables that a command on this machine gets: not those of the machine that it was."""
    named = {each for each in include if not set(each) & set("*?[")}

    def is_its_own(name: str) -> bool:
        return _matches(name, OF_THE_MACHINE) and name not in named

    return {name: value for name, value in variables.items() if not is_its_own(name.decode("utf-8", "surrogateescape"))}


def written(variables: Variables, syntax: str) -> tuple[str, tuple[str, ...]]:
    """Return the text in a syntax, in the order of names, and the names that it leaves out."""
    text: dict[str, str] = {}
    left_out = []
    for name, value in sorted(variables.items()):
        try:
            text[name.decode()] = value.decode()
        except UnicodeDecodeError:
            left_out.append(name.decode("utf-8", "backslashreplace"))
    if syntax == "json":
        return msgspec.json.format(msgspec.json.encode(text), indent=2).decode() + "\n", tuple(left_out)
    line = _LINES[syntax]
    lines = []
    for each, content in text.items():
        made = line(each, content) if _NAME.fullmatch(each) else None
        if made is None:
            left_out.append(each)
        else:
            lines.append(made)
    head = "environment:" + ("" if lines else " {}") + "\n" if syntax == "compose" else ""
    return head + "".join(f"{each}\n" for each in lines), tuple(left_out)


def on_a_terminal(text: str) -> str:
    """Return the text with escapes in the place of what a terminal would obey, line breaks excepted."""
    return "\n".join(harmless(line, limit=len(line)) for line in text.split("\n"))


def _matches(name: str, globs: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, each) for each in globs)


def _dotenv(name: str, value: str) -> str | None:
    if "\r" in value:
        return None  # readers turn CR LF into LF
    if _BARE.fullmatch(value):
        return f"{name}={value}"
    if not _UNDONE_IN_SINGLE_QUOTES.search(value):
        return f"{name}='{value}'"
    if not _UNDONE_IN_DOUBLE_QUOTES.search(value):
        return f'{name}="{value}"'
    if _BARE_WITH_BACKSLASHES.fullmatch(value):
        return f"{name}={value}"
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"{name}='{escaped}'"


def _shell(name: str, value: str) -> str | None:
    return f"export {name}={shlex.quote(value)}"


def _docker(name: str, value: str) -> str | None:
    return None if set(value) & set("\n\r") else f"{name}={value}"


def _compose(name: str, value: str) -> str | None:
    return f"  {name}: {msgspec.json.encode(value.replace('$', '$$')).decode()}"


_LINES: Final[Mapping[str, Callable[[str, str], str | None]]] = {
    "dotenv": _dotenv,
    "shell": _shell,
    "docker": _docker,
    "compose": _compose,
}
SYNTAXES: Final = ("dotenv", "json", "shell", "docker", "compose")
