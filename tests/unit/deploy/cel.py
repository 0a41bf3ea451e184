"""The validation rules (CEL) of resource definitions, asked as an API server asks them.

A schema has rules at any depth (`x-kubernetes-validations`). Each is about the value that stands there, `self`; one
that names `oldSelf` is about a change, and is not asked when a resource is created. A rule that cannot be evaluated,
because it names a field that is not there, does not hold.

The rules use `has`, `==`, `!=`, `!`, `&&`, `||`, `in` and fields only; there CEL and Python differ in nothing but
spelling, and in one thing: in CEL the other side of `&&` and `||` may decide although this one cannot be evaluated. So
a rule may be found wanting here that an API server takes, and not the other way round.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema

RULES = "x-kubernetes-validations"


class Value:
    """An object as CEL sees it."""

    def __init__(self, value):
        self.value = value

    def __getattr__(self, name):
        return Value(self.value[name])  # a KeyError is CEL's "no such key"

    def __eq__(self, other):
        other = other.value if isinstance(other, Value) else other
        return type(self.value) is type(other) and self.value == other

    def __bool__(self):
        assert isinstance(self.value, bool), "CEL's && and || take truth values only"
        return self.value

    def __contains__(self, one):
        assert isinstance(self.value, list), "CEL's `in` is asked of lists only here"
        return one in self.value

    __hash__ = None

    def has(self, path):
        *parents, last = path
        found = self
        for name in parents:
            found = getattr(found, name)
        return last in found.value


def holds(rule: str, new: Any, old: Any = None) -> bool:
    """Whether a rule lets a value pass, or an update of one from `old` to `new`."""
    text = re.sub(
        r"has\((self|oldSelf)\.([\w.]+)\)", lambda m: f"{m[1]}.has({m[2].split('.')!r})", " ".join(rule.split())
    )
    assert not re.search(r"!has\([^)]*\)\s*[!=]=", rule), "Python's `not` binds less tightly than CEL's `!`"
    text = re.sub(r"!(?!=)", " not ", text.replace("&&", " and ").replace("||", " or "))
    assert re.fullmatch(r"[\w\s.()'\[\],=!]+", text), text
    try:
        return bool(eval(text, {"__builtins__": {}}, {"self": Value(new), "oldSelf": Value(old)}))
    except KeyError:
        return False


def _parts(schema: Mapping[str, Any], new: Any, old: Any) -> Iterator[tuple[Mapping[str, Any], Any, Any]]:
    """Each part of a value with its schema and, in objects, what stood there before."""
    yield schema, new, old
    if isinstance(new, list):
        for each in new:
            yield from _parts(schema.get("items", {}), each, None)
    elif isinstance(new, dict):
        more = schema.get("additionalProperties")
        for name, each in new.items():
            part = schema.get("properties", {}).get(name, more)
            if isinstance(part, dict):
                yield from _parts(part, each, old.get(name) if isinstance(old, dict) else None)


def passes(schema: Mapping[str, Any], new: Any, old: Any = None) -> bool:
    """Whether an API server takes a value, or its change: types and bounds, then all rules."""
    if not jsonschema.Draft7Validator(schema).is_valid(new):
        return False
    return all(
        holds(each["rule"], value, before)
        for part, value, before in _parts(schema, new, old)
        for each in part.get(RULES, ())
        if before is not None or "oldSelf" not in each["rule"]
    )


def rules_of(schema: Any) -> Iterator[str]:
    """All rules of a schema."""
    if isinstance(schema, dict):
        yield from (each["rule"] for each in schema.get(RULES, ()))
        for each in schema.values():
            yield from rules_of(each)
    elif isinstance(schema, list):
        for each in schema:
            yield from rules_of(each)
