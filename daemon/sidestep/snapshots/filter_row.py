"""One condition of a filter, as it travels in snapshots."""

from __future__ import annotations

import msgspec


class FilterRow(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """One condition of a filter: `part` header|method|path|parameter, `test` exact|regex|present|equal|prefix.

    `policy.matching` translates filters to rows and back.
    """

    part: str
    test: str
    name: str
    value: str
