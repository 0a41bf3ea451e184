"""The forms of a request's path: what apps may take it for.

Apps differ in what they do with a path before they compare it, and in which order: decode it, remove its dot segments
(RFC 3986, 5.2.4), merge its slashes, take backslashes for slashes, take `//name` at its beginning for an authority,
remove the parameters of its segments. A path for which that makes no difference has one form. Otherwise its forms are
the results of

    beginning      as sent; behind a scheme and an authority (Go); behind an authority (the URL standard of browsers and
                   Node, Python's `urlsplit`); without parameters (servlet containers); without a fragment (nginx)
    decoding       before all else (nginx, Go, Python's `http.server`), after all else, or never; where it comes late,
                   `%2e` may be a dot already (the URL standard)
    backslashes    themselves, or slashes (the URL standard, Windows)
    dot segments   as sent; removed; removed after slashes were merged (nginx, Go, `posixpath.normpath`)

Letters keep their case, and nothing is decoded twice. The work is bounded by MAX_WORK; a path for which that is not
enough has its most usual forms only, and is told.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import unquote_to_bytes

MAX_WORK: Final = 32 * 1024
"""Bytes of paths that may be derived from one: enough for each of 200 bytes, and less than a millisecond."""

_ONE_FORM: Final = re.compile(rb"[^%/\\;#]*+(?:/(?![./])[^%/\\;#]*+)*+").fullmatch
_SLASHES: Final = re.compile(rb"/{2,}")
_ENCODED_DOT: Final = re.compile(rb"%2e", re.IGNORECASE)
_AUTHORITIES: Final = (
    re.compile(rb"[/\\]{2,}+[^/\\]*+"),
    re.compile(rb"//[^/]*+"),
    re.compile(rb"[A-Za-z][A-Za-z0-9+.\-]*+://[^/]*+"),
)
"""Beginnings that are an authority: by the URL standard, by RFC 3986, with a scheme."""
_PARAMETERS: Final = re.compile(rb";[^/\\]*+")


def paths_of(path: bytes) -> tuple[tuple[bytes, ...], bool]:
    """(the forms of a path that differ, whether those are all). The first one is the path as sent."""
    if _ONE_FORM(path) is not None:
        return (path,), True
    decoded = _decoded(path)
    forms = {path: None, decoded: None, normalised(decoded): None}
    if not path.startswith(b"/") and b"://" not in path:
        return tuple(forms), True
    forms[without_dot_segments(_merged(decoded))] = None
    left = MAX_WORK
    for text, is_decoded in _texts(path):
        resolves = b"/." in text or b"//" in text
        if resolves or text not in forms:
            left -= len(text) * (4 if resolves else 1)
            if left < 0:
                return tuple(forms), False
        for form in _resolved(text) if resolves else (text,):
            forms[form] = None
            if not is_decoded:
                forms[_decoded(form)] = None
    return tuple(forms), True


def normalised(path: bytes) -> bytes:
    """A path without dot segments and empty segments, with / for \\. One that does not begin with / stays as it is."""
    return without_dot_segments(_merged(path.replace(b"\\", b"/"))) if path.startswith(b"/") else path


def without_dot_segments(path: bytes) -> bytes:
    """Remove the dot segments of a path that begins with / (RFC 3986, 5.2.4); empty segments are segments."""
    if b"/." not in path or not path.startswith(b"/"):
        return path
    kept: list[bytes] = []
    segments = path.split(b"/")[1:]
    for segment in segments:
        if segment == b"..":
            del kept[-1:]
        elif segment != b".":
            kept.append(segment)
    if segments[-1] in {b".", b".."}:
        kept.append(b"")
    return b"/" + b"/".join(kept)


def _texts(path: bytes) -> Iterator[tuple[bytes, bool]]:
    """Paths whose slashes and dot segments are still to be resolved, and whether they are decoded."""
    seen = set()
    for start in _beginnings(path):
        for text, is_decoded in ((_decoded(start), True), (start, False), (_ENCODED_DOT.sub(b".", start), False)):
            for each in (text, text.replace(b"\\", b"/")):
                if (each, is_decoded) not in seen:
                    seen.add((each, is_decoded))
                    yield each, is_decoded


def _beginnings(path: bytes) -> dict[bytes, None]:
    starts = {path: None}
    if b"#" in path:
        starts[path.partition(b"#")[0]] = None
    for start in [*starts]:
        for authority in _AUTHORITIES:
            if match := authority.match(start):
                rest = start[match.end() :]
                starts[rest if rest.startswith((b"/", b"\\")) else b"/"] = None
    if b";" in path:
        for start in [*starts]:
            starts[_PARAMETERS.sub(b"", start) or b"/"] = None
    return starts


def _resolved(text: bytes) -> Iterator[bytes]:
    """The forms of a path as to its slashes and dot segments."""
    yield text
    yield b"/" + text.lstrip(b"/")
    if text.startswith(b"/"):
        yield without_dot_segments(text)
        yield without_dot_segments(_merged(text))


def _merged(path: bytes) -> bytes:
    return _SLASHES.sub(b"/", path)


def _decoded(path: bytes) -> bytes:
    return unquote_to_bytes(path) if b"%" in path else path
