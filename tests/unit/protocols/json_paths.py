"""What a JSON document consists of, without its values."""

from __future__ import annotations


def paths(value: object, at: str = "") -> dict[str, str]:
    """The members of a record with their JSON types; members of the objects in a list count as members of the list."""
    if isinstance(value, dict):
        found = {at: "object"} if at else {}
        for name, member in value.items():
            found |= paths(member, f"{at}.{name}" if at else name)
        return found
    if isinstance(value, list):
        found = {at: "array"}
        for member in value:
            found |= {path: kind for path, kind in paths(member, at).items() if path != at}
        return found
    kinds: dict[type, str] = {bool: "boolean", int: "number", float: "number", str: "string"}
    return {at: kinds[type(value)]}
