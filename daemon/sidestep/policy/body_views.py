"""The texts that the body of a request stands for: as it is given, and as its app may decode it further.

An attacker chooses how a body is written, and an app may decode it whatever its media type says. So a body that holds
what one of these encodings is made of has a further text, a *view*, which is searched like the body itself:

    NARROW     without NUL bytes: UTF-16 and UTF-32 of ASCII characters (JSON parsers detect them)
    FORM       percent-decoded, + for a blank: forms (WHATWG URL, application/x-www-form-urlencoded)
    ESCAPED    with \\uXXXX, \\xXX and the like resolved: strings in JSON (RFC 8259, 7), JavaScript and YAML
    QUOTED     quoted-printable decoded (RFC 2045, 6.7): parts of a form in Go

A view begins REACH bytes before the first byte that makes it differ, so that it has whatever stands around that byte;
ordinary bodies have none, and cost a search for a few bytes: until one of these is met all views keep the same last
bytes, once. FORM, ESCAPED and QUOTED are views of NARROW. What comes out does not depend on how the body was cut. Views
end after `most` bytes of the body.

`doubts` names what else an app may decode, but is not decoded here: text in UTF-7 or EBCDIC, where a message names such
a character set, and parts of a form in base64 or compressed.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterable
from typing import Final
from urllib.parse import unquote_to_bytes

REACH: Final = 1024
"""Bytes of the body before the first difference that a view has, too: the longest text that a pattern surely finds."""


class View(enum.IntEnum):
    """See the module. SENT is the body as it is given."""

    SENT = 0
    NARROW = 1
    FORM = 2
    ESCAPED = 3
    QUOTED = 4


class Doubt(enum.StrEnum):
    """Why an app may see more in a body than its views have."""

    CHARSET = "charset"
    PARTS = "part-encoding"


WHOLE: Final = 64 * 1024
"""Bytes of a body that `whole_texts` looks at."""
Fields = Iterable[tuple[bytes, bytes]]

_CHARSET: Final = re.compile(rb"charset\*?\s{0,9}=\s{0,9}[\"']?([^\"';,\s]{0,40})[\"';,\s]")
_READABLE: Final = re.compile(
    rb"(?:utf-?8|(?:us-)?ascii|iso[-_]?8859.*|latin-?[0-9]|(?:windows|cp)-?(?:125[0-9]|8[56][0-9]|932|949)"
    rb"|koi8-.|gb.*|big5.*|shift[-_]jis|euc-..|utf-?(?:16|32)-?(?:le|be)?|ucs-?[24]-?(?:le|be)?|binary|)"
).fullmatch
"""In lower case: character sets in which ASCII characters are their own bytes, beside NUL bytes if at all."""
_PART_ENCODING: Final = re.compile(rb"content-(?:transfer-)?encoding\s{0,9}:\s{0,9}([^\s;]{1,40})[\s;]")
_KNOWN_ENCODINGS: Final = frozenset((b"7bit", b"8bit", b"binary", b"identity", b"quoted-printable"))
_FIELD: Final = 128
"""Bytes of what `_CHARSET` and `_PART_ENCODING` find, at most."""

_ESCAPE: Final = re.compile(rb"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|(.))", re.DOTALL)
_ESCAPED_TEXTS: Final = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"f": b"\f"}
_QUOTED: Final = re.compile(rb"=(?:[ \t]*\r?\n|([0-9a-fA-F]{2}))")
_QUOTED_BEGINNING: Final = re.compile(rb"=(?:[ \t]*\r?|[0-9a-fA-F]?)\Z")
_QUOTED_PRINTABLE: Final = b"quoted-printable"
_LINE: Final = 80
"""Bytes of a line in quoted-printable, and a few more."""


def whole_texts(body: bytes, fields: Fields = ()) -> list[bytes] | None:
    """Return a whole body and its views; None if it has doubts, or is longer than WHOLE.

    As `BodyViews`, with the same `fields`, but faster: most bodies have no view.
    """
    if len(body) > WHOLE:
        return None
    types = _types(fields).lower()
    has_view = _has_mark(body) or b"multipart/" in types
    if not (has_view or b"charset" in types or b"encoding" in types):
        return [body]
    views = BodyViews(WHOLE, fields)
    texts: dict[View, bytes] = {}
    for kind, text in (*views.feed(body), *views.finish()):
        texts[kind] = texts.get(kind, b"") + text
    return None if views.doubts else [body, *texts.values()]


class BodyViews:
    """The views of one body, or of one message after the other. `fields` are those of its head, in lower case."""

    __slots__ = ("_is_multipart", "_is_plain", "_left", "_line", "_most", "_narrow", "_tail", "_views", "doubts")

    def __init__(self, most: int, fields: Fields = ()) -> None:
        self._most = most
        types = _types(fields)
        self._is_multipart = b"multipart/" in types.lower()
        self.doubts: set[Doubt] = set()
        self._look(types)
        self._begin()

    def _begin(self) -> None:
        self._left = self._most
        self._line = b""
        self._is_plain = not self._is_multipart
        """No view has begun, and each would keep `_tail`."""
        self._tail = b""
        self._narrow = _View(View.NARROW)
        kinds = (View.FORM, View.ESCAPED, View.QUOTED) if self._is_multipart else (View.FORM, View.ESCAPED)
        self._views = tuple(map(_View, kinds))

    @property
    def held(self) -> int:
        """Bytes of the body that are in memory."""
        if self._is_plain:
            return len(self._tail)
        return self._narrow.held + sum(view.held for view in self._views)

    def feed(self, data: bytes) -> list[tuple[View, bytes]]:
        """What further bytes of the body add to its views."""
        data = data[: self._left]
        if not data:
            return []
        self._left -= len(data)
        if self._is_plain:
            if not _has_mark(data):
                self._tail = (data if len(data) >= REACH else self._tail + data)[-REACH:]
                return []
            self._is_plain = False
            for view in (self._narrow, *self._views):
                view.follow(self._tail)
        made = [(View.NARROW, self._narrow.feed(data))]
        narrow = data.replace(b"\0", b"")
        made += [(view.kind, view.feed(narrow)) for view in self._views]
        if self._is_multipart:
            text = self._line + narrow
            self._line = text[-_FIELD:]
            self._look(text)
        return [each for each in made if each[1]]

    def _look(self, text: bytes) -> None:
        """Look what a head, or the heads of parts, say of encodings."""
        text = text.lower()
        if any(_READABLE(name) is None for name in _CHARSET.findall(text)):
            self.doubts.add(Doubt.CHARSET)
        if not _KNOWN_ENCODINGS.issuperset(_PART_ENCODING.findall(text)):
            self.doubts.add(Doubt.PARTS)

    def finish(self) -> list[tuple[View, bytes]]:
        """What its end adds."""
        made = [] if self._is_plain else [(view.kind, view.finish()) for view in self._views]
        self._begin()
        return [each for each in made if each[1]]


def _has_mark(data: bytes) -> bool:
    """Whether one of the bytes is there with which every view but QUOTED begins."""
    return b"\0" in data or b"%" in data or b"+" in data or b"\\" in data


def _types(fields: Fields) -> bytes:
    """Media types that a head names, each on a line."""
    return b"\n".join([value for name, value in fields if name.replace(b"_", b"-") == b"content-type"]) + b"\n"


class _View:
    """One view of a body."""

    __slots__ = ("_decode", "_find", "_text", "_unfinished", "has_begun", "kind")

    def __init__(self, kind: View) -> None:
        self.kind = kind
        self._find, self._decode, self._unfinished = _CODECS[kind]
        self.has_begun = False
        self._text = b""
        """The last bytes, up to REACH, of what came before the view began; then those that wait for more."""

    @property
    def held(self) -> int:
        """Bytes of the body that are in memory."""
        return len(self._text)

    def follow(self, text: bytes) -> None:
        """Come after these bytes, up to REACH, in which the view does not begin."""
        self._text = text

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes of the body; returns those of the view."""
        data = self._text + data
        if not self.has_begun:
            at = self._find(data)
            if not at:
                self._text = data[-REACH:]
                return b""
            self.has_begun = True
            data = data[max(0, at - REACH) :]
        end = len(data) - self._unfinished(data)
        self._text = data[end:]
        return self._decode(data[:end])

    def finish(self) -> bytes:
        """The body is whole: what waited for more stands for itself."""
        return self._decode(self._text) if self.has_begun else b""


def _find_nul(data: bytes) -> int:
    return data.find(b"\0") + 1


def _narrow(data: bytes) -> bytes:
    return data.replace(b"\0", b"")


def _none_unfinished(_data: bytes) -> int:
    return 0


def _find_form(data: bytes) -> int:
    percent, plus = data.find(b"%") + 1, data.find(b"+") + 1
    return min(percent, plus) or percent or plus


def _form(data: bytes) -> bytes:
    return unquote_to_bytes(data.replace(b"+", b" "))


def _unfinished_form(data: bytes) -> int:
    at = data.rfind(b"%", max(0, len(data) - 2))
    return len(data) - at if at >= 0 else 0


def _find_escape(data: bytes) -> int:
    return data.find(b"\\") + 1


def _unescaped(data: bytes) -> bytes:
    return _ESCAPE.sub(_unescape, data)


def _unescape(match: re.Match[bytes]) -> bytes:
    digits: bytes | None = match[1] or match[2]
    if digits is not None:
        return chr(int(digits, 16)).encode("utf-8", "surrogatepass")
    return _ESCAPED_TEXTS.get(match[3], match[3])


def _unfinished_escape(data: bytes) -> int:
    at = data.rfind(b"\\", max(0, len(data) - 5))
    if at < 0:
        return 0
    run = at + 1 - len(data[: at + 1].rstrip(b"\\"))
    return len(data) - at if run % 2 else 0


def _find_quoted(data: bytes) -> int:
    at = data.lower().find(_QUOTED_PRINTABLE)
    return at + len(_QUOTED_PRINTABLE) if at >= 0 else 0


def _unquoted(data: bytes) -> bytes:
    return _QUOTED.sub(lambda match: bytes((int(match[1], 16),)) if match[1] else b"", data)


def _unfinished_quoted(data: bytes) -> int:
    found = _QUOTED_BEGINNING.search(data, max(0, len(data) - _LINE))
    return len(data) - found.start() if found is not None else 0


_CODECS: Final[dict[View, tuple[Callable[[bytes], int], Callable[[bytes], bytes], Callable[[bytes], int]]]] = {
    View.NARROW: (_find_nul, _narrow, _none_unfinished),
    View.FORM: (_find_form, _form, _unfinished_form),
    View.ESCAPED: (_find_escape, _unescaped, _unfinished_escape),
    View.QUOTED: (_find_quoted, _unquoted, _unfinished_quoted),
}
"""By view: where in a text it begins to differ (the end of that, 0 if nowhere), its decoding, and how many bytes at the
end of a text cannot be decoded before more have come."""
