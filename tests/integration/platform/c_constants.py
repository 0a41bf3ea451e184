"""Integer constants of C headers: `#define` and `enum`, as far as arithmetic and other constants give their value."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from pathlib import Path

_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
_CONTINUED = re.compile(r"\\\n")
_DEFINE = re.compile(r"^[ \t]*#[ \t]*define[ \t]+(\w+)[ \t]+(\S[^\n]*?)[ \t]*$", re.MULTILINE)
_ENUM = re.compile(r"\benum\b\s*\w*\s*\{([^{}]*)\}")
_DIRECTIVE = re.compile(r"^[ \t]*#[^\n]*$", re.MULTILINE)
_SUFFIX = re.compile(r"\b(0[xX][0-9a-fA-F]+|\d+)[uUlL]+\b")
_OCTAL = re.compile(r"(?<![\w.])0([0-7]+)\b")
_ARITHMETIC = re.compile(r"[\s\dxXoa-fA-F()|&~<>+*-]+")
_NAME = re.compile(r"\b[A-Za-z_]\w*\b")


class Constants:
    """What the headers define; of several definitions of a name the first counts."""

    def __init__(self, headers: Iterable[Path]) -> None:
        self._values: dict[str, str] = {}
        for path in headers:
            text = _COMMENT.sub(" ", _CONTINUED.sub(" ", path.read_text()))
            for name, value in _DEFINE.findall(text):
                self._values.setdefault(name, value)
            for body in _ENUM.findall(_DIRECTIVE.sub("", text)):
                self._enumerate(body)

    def _enumerate(self, body: str) -> None:
        before = "-1"
        for member in filter(None, (each.strip() for each in body.split(","))):
            name, _, value = (each.strip() for each in member.partition("="))
            self._values.setdefault(name, value or f"({before}) + 1")
            before = name

    def __getitem__(self, name: str) -> int:
        """The value. Raises KeyError for a name that no header has, ValueError for what is not arithmetic."""
        return self._evaluate(self._values[name])

    @functools.cache  # noqa: B019 - lives as long as the tests of one module
    def _evaluate(self, text: str) -> int:
        plain = _OCTAL.sub(r"0o\1", _SUFFIX.sub(r"\1", text))
        plain = _NAME.sub(lambda word: f"({self[word[0]]})", plain)
        if not _ARITHMETIC.fullmatch(plain):
            raise ValueError(f"{text!r} is no arithmetic of constants")
        return int(eval(plain, {"__builtins__": {}}))
