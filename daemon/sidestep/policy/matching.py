"""Compile a `Filter` to one closure that a relay calls for every request.

Each closure is specialised for the shape of its filter, because it runs on the hot path: the common case, one exact
header, is a single `in` over the field list (0.15 µs for ten fields; a loop takes 0.25 µs). Other shapes test in order
of cost: method, path, exact headers, presence, regexes.

Values are compared as bytes; the text of a filter is encoded as UTF-8. Regexes run on RE2 in UTF-8 mode, which is
linear in the input and, unlike Latin-1 mode, gives `é+` and `[é]` their meaning. On a value that is not valid UTF-8 `.`
stops at the bad byte (`\\C` matches any byte). RE2 keeps its automaton within MAX_REGEX_MEMORY; beyond it RE2 works
without a cache, slower but still linear.

An empty filter is global. A global intercept is relayed unparsed and calls no closure; its closure returns True.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable

import re2

from sidestep.config import filters
from sidestep.model.errors import ConfigurationError
from sidestep.model.filter import Filter, HeaderCondition, HeaderTest, PathCondition, PathTest
from sidestep.policy.route import Fields, Matches

MAX_REGEX_MEMORY = 256 * 1024
"""Bytes of one compiled regex with its caches; 64 intercepts of 32 conditions stay below half a gigabyte."""
MAX_REGEX_LENGTH = 1024
"""UTF-8 bytes of a regex."""
MAX_STEPS = 8 * 1024 * 1024
"""Steps of all regexes of a filter over one request: instructions of the program times bytes that it reads, which is
what RE2 needs where its automaton does not fit. 9 nanoseconds each; usual regexes have less than 128 instructions and
are never short of them."""
MAX_VALUE = 64 * 1024
"""Bytes of a head, of which values and paths are a part."""

COMMON_HEADERS = frozenset(
    {"host", "user-agent", "accept", "cookie", "authorization", "content-type", "accept-language"}
)
"""Headers that most requests carry: their presence does not narrow anything down."""

MAX_PROVED = 4096
"""Filters whose SHA-256 is remembered as compilable."""
_PROVED: OrderedDict[bytes, None] = OrderedDict()

ConditionRow = tuple[str, str, str, str]
"""(part, test, name, value): part header|method|path, test exact|regex|present|equal|prefix."""

Search = Callable[[bytes], object | None]


def compile_filter(wanted: Filter) -> Matches:
    """Return the closure that tells whether a request fulfils every condition. Raises ConfigurationError.

    The closure is pure, never raises for any bytes, and wants fields as (lower-case name, value) tuples.
    """
    filters.check_limits(wanted)
    if wanted.is_global:
        return _everything
    steps = MAX_STEPS // max(1, _regexes(wanted))
    on_headers = _HeaderTests(wanted.headers, steps).closure()
    if not wanted.methods and not wanted.paths:
        return on_headers
    methods = frozenset(_bytes(method, "method") for method in wanted.methods)
    on_path = _path_closure(wanted.paths, steps)
    if not wanted.headers:
        return _method_and_path(methods, on_path)
    return _all_three(methods, on_path, on_headers)


def prove(wanted: Filter) -> None:
    """Check that a filter can be compiled. Raises ConfigurationError when it cannot.

    A filter that could be compiled is not compiled again: the same filter is checked often, and 32 long regexes take
    50 ms.
    """
    key = hashlib.sha256(repr(to_rows(wanted)).encode(errors="surrogatepass")).digest()
    if key not in _PROVED:
        compile_filter(wanted)
        _PROVED[key] = None
        if len(_PROVED) > MAX_PROVED:
            _PROVED.popitem(last=False)


def needle_of(wanted: Filter) -> bytes:
    """Return bytes that every matching HTTP/1 head contains, in lower case; b"" when the filter names no header.

    They are the name of a required header, with the LF before and the colon after it; for a header that most requests
    carry, its required value.
    """
    for condition in wanted.headers:
        if condition.name not in COMMON_HEADERS:
            return f"\n{condition.name}:".encode()
    for condition in wanted.headers:
        if condition.test is HeaderTest.EXACT and condition.value.isascii() and condition.value:
            return condition.value.lower().encode()
    return f"\n{wanted.headers[0].name}:".encode() if wanted.headers else b""


def to_rows(wanted: Filter) -> tuple[ConditionRow, ...]:
    """Return the filter as tuples of text, for control messages and JSON. `from_rows` is the inverse."""
    rows: list[ConditionRow] = [("header", each.test.value, each.name, each.value) for each in wanted.headers]
    rows += [("method", "exact", "", method) for method in wanted.methods]
    rows += [("path", each.test.value, "", each.value) for each in wanted.paths]
    return tuple(rows)


def from_rows(rows: Iterable[ConditionRow]) -> Filter:
    """Return the filter that `to_rows` described. Raises ConfigurationError on an unknown row."""
    headers: list[HeaderCondition] = []
    methods: list[str] = []
    paths: list[PathCondition] = []
    for part, test, name, value in rows:
        filters.check_value(value, subject=part[:16])
        try:
            if part == "header":
                filters.check_name(name)
                headers.append(HeaderCondition(name, HeaderTest(test), value))
            elif part == "path" and not name:
                paths.append(PathCondition(PathTest(test), value))
            elif (part, test, name) == ("method", "exact", ""):
                filters.check_method(value)
                methods.append(value)
            else:
                raise ConfigurationError("unknown kind of filter condition", value=f"{part} {test}"[:64])
        except ValueError:
            raise ConfigurationError("unknown test of a filter condition", value=f"{part} {test}"[:64]) from None
    wanted = Filter(tuple(headers), tuple(methods), tuple(paths))
    filters.check_limits(wanted)
    return wanted


def normal_form(wanted: Filter) -> frozenset[ConditionRow]:
    """Return a value that is equal for two filters with the same conditions in any order."""
    return frozenset(to_rows(wanted))


class _HeaderTests:
    """The header conditions sorted by test, as bytes."""

    def __init__(self, conditions: Iterable[HeaderCondition], steps: int) -> None:
        self.exact: list[tuple[bytes, bytes]] = []
        self.present: list[bytes] = []
        self.regexes: list[tuple[bytes, Search]] = []
        self.rooms: list[int] = []
        """Bytes that each regex may read of one request."""
        for condition in conditions:
            name = _bytes(condition.name, "header name")
            subject = f"header {condition.name}"
            match condition.test:
                case HeaderTest.EXACT:
                    self.exact.append((name, _bytes(condition.value, subject)))
                case HeaderTest.PRESENT:
                    self.present.append(name)
                case HeaderTest.REGEX:
                    search, room = _regex(condition.value, subject, steps)
                    self.regexes.append((name, search))
                    self.rooms.append(room)

    def closure(self) -> Matches:
        """The cheapest closure for these conditions."""
        if any(room < MAX_VALUE for room in self.rooms):
            plain = _mixed_headers(tuple(self.exact), frozenset(self.present), ())
            return _short_of_steps(plain, tuple(zip(self.regexes, self.rooms, strict=True)))
        if not self.present and not self.regexes:
            return _one_exact(self.exact[0]) if len(self.exact) == 1 else _all_exact(tuple(self.exact))
        if not self.exact and not self.present and len(self.regexes) == 1:
            return _one_regex(*self.regexes[0])
        if not self.exact and not self.regexes and len(self.present) == 1:
            return _one_present(self.present[0])
        return _mixed_headers(tuple(self.exact), frozenset(self.present), tuple(self.regexes))


def _everything(_method: bytes, _path: bytes, _fields: Fields) -> bool:
    return True


def _one_exact(wanted: tuple[bytes, bytes]) -> Matches:
    def matches(_method: bytes, _path: bytes, fields: Fields) -> bool:
        return wanted in fields

    return matches


def _all_exact(wanted: tuple[tuple[bytes, bytes], ...]) -> Matches:
    def matches(_method: bytes, _path: bytes, fields: Fields) -> bool:
        for each in wanted:  # noqa: SIM110 - a generator in all() costs twice as much
            if each not in fields:
                return False
        return True

    return matches


def _one_present(wanted: bytes) -> Matches:
    def matches(_method: bytes, _path: bytes, fields: Fields) -> bool:
        for name, _ in fields:  # noqa: SIM110 - a generator in any() costs twice as much
            if name == wanted:
                return True
        return False

    return matches


def _one_regex(wanted: bytes, search: Search) -> Matches:
    def matches(_method: bytes, _path: bytes, fields: Fields) -> bool:
        for name, value in fields:  # noqa: SIM110 - a generator in any() costs twice as much
            if name == wanted and search(value) is not None:
                return True
        return False

    return matches


def _mixed_headers(
    exact: tuple[tuple[bytes, bytes], ...], present: frozenset[bytes], regexes: tuple[tuple[bytes, Search], ...]
) -> Matches:
    def matches(_method: bytes, _path: bytes, fields: Fields) -> bool:
        for pair in exact:
            if pair not in fields:
                return False
        if present and not present <= {name for name, _ in fields}:
            return False
        for wanted, search in regexes:
            for name, value in fields:
                if name == wanted and search(value) is not None:
                    break
            else:
                return False
        return True

    return matches


def _short_of_steps(plain: Matches, regexes: tuple[tuple[tuple[bytes, Search], int], ...]) -> Matches:
    """Each regex reads the values of its header in order, as long as there is room for them."""

    def found(wanted: bytes, search: Search, room: int, fields: Fields) -> bool:
        for name, value in fields:
            if name == wanted:
                room -= len(value)
                if room < 0:
                    return False
                if search(value) is not None:
                    return True
        return False

    def matches(method: bytes, path: bytes, fields: Fields) -> bool:
        return plain(method, path, fields) and all(found(*regex, room, fields) for regex, room in regexes)

    return matches


def _path_closure(conditions: tuple[PathCondition, ...], steps: int) -> Callable[[bytes], bool] | None:
    """A closure that is true when one of the path conditions holds; None when there is none."""
    if not conditions:
        return None
    equal = frozenset(_bytes(each.value, "path") for each in conditions if each.test is PathTest.EQUAL)
    prefixes = tuple(_bytes(each.value, "path") for each in conditions if each.test is PathTest.PREFIX)
    compiled = [_regex(each.value, "path", steps) for each in conditions if each.test is PathTest.REGEX]
    searches = tuple(search if room >= MAX_VALUE else _limited(search, room) for search, room in compiled)
    if not searches:

        def plain(path: bytes) -> bool:
            return path in equal or path.startswith(prefixes)

        return plain

    def searching(path: bytes) -> bool:
        if path in equal or path.startswith(prefixes):
            return True
        for search in searches:  # noqa: SIM110 - a generator in any() costs twice as much
            if search(path) is not None:
                return True
        return False

    return searching


def _method_and_path(methods: frozenset[bytes], on_path: Callable[[bytes], bool] | None) -> Matches:
    if on_path is None:

        def on_method(method: bytes, _path: bytes, _fields: Fields) -> bool:
            return method in methods

        return on_method
    path_holds = on_path
    if not methods:

        def path_only(_method: bytes, path: bytes, _fields: Fields) -> bool:
            return path_holds(path)

        return path_only

    def both(method: bytes, path: bytes, _fields: Fields) -> bool:
        return method in methods and path_holds(path)

    return both


def _all_three(methods: frozenset[bytes], on_path: Callable[[bytes], bool] | None, on_headers: Matches) -> Matches:
    def matches(method: bytes, path: bytes, fields: Fields) -> bool:
        if methods and method not in methods:
            return False
        if on_path is not None and not on_path(path):
            return False
        return on_headers(method, path, fields)

    return matches


def _bytes(text: str, subject: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise ConfigurationError("not valid UTF-8", subject=subject, value=text) from None


def _regexes(wanted: Filter) -> int:
    headers = sum(each.test is HeaderTest.REGEX for each in wanted.headers)
    return headers + sum(each.test is PathTest.REGEX for each in wanted.paths)


def _limited(search: Search, room: int) -> Search:
    return lambda value: search(value) if len(value) <= room else None


def _regex(pattern: str, subject: str, steps: int) -> tuple[Search, int]:
    """The search method of an RE2 regex, and the bytes for which `steps` suffice.

    Raises ConfigurationError with RE2's reason.
    """
    encoded = _bytes(pattern, subject)
    if len(encoded) > MAX_REGEX_LENGTH:
        reason = f"regex of {len(encoded)} bytes, at most {MAX_REGEX_LENGTH} are possible"
        raise ConfigurationError(reason, subject=subject)
    options = re2.Options()
    options.log_errors = False
    options.max_mem = MAX_REGEX_MEMORY
    options.encoding = re2.Options.Encoding.UTF8
    try:
        compiled = re2.compile(encoded, options)
    except re2.error as error:
        told = error.args[0] if error.args else b""
        reason = told.decode(errors="replace") if isinstance(told, bytes) else str(told)
        raise ConfigurationError(f"invalid regex (RE2 syntax): {reason}", subject=subject, value=pattern) from None
    finally:
        # The module's cache would keep the regexes of ended intercepts alive.
        re2.purge()
    return compiled.search, steps // max(1, compiled.programsize)
