"""Joins what all policies of a port say of a web application firewall: the strictest of each setting. Pure.

    paranoia level      the highest
    anomaly threshold   the lowest
    excluded rules      those that every policy excludes: what one leaves in, no other takes out
    exceptions          likewise: of each rule, path and argument those that every policy excepts
    custom rules        all of them; they can only add (`policy.seclang`)
    limits              where one blocks what exceeds its limit: the lowest of those that do. Otherwise what exceeds a
                        limit passes unjudged, and the highest counts
    responses           are judged where one policy wants it, or has custom rules about them
    verdict timeout     where a policy closes: the lowest of those that do; otherwise the highest

So a namespace's policy cannot weaken what one of the cluster says, whichever is written first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from sidestep.model.filter import PathTest
from sidestep.model.waf import MAX_EXEMPTION_BYTES, MAX_EXEMPTIONS, OverLimit, Waf
from sidestep.policy.seclang import CustomRules
from sidestep.snapshots.waf import MAX_CUSTOM, MAX_REGEXES, Exemption, PortWaf, Profile


@dataclass(frozen=True, slots=True)
class PolicyWaf:
    """What one policy says: whether it blocks, whether it closes without a verdict, its settings and custom rules."""

    name: str
    enforces: bool
    closes: bool
    waf: Waf
    custom: CustomRules


def join(policies: Sequence[PolicyWaf]) -> PortWaf:
    """Join the policies of a port, of which there is at least one."""
    settings = [each.waf for each in policies]
    blocking = [each.limits for each in settings if each.limits.over_limit is OverLimit.BLOCK]
    passing = [each.limits for each in settings]
    closing = [each.waf.limits.verdict_seconds for each in policies if each.closes]
    excluded = set(settings[0].excluded).intersection(*(each.excluded for each in settings))
    custom, responses, regexes = _custom(policies)
    return PortWaf(
        names=tuple(each.name for each in policies),
        profile=Profile(
            paranoia=max(each.paranoia for each in settings),
            threshold=min(each.threshold for each in settings),
            arguments=min(each.fields for each in blocking) if blocking else max(each.fields for each in passing),
            excluded=tuple(sorted(excluded)),
            custom=custom,
            regexes=regexes,
            responses=bool(responses) or any(each.responses for each in settings),
            exemptions=_exemptions(settings, excluded),
            custom_responses=responses,
        ),
        body_bytes=min(each.body_bytes for each in blocking) if blocking else max(each.body_bytes for each in passing),
        seconds=min(closing) if closing else max(each.limits.verdict_seconds for each in settings),
        blocks_over_limit=bool(blocking),
        enforces=any(each.enforces for each in policies),
        closes=any(each.closes for each in policies),
        blocking=next((each.name for each in policies if each.enforces), policies[0].name),
        closing=next((each.name for each in policies if each.closes), policies[0].name),
    )


def exemptions_of(settings: Waf) -> tuple[Exemption, ...]:
    """What a policy excepts: one for each rule, path and argument."""
    return tuple(
        Exemption(rule, path, is_prefix, parameter)
        for each in settings.exceptions
        for rule in each.rules
        for path, is_prefix in [(at.value, at.test is PathTest.PREFIX) for at in each.paths] or [("", False)]
        for parameter in each.parameters or ("",)
    )


def _exemptions(settings: Sequence[Waf], excluded: set[int]) -> tuple[Exemption, ...]:
    """What all policies except, beside the rules that all of them exclude; those beyond the bound are left out."""
    said = [(set(each.excluded), exemptions_of(each)) for each in settings]
    wanted = sorted({each for _, exemptions in said for each in exemptions if each.rule not in excluded})
    common = [
        each
        for each in wanted
        if all(each.rule in rules or any(one.includes(each) for one in exemptions) for rules, exemptions in said)
    ]
    sizes = accumulate(len(each.path) + len(each.parameter) for each in common)
    return tuple(each for each, size in zip(common, sizes, strict=True) if size <= MAX_EXEMPTION_BYTES)[:MAX_EXEMPTIONS]


def _custom(policies: Sequence[PolicyWaf]) -> tuple[str, str, tuple[str, ...]]:
    """The custom rules of all policies, those about responses, and the regexes of both.

    Those of later policies are left out for want of room.
    """
    text, responses, regexes = "", "", dict[str, None]()
    for place, each in enumerate(policies):
        rendered, of_responses = each.custom.render(place), each.custom.render_responses(place)
        size = len(text) + len(responses) + len(rendered) + len(of_responses)
        more = regexes | dict.fromkeys(each.custom.regexes)
        if size <= MAX_CUSTOM and len(more) <= MAX_REGEXES:
            text, responses, regexes = text + rendered, responses + of_responses, more
    return text, responses, tuple(regexes)
