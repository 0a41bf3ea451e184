"""Parts that the parsers of all kinds of objects share: typed structs, names, maps of text, label selectors.

Each raises `FieldError` with the path of the field.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from sidestep.config import object_fields as fields
from sidestep.config.field_error import FieldError
from sidestep.model.inventory import DEFAULT_NAMESPACE
from sidestep.model.workload import LabelRequirement, LabelSelector

NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
"""An RFC 1123 subdomain, as most names of objects are."""
LABEL_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
"""An RFC 1123 label, as names of namespaces are."""

_QUANTITY = re.compile(r"([0-9]{1,16}(?:\.[0-9]{0,16})?)(m?)")

_T = TypeVar("_T")


def typed(value: object, wanted: type[_T]) -> _T:
    """Convert plain values to a struct."""
    try:
        return msgspec.convert(value, wanted)
    except msgspec.ValidationError as error:
        # msgspec gives the path only in its text: "Expected `int`, got `str` - at `$.spec.ports[0].port`".
        reason, found, where = str(error).rpartition(" - at `$")
        path = where.rstrip("`").removeprefix(".") if found else ""
        reason = (reason or where)[:200]
        raise FieldError(path, reason if reason.isprintable() else repr(reason)) from None


def names(metadata: fields.MetadataFields) -> tuple[str, str]:
    """Return namespace and name, validated for use in paths, log lines and error texts."""
    namespace = metadata.namespace or DEFAULT_NAMESPACE
    check_name(namespace, "metadata.namespace", LABEL_NAME)
    check_name(metadata.name, "metadata.name", NAME)
    return namespace, metadata.name


def check_name(name: str, path: str, pattern: re.Pattern[str]) -> None:
    """Check that a name is one of Kubernetes: `pattern` is NAME or LABEL_NAME."""
    if not pattern.fullmatch(name):
        raise FieldError(path, f"{name[:64]!r} is not a Kubernetes name (lower-case letters, digits and '-')")


def texts(values: Mapping[str, Any] | None, path: str) -> dict[str, str]:
    """Check that all values are strings. YAML parses `8443` and `true` as other types; the error says to quote them."""
    for key, value in (values or {}).items():
        if not isinstance(value, str):
            reason = f"Expected `str`, got `{type(value).__name__}`: put the value in quotes"
            raise FieldError(f"{path}.{key}", reason)
    return dict(values or {})


def selector(read: fields.SelectorFields | None, path: str) -> LabelSelector:
    """Convert a label selector; one that is absent is empty."""
    if read is None:
        return LabelSelector()
    expressions = tuple(
        LabelRequirement(each.key, each.operator, frozenset(each.values or ())) for each in read.match_expressions or ()
    )
    return LabelSelector(texts(read.match_labels, f"{path}.matchLabels"), expressions)


def quantity(value: object) -> float | None:
    """Return a quantity of Kubernetes as a number, as far as quantities of processors go; None for anything else.

    That is a number of up to 16 digits, of thousandths with `m` (Kubernetes API, "Quantity": other suffixes say nothing
    of processors).
    """
    text = str(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else ""
    found = _QUANTITY.fullmatch(text)
    if found is None:
        return None
    return float(found[1]) / (1000 if found[2] else 1)
