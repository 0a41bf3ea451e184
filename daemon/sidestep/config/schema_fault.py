"""Translates decoding errors of msgspec into text for users.

msgspec describes an error in terms of Python types, with the path at the end ("Expected `str` of length >= 1 - at
`$.workload`"). Here the path comes first and the reason follows in words. An unknown text becomes a general reason.
"""

from __future__ import annotations

import re

_MAX = 200
_AT = re.compile(r"(?P<reason>.*) - at `(?:key in )?\$\.?(?P<path>.*)`", re.DOTALL)
_TYPES = {
    "str": "a text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}
_WRONG_TYPE = re.compile(r"Expected `(?P<wanted>[^`]+)`, got `(?P<found>\w+)`")
_BOUND = re.compile(r"Expected `(?P<type>\w+)`(?P<length> of length)? (?P<sign>[<>]=?) (?P<bound>-?[\d.]+)")
_MISSING = re.compile(r"Object missing required field `(?P<field>[^`]*)`")
_VALUE = re.compile(r"Invalid (?:enum )?value (?P<value>.*)", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<field>[^`]*)`")
_SIGNS = {">=": "at least", ">": "more than", "<=": "at most", "<": "less than"}


def fault_of(error: Exception) -> str:
    """Return one line: the path of the field where it is known, and the reason."""
    path, reason = path_and_reason(error)
    line = f"{path}: {reason}" if path else reason
    return line[:_MAX] if line.isprintable() else repr(line[:_MAX])


def path_and_reason(error: Exception) -> tuple[str, str]:
    """Return the path of the field, empty where it is not known, and the reason. Both may hold text of the document."""
    text = str(error)
    at = _AT.fullmatch(text)
    return (at["path"] if at else ""), _reason(at["reason"] if at else text)


def _reason(text: str) -> str:
    if found := _WRONG_TYPE.fullmatch(text):
        wanted = " or ".join(_TYPES.get(each, "another type") for each in found["wanted"].split(" | "))
        return f"must be {wanted}, not {_TYPES.get(found['found'], 'another type')}"
    if found := _BOUND.fullmatch(text):
        return _bound(found)
    if found := _MISSING.fullmatch(text):
        return f"lacks {found['field']}"
    if found := _UNKNOWN.fullmatch(text):
        return f"has no field {found['field']}"
    if found := _VALUE.fullmatch(text):
        return f"{found['value']} is none of the values that are possible"
    return "is not JSON of the expected form"


def _bound(found: re.Match[str]) -> str:
    sign, bound = _SIGNS[found["sign"]], found["bound"]
    if not found["length"]:
        return f"must be {sign} {bound}"
    if (found["sign"], bound) == (">=", "1"):
        return "is empty"
    unit = "characters" if found["type"] == "str" else "entries"
    return f"must have {sign} {bound} {unit}"
