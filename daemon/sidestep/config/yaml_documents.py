"""Parses YAML text into plain values, one document at a time, with bounds against hostile input.

The text is split at lines that begin with `---`, as kubectl does, so that a syntax error affects its own document only.
Values are built from the *events* of the YAML parser instead of by a YAML loader, for three guarantees that no stock
loader gives: nesting stops at MAX_DEPTH before the cost of libyaml explodes (100,000 open brackets take it 40 s);
aliases and merge keys count with the size of what they refer to (no "billion laughs"); and the result contains only
str, int, float, bool, None, list and dict, whatever tags are written.

Plain scalars follow YAML 1.1 as Kubernetes tools read it (`yes` is a boolean, `0755` is octal), except that dates stay
text. Mapping keys are text. A repeated key in one mapping is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec
import yaml

from sidestep.model.errors import ConfigurationError

MAX_TEXT = 1024 * 1024
"""Characters of one file. A Kubernetes object has at most 1.5 MiB in etcd; pod manifests have a few KiB."""
MAX_DOCUMENTS = 1000
"""Documents of one file."""
MAX_DEPTH = 64
"""Nested collections. A Deployment with all fields has 20."""
MAX_WEIGHT = 100_000
"""Values of one document. Aliases count each time they are used; a long text adds one per 64 characters."""

_SEPARATOR = re.compile(r"^---(?=[ \t\r\n]|\Z)", re.MULTILINE)
_IDLE = re.compile(r"(?>[ \t\r]*+(?:[#%][^\n]*+|\.\.\.[ \t\r]*+)?(?:\n|\Z))*+")
"""Text without a document: blank lines, comments, directives and end marks. Atomic groups prevent backtracking."""

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE = frozenset({"true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"})
_FALSE = frozenset({"false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"})
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,18})")
_OCTAL = re.compile(r"0o?([0-7]{1,21})")
_HEX = re.compile(r"0x([0-9a-fA-F]{1,16})")
_FLOAT = re.compile(r"[-+]?(?:[0-9]{1,32}\.[0-9]{0,32}|\.[0-9]{1,32}|[0-9]{1,32}(?=[eE]))(?:[eE][-+]?[0-9]{1,4})?")
_TAG = "tag:yaml.org,2002:"
_TEXT_TAGS = frozenset({f"{_TAG}str", "!"})
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Only its parser is used; the C version where PyYAML was built with it."""

Value = object
"""A str, int, float, bool, None, list of Value, or dict of str to Value."""


class YamlError(ConfigurationError):
    """A document that cannot be parsed. `line` is 1-based within the file."""

    def __init__(self, reason: str, line: int) -> None:
        self.line = line
        super().__init__(reason)


class Document(msgspec.Struct, frozen=True):
    """One document. `number` counts the non-empty documents of a file from 1; `line` is the file's line of its first
    line.
    """

    number: int
    line: int
    text: str


def split(text: str) -> Iterator[Document]:
    """Yield the documents of a file in order. Raises YamlError when there are more than MAX_DOCUMENTS."""
    text = text.removeprefix("\ufeff")
    starts = [0, *(match.start() for match in _SEPARATOR.finditer(text))]
    number, line = 0, 1
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        chunk = text[start:end]
        # Replaces the mark by blanks, which keeps the columns of text after it on the same line.
        body = "   " + chunk[3:] if _SEPARATOR.match(chunk) else chunk
        if not _IDLE.fullmatch(body):
            number += 1
            if number > MAX_DOCUMENTS:
                raise YamlError(f"more than {MAX_DOCUMENTS} documents in one file", line)
            yield Document(number, line, body)
        line += chunk.count("\n")


def load(document: Document) -> Value:
    """Return the value of a document. Raises YamlError with the line and the reason."""
    return _build(document, None)


class LineIndex:
    """Maps a path in a document to its line in the file. Parses the document again on first use."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self._lines: dict[str, int] | None = None

    def of(self, path: str) -> int:
        """Return the line of the value at `path` (`spec.containers[0].name`), or of its nearest existing parent."""
        if self._lines is None:
            self._lines = {}
            _build(self.document, self._lines)
        while path and path not in self._lines:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self._lines.get(path, self.document.line)


@dataclass(slots=True)
class _Frame:
    """A collection under construction. `base` is the weight counted when it began. A mapping expects a value while
    `key` is set. `merged` collects the entries of merge keys.
    """

    value: list[Value] | dict[str, Value]
    path: str
    anchor: str | None
    base: int
    key: str | None = None
    merging: bool = False
    merged: list[Value] = field(default_factory=list)


def _build(document: Document, lines: dict[str, int] | None) -> Value:
    builder = _Builder(document, lines)
    try:
        for event in yaml.parse(document.text, Loader=_LOADER):
            builder.feed(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise YamlError(error.problem or "not YAML", document.line + (mark.line if mark else 0)) from None
    except (yaml.YAMLError, UnicodeEncodeError):
        raise YamlError("holds characters that YAML does not allow", document.line + _bad_line(document.text)) from None
    except RecursionError:
        raise YamlError("nested too deeply", document.line) from None
    return builder.root


_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _bad_line(text: str) -> int:
    found = _UNPRINTABLE.search(text)
    return text.count("\n", 0, found.start()) if found else 0


class _Builder:
    """Builds one value from parser events and checks every bound meanwhile."""

    def __init__(self, document: Document, lines: dict[str, int] | None) -> None:
        self.root: Value = None
        self._document = document
        self._lines = lines
        self._stack: list[_Frame] = []
        self._anchors: dict[str, tuple[Value, int]] = {}
        self._weight = 0
        self._documents = 0
        self._line = document.line

    def feed(self, event: yaml.Event) -> None:
        """Process one event of `yaml.parse`, in order. Raises YamlError."""
        if event.start_mark is not None:
            self._line = self._document.line + event.start_mark.line
        match event:
            case yaml.ScalarEvent():
                self._scalar(event)
            case yaml.MappingStartEvent():
                self._open({}, event)
            case yaml.SequenceStartEvent():
                self._open([], event)
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                self._close()
            case yaml.AliasEvent():
                self._alias(str(event.anchor))
            case yaml.DocumentStartEvent():
                self._documents += 1
                if self._documents > 1:
                    raise self._error("separate documents by a line '---'")

    def _error(self, reason: str) -> YamlError:
        return YamlError(reason, self._line)

    def _count(self, weight: int) -> None:
        self._weight += weight
        if self._weight > MAX_WEIGHT:
            raise self._error(f"holds more than {MAX_WEIGHT} values, aliases counted with what they stand for")

    def _scalar(self, event: yaml.ScalarEvent) -> None:
        text = str(event.value)
        frame = self._stack[-1] if self._stack else None
        if frame and isinstance(frame.value, dict) and frame.key is None:
            self._count(1 + len(text) // 64)
            self._key(frame, text, plain=bool(event.implicit[0]))
            return
        before = self._weight
        self._count(1 + len(text) // 64)
        self._add(self._resolve(event, text), event.anchor, before)

    def _key(self, frame: _Frame, text: str, *, plain: bool) -> None:
        frame.merging = plain and text == "<<"
        if not frame.merging and text in frame.value:
            raise self._error(f"key {text[:100]!r} stands twice")
        frame.key = text
        self._note(text)

    def _resolve(self, event: yaml.ScalarEvent, text: str) -> Value:
        plain, quoted = event.implicit
        if event.tag is not None and not plain and not quoted:
            return self._tagged(event.tag, text)
        if event.tag is None and plain:
            return _plain(text)
        return text

    def _tagged(self, tag: str, text: str) -> Value:
        if tag in _TEXT_TAGS:
            return text
        value = _plain(text)
        wanted = {f"{_TAG}int": int, f"{_TAG}float": float, f"{_TAG}bool": bool, f"{_TAG}null": type(None)}.get(tag)
        if wanted is None or type(value) is not wanted:
            raise self._error(f"tag {tag[:100]!r} is not possible here")
        return value

    def _open(self, value: list[Value] | dict[str, Value], event: yaml.CollectionStartEvent) -> None:
        if event.tag not in {None, "!", f"{_TAG}map", f"{_TAG}seq"}:
            raise self._error(f"tag {str(event.tag)[:100]!r} is not possible here")
        if len(self._stack) >= MAX_DEPTH:
            raise self._error(f"nested more than {MAX_DEPTH} deep")
        frame = self._stack[-1] if self._stack else None
        if frame and isinstance(frame.value, dict) and frame.key is None:
            raise self._error("a key must be a text")
        self._note_item()
        base = self._weight
        self._count(1)
        self._stack.append(_Frame(value, self._path(), event.anchor, base))

    def _close(self) -> None:
        frame = self._stack.pop()
        if isinstance(frame.value, dict):
            for source in frame.merged:
                for key, value in _merge_sources(source):
                    frame.value.setdefault(key, value)
        self._add(frame.value, frame.anchor, frame.base)

    def _alias(self, name: str) -> None:
        if name not in self._anchors:
            raise self._error(f"alias *{name[:100]} stands for nothing that is complete")
        value, weight = self._anchors[name]
        frame = self._stack[-1] if self._stack else None
        if frame and isinstance(frame.value, dict) and frame.key is None:
            if not isinstance(value, str):
                raise self._error("a key must be a text")
            self._count(weight)
            self._key(frame, value, plain=False)
            return
        before = self._weight
        self._count(weight)
        self._add(value, None, before)

    def _add(self, value: Value, anchor: str | None, before: int) -> None:
        """Add a finished value to the open collection."""
        if anchor is not None:
            self._anchors[anchor] = (value, self._weight - before)
        if not self._stack:
            self.root = value
            return
        frame = self._stack[-1]
        if isinstance(frame.value, list):
            if not isinstance(value, (list, dict)):
                self._note_item()
            frame.value.append(value)
        elif frame.merging:
            if not all(isinstance(each, dict) for each in (value if isinstance(value, list) else [value])):
                raise self._error("a merge key takes a mapping or a list of mappings")
            frame.merged.append(value)
            frame.key, frame.merging = None, False
        else:
            frame.value[frame.key or ""] = value
            frame.key = None

    def _path(self) -> str:
        """Return the path of the next value."""
        if not self._stack:
            return ""
        frame = self._stack[-1]
        if isinstance(frame.value, list):
            return f"{frame.path}[{len(frame.value)}]"
        return _join(frame.path, frame.key or "")

    def _note(self, key: str) -> None:
        if self._lines is not None:
            self._lines.setdefault(_join(self._stack[-1].path, key), self._line)

    def _note_item(self) -> None:
        if self._lines is not None:
            self._lines.setdefault(self._path(), self._line)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _merge_sources(source: Value) -> Iterator[tuple[str, Value]]:
    for mapping in source if isinstance(source, list) else [source]:
        if isinstance(mapping, dict):
            yield from mapping.items()


def _plain(text: str) -> Value:
    """Convert a plain scalar by the rules of YAML 1.1, without dates, sexagesimals and underscores."""
    if text in _NULL:
        return None
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    if _INT.fullmatch(text):
        return int(text)
    octal, hexadecimal = _OCTAL.fullmatch(text), _HEX.fullmatch(text)
    if octal:
        return int(octal[1], 8)
    if hexadecimal:
        return int(hexadecimal[1], 16)
    return float(text) if _FLOAT.fullmatch(text) else text
