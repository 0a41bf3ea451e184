"""What a request must look like to be diverted or copied: all headers AND one of the methods AND one of the paths."""

from __future__ import annotations

import enum

import msgspec


class HeaderTest(enum.StrEnum):
    """How the value of a header field is compared."""

    EXACT = "exact"
    REGEX = "regex"
    PRESENT = "present"


class PathTest(enum.StrEnum):
    """How the path (without query, as sent) is compared."""

    EQUAL = "equal"
    PREFIX = "prefix"
    REGEX = "regex"


class HeaderCondition(msgspec.Struct, frozen=True):
    """One header condition. `name` is lower case; `host` also means `:authority`. `value` is unused for PRESENT."""

    name: str
    test: HeaderTest
    value: str = ""


class PathCondition(msgspec.Struct, frozen=True):
    """One path condition."""

    test: PathTest
    value: str


class Filter(msgspec.Struct, frozen=True):
    """All conditions of one intercept or wiretap. An empty filter is *global*: it takes the whole port, unparsed."""

    headers: tuple[HeaderCondition, ...] = ()
    methods: tuple[str, ...] = ()
    paths: tuple[PathCondition, ...] = ()

    @property
    def is_global(self) -> bool:
        """Whether nothing is filtered."""
        return not (self.headers or self.methods or self.paths)

    @property
    def conditions(self) -> int:
        """The number of conditions, for the limit on one filter (`config.filters`)."""
        return len(self.headers) + len(self.methods) + len(self.paths)
