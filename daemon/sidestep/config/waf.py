"""Parses `spec.waf` and `spec.egress.waf` of inspection policies."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

import msgspec

from sidestep.config.config_map_key import RulesFromFields, config_map_key
from sidestep.config.durations import parse_duration
from sidestep.config.field_error import FieldError
from sidestep.config.policy_fields import PolicyFields
from sidestep.model.errors import ConfigurationError
from sidestep.model.filter import PathCondition, PathTest
from sidestep.model.waf import MAX_EXEMPTION_BYTES, MAX_EXEMPTIONS, OverLimit, Waf, WafException, WafLimits

MAX_EXCLUDED: Final = 256
MAX_BODY: Final = 1024 * 1024
"""Bytes of the longest body that can be judged."""
MAX_FIELDS: Final = 2048
"""Arguments: at 0.2 ms each they take 0.4 s."""
MIN_TIMEOUT, MAX_TIMEOUT = 0.01, 10.0
"""Seconds until a verdict."""
EXCLUDABLE: Final = ((911_000, 944_999), (950_000, 958_999))
"""Ids of the rules of CRS that look at something. The others compute the score, and decide by it."""


MAX_EXCEPTIONS: Final = 64
MAX_PATH: Final = 512
EXCEPTED_PATH: Final = re.compile(r"/(?:[A-Za-z0-9_~$&()*+,=:@!-][A-Za-z0-9_~$&()*+,=:@!.-]*(?:/|$))*")
"""A path that no app takes for another one: no character is encoded, no segment is empty or begins with a dot."""
PARAMETER: Final = re.compile(r"[A-Za-z0-9_.\-\[\]]{1,128}")


class WafPathFields(PolicyFields, frozen=True):
    """`exceptions[].paths[]`."""

    match: Literal["Equal", "Prefix"]
    value: Annotated[str, msgspec.Meta(max_length=MAX_PATH)]


class WafExceptionFields(PolicyFields, frozen=True):
    """`exceptions[]`."""

    rules: Annotated[list[int], msgspec.Meta(min_length=1, max_length=MAX_EXCEPTIONS)]
    paths: Annotated[list[WafPathFields], msgspec.Meta(max_length=MAX_EXCEPTIONS)] = msgspec.field(default_factory=list)
    parameters: Annotated[list[str], msgspec.Meta(max_length=MAX_EXCEPTIONS)] = msgspec.field(default_factory=list)


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
    exceptions: Annotated[list[WafExceptionFields], msgspec.Meta(max_length=MAX_EXCEPTIONS)] = msgspec.field(
        default_factory=list
    )
    rules_from: RulesFromFields | None = None
    limits: WafLimitFields = msgspec.field(default_factory=WafLimitFields)
    responses: bool = False


def waf(read: WafFields, namespace: str, path: str = "spec.waf") -> Waf:
    """Convert the settings at `path` of a policy of this namespace, "" for one of the cluster. Raises FieldError."""
    _check_rules(read.exclude_rules, f"{path}.excludeRules")
    exceptions = tuple(_exception(each, f"{path}.exceptions[{at}]") for at, each in enumerate(read.exceptions))
    count = sum(len(each.rules) * max(1, len(each.paths)) * max(1, len(each.parameters)) for each in exceptions)
    if count > MAX_EXEMPTIONS:
        reason = f"{count} times a rule, a path and a parameter; {MAX_EXEMPTIONS} are possible in a policy"
        raise FieldError(f"{path}.exceptions", reason)
    size = sum(len(each.rules) * _text(each) for each in exceptions)
    if size > MAX_EXEMPTION_BYTES:
        reason = (
            f"{size} bytes of paths and parameters, each counted once for each rule; {MAX_EXEMPTION_BYTES} are possible"
        )
        raise FieldError(f"{path}.exceptions", reason)
    try:
        seconds = parse_duration(read.limits.verdict_timeout, minimum=MIN_TIMEOUT, maximum=MAX_TIMEOUT)
    except ConfigurationError as error:
        raise FieldError(f"{path}.limits.verdictTimeout", error.reason) from None
    return Waf(
        paranoia=read.paranoia_level,
        threshold=read.anomaly_threshold,
        excluded=tuple(sorted(set(read.exclude_rules))),
        rules_from=None if read.rules_from is None else config_map_key(read.rules_from, path, namespace),
        limits=WafLimits(read.limits.body_bytes, read.limits.fields, seconds, read.limits.over_limit_action),
        responses=read.responses,
        exceptions=exceptions,
    )


def _text(exception: WafException) -> int:
    """Bytes of paths and parameters of an exception, each as often as it stands beside one of the other kind."""
    paths, parameters = exception.paths, exception.parameters
    of_paths = sum(len(each.value) for each in paths) * max(1, len(parameters))
    return of_paths + sum(map(len, parameters)) * max(1, len(paths))


def _check_rules(numbers: list[int], path: str) -> None:
    for index, number in enumerate(numbers):
        if not any(first <= number <= last for first, last in EXCLUDABLE):
            reason = f"{number} is the id of no rule of the Core Rule Set that can be left out"
            raise FieldError(f"{path}[{index}]", reason)


def _exception(read: WafExceptionFields, path: str) -> WafException:
    _check_rules(read.rules, f"{path}.rules")
    if not read.paths and not read.parameters:
        raise FieldError(path, "it has neither paths nor parameters: rules that look at nothing stand in excludeRules")
    for index, each in enumerate(read.paths):
        if not EXCEPTED_PATH.fullmatch(each.value):
            reason = "a path has letters, digits and _~$&()*+,=:@!.-, begins with /, and no segment with a dot"
            raise FieldError(f"{path}.paths[{index}].value", reason)
    for index, name in enumerate(read.parameters):
        if not PARAMETER.fullmatch(name):
            reason = "a parameter has 1 to 128 letters, digits and _.-[]"
            raise FieldError(f"{path}.parameters[{index}]", reason)
    return WafException(
        rules=tuple(sorted(set(read.rules))),
        paths=tuple(dict.fromkeys(PathCondition(PathTest(each.match.lower()), each.value) for each in read.paths)),
        parameters=tuple(dict.fromkeys(read.parameters)),
    )
