"""Label selectors as people write them: `app=orders,tier!=cache,env in (dev, test),!canary`.

The syntax of `kubectl -l`
(https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors): all requirements must hold;
`!=` and `notin` hold for objects without the label, too.
"""

from __future__ import annotations

import re

from sidestep.model.errors import ConfigurationError
from sidestep.model.workload import LabelRequirement, LabelSelector, SelectorOperator

_KEY = r"(?:[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
_VALUE = r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?"
_REQUIREMENT = re.compile(
    rf"\s*(?:!\s*(?P<absent>{_KEY})"
    rf"|(?P<key>{_KEY})(?:\s*(?P<sign>==?|!=)\s*(?P<value>{_VALUE})"
    rf"|\s+(?P<set>in|notin)\s*\((?P<values>\s*{_VALUE}\s*(?:,\s*{_VALUE}\s*)*)\))?)\s*(?P<end>,|\Z)"
)
_MAX_LENGTH = 4096
"""Characters of a selector."""


def parse_label_selector(text: str) -> LabelSelector:
    """Parse a selector; it selects all if it is empty. Raises ConfigurationError with the part that is wrong."""
    if len(text) > _MAX_LENGTH:
        raise ConfigurationError(f"has more than {_MAX_LENGTH} characters", subject="label selector")
    found = []
    at, more = 0, bool(text.strip())
    while more:
        match = _REQUIREMENT.match(text, at)
        if match is None:
            raise ConfigurationError(
                "is no label selector: write app=orders, tier!=cache, env in (dev,test), canary or !canary",
                value=text[at : at + 100].strip(),
            )
        found.append(_requirement(match))
        at, more = match.end(), match["end"] == ","
    return LabelSelector(expressions=tuple(found))


def _requirement(match: re.Match[str]) -> LabelRequirement:
    if match["absent"]:
        return LabelRequirement(match["absent"], SelectorOperator.DOES_NOT_EXIST)
    if match["set"]:
        values = frozenset(each.strip() for each in match["values"].split(","))
        operator = SelectorOperator.IN if match["set"] == "in" else SelectorOperator.NOT_IN
        return LabelRequirement(match["key"], operator, values)
    if match["sign"]:
        operator = SelectorOperator.NOT_IN if match["sign"] == "!=" else SelectorOperator.IN
        return LabelRequirement(match["key"], operator, frozenset({match["value"]}))
    return LabelRequirement(match["key"], SelectorOperator.EXISTS)
