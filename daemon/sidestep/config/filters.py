"""Filter options of the command line, parsed into a `Filter`, and formatted as text for lists and errors.

`--http-header NAME=VALUE` compares exactly, `NAME=~REGEX` searches, `NAME` requires presence. The first `=` separates
name and value, so a value may contain commas, colons and further `=`. Methods are case-sensitive tokens (RFC 9110,
9.1). Paths are compared without query, as sent on the wire.

Filters that could never match are rejected: names that are not RFC 9110 tokens, values with CR, LF, NUL or surrounding
white space (which HTTP parsers strip, RFC 9110, 5.5), paths with a query, `get` for `GET`. Regexes are compiled by
`policy.matching.compile_filter`, which owns the regex engine.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from sidestep.model.errors import ConfigurationError
from sidestep.model.filter import Filter, HeaderCondition, HeaderTest, PathCondition, PathTest

MAX_CONDITIONS = 32
"""Conditions of one intercept."""
MAX_VALUE = 4096
"""UTF-8 bytes of one value, path or regex. Servers limit heads to 8 to 16 KiB, so a longer value could hardly match."""

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,256}")
"""A token (RFC 9110, 5.6.2) of at most 256 characters."""
_WELL_KNOWN_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})
_UNSENDABLE = re.compile(r"[\x00\r\n]")
_NOT_IN_A_PATH = re.compile(r"[\x00-\x20\x7f]")


def parse_filter(
    *,
    headers: Iterable[str] = (),
    methods: Iterable[str] = (),
    path_equal: Iterable[str] = (),
    path_prefix: Iterable[str] = (),
    path_regex: Iterable[str] = (),
) -> Filter:
    """Build the filter that these option values describe; drops repeated conditions.

    Raises ConfigurationError with the option and the value. Does not compile regexes.
    """
    paths = [parse_path(PathTest.EQUAL, text) for text in path_equal]
    paths += [parse_path(PathTest.PREFIX, text) for text in path_prefix]
    paths += [parse_path(PathTest.REGEX, text) for text in path_regex]
    parsed = Filter(
        headers=tuple(dict.fromkeys(parse_header(text) for text in headers)),
        methods=tuple(dict.fromkeys(parse_method(text) for text in methods)),
        paths=tuple(dict.fromkeys(paths)),
    )
    check_limits(parsed)
    return parsed


def parse_header(text: str) -> HeaderCondition:
    """Parse one `--http-header` value. Raises ConfigurationError."""
    option = "--http-header"
    name, equals, value = text.partition("=")
    if not _TOKEN.fullmatch(name):
        hint = "; for :authority write host" if name.lower() == ":authority" else ""
        reason = f"{_shown(name)} is not a header name: write NAME=VALUE, NAME=~REGEX or NAME{hint}"
        raise ConfigurationError(reason, subject=option, value=_cut(text))
    name = name.lower()
    if not equals:
        return HeaderCondition(name, HeaderTest.PRESENT)
    if value.startswith("~"):
        return HeaderCondition(name, HeaderTest.REGEX, _sized(option, value[1:]))
    check_exact_value(value, subject=option)
    return HeaderCondition(name, HeaderTest.EXACT, value)


def parse_method(text: str) -> str:
    """Parse one `--http-method` value. Raises ConfigurationError."""
    option = "--http-method"
    if not _TOKEN.fullmatch(text):
        reason = "not a method: write one token like GET, and repeat the option for more"
        raise ConfigurationError(reason, subject=option, value=_cut(text))
    if text not in _WELL_KNOWN_METHODS and text.upper() in _WELL_KNOWN_METHODS:
        raise ConfigurationError(f"methods are case-sensitive: write {text.upper()}", subject=option, value=text)
    return text


def parse_path(test: PathTest, text: str) -> PathCondition:
    """Parse one `--http-path-equal|-prefix|-regex` value. Raises ConfigurationError."""
    option = f"--http-path-{test}"
    _sized(option, text)
    if test is PathTest.REGEX:
        return PathCondition(test, text)
    if not text.startswith("/") and not (text == "*" and test is PathTest.EQUAL):
        raise ConfigurationError("a path begins with /", subject=option, value=_cut(text))
    if "?" in text or "#" in text:
        reason = "paths are compared without query and fragment: leave out what follows the path"
        raise ConfigurationError(reason, subject=option, value=_cut(text))
    if _NOT_IN_A_PATH.search(text):
        reason = "a path is compared as sent: write white space and control characters as %XX"
        raise ConfigurationError(reason, subject=option, value=_cut(text))
    return PathCondition(test, text)


def check_limits(parsed: Filter) -> None:
    """Raise ConfigurationError when a filter has more than MAX_CONDITIONS conditions."""
    if parsed.conditions > MAX_CONDITIONS:
        raise ConfigurationError(f"{parsed.conditions} filter conditions, at most {MAX_CONDITIONS} are possible")


def check_name(name: str) -> None:
    """Raise ConfigurationError when a header name is not a lower-case RFC 9110 token."""
    if not _TOKEN.fullmatch(name) or name != name.lower():
        raise ConfigurationError("not a lower-case header name (RFC 9110 token)", subject="header", value=_cut(name))


def check_method(method: str) -> None:
    """Raise ConfigurationError when a method is not an RFC 9110 token."""
    if not _TOKEN.fullmatch(method):
        raise ConfigurationError("not a method (RFC 9110 token)", subject="method", value=_cut(method))


def check_value(value: str, *, subject: str) -> None:
    """Raise ConfigurationError when a value, path or regex is too long or not valid UTF-8."""
    _sized(subject, value)


def check_exact_value(value: str, *, subject: str) -> None:
    """Raise ConfigurationError when no field can have this value: CR, LF, NUL, white space around it, too long."""
    _sized(subject, value)
    if _UNSENDABLE.search(value):
        raise ConfigurationError("a field value cannot hold CR, LF or NUL", subject=subject, value=_cut(value))
    if value != value.strip(" \t"):
        reason = "a field value has no white space around it, this would never match"
        raise ConfigurationError(reason, subject=subject, value=_cut(value))


def describe_filter(wanted: Filter) -> str:
    """Format a filter as one line: `header x-user=alice, method GET, path prefix /api`; `everything` when it is
    global.
    """
    parts = [f"header {_header_text(condition)}" for condition in wanted.headers]
    if wanted.methods:
        parts.append("method " + " or ".join(wanted.methods))
    if wanted.paths:
        parts.append("path " + " or ".join(f"{each.test} {_cut(each.value)}" for each in wanted.paths))
    return ", ".join(parts) or "everything"


def _header_text(condition: HeaderCondition) -> str:
    match condition.test:
        case HeaderTest.EXACT:
            return f"{condition.name}={_cut(condition.value)}"
        case HeaderTest.REGEX:
            return f"{condition.name}=~{_cut(condition.value)}"
        case HeaderTest.PRESENT:
            return condition.name


def _sized(option: str, value: str) -> str:
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise ConfigurationError("not valid UTF-8", subject=option, value=_cut(value)) from None
    if size > MAX_VALUE:
        raise ConfigurationError(f"{size} bytes long, at most {MAX_VALUE} are possible", subject=option)
    return value


def _shown(name: str) -> str:
    return repr(_cut(name)) if name else "an empty text"


def _cut(text: str, limit: int = 100) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
