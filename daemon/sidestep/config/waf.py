"""Parses `spec.waf` of inspection policies."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from sidestep.config.config_map_key import RulesFromFields, config_map_key
from sidestep.config.durations import parse_duration
from sidestep.config.field_error import FieldError
from sidestep.config.policy_fields import PolicyFields
from sidestep.model.errors import ConfigurationError
from sidestep.model.waf import OverLimit, Waf, WafLimits

MAX_EXCLUDED: Final = 256
MAX_BODY: Final = 1024 * 1024
"""Bytes of the longest body that can be judged."""
MAX_FIELDS: Final = 2048
"""Arguments: at 0.2 ms each they take 0.4 s."""
MIN_TIMEOUT, MAX_TIMEOUT = 0.01, 10.0
"""Seconds until a verdict."""
EXCLUDABLE: Final = ((911_000, 944_999), (950_000, 958_999))
"""Ids of the rules of CRS that look at something. The others compute the score, and decide by it."""


class WafLimitFields(PolicyFields, frozen=True):
    """`limits`."""

    body_bytes: Annotated[int, msgspec.Meta(ge=0, le=MAX_BODY)] = WafLimits().body_bytes
    fields: Annotated[int, msgspec.Meta(ge=1, le=MAX_FIELDS)] = WafLimits().fields
    verdict_timeout: str = "250ms"
    over_limit_action: OverLimit = OverLimit.BLOCK


class WafFields(PolicyFields, frozen=True):
    """`waf`."""

    rule_set: Literal["CRS"] = "CRS"
    paranoia_level: Annotated[int, msgspec.Meta(ge=1, le=4)] = 1
    anomaly_threshold: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 5
    exclude_rules: Annotated[list[int], msgspec.Meta(max_length=MAX_EXCLUDED)] = msgspec.field(default_factory=list)
    rules_from: RulesFromFields | None = None
    limits: WafLimitFields = msgspec.field(default_factory=WafLimitFields)
    responses: bool = False


def waf(read: WafFields, namespace: str) -> Waf:
    """Convert the settings of a policy of this namespace, "" for one of the cluster. Raises FieldError."""
    for index, number in enumerate(read.exclude_rules):
        if not any(first <= number <= last for first, last in EXCLUDABLE):
            reason = f"{number} is the id of no rule of the Core Rule Set that can be left out"
            raise FieldError(f"spec.waf.excludeRules[{index}]", reason)
    path = "spec.waf.limits.verdictTimeout"
    try:
        seconds = parse_duration(read.limits.verdict_timeout, minimum=MIN_TIMEOUT, maximum=MAX_TIMEOUT)
    except ConfigurationError as error:
        raise FieldError(path, error.reason) from None
    return Waf(
        paranoia=read.paranoia_level,
        threshold=read.anomaly_threshold,
        excluded=tuple(sorted(set(read.exclude_rules))),
        rules_from=None if read.rules_from is None else config_map_key(read.rules_from, "spec.waf", namespace),
        limits=WafLimits(read.limits.body_bytes, read.limits.fields, seconds, read.limits.over_limit_action),
        responses=read.responses,
    )
