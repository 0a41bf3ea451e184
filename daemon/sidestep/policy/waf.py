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

So a namespace's policy cannot weaken what one of the cluster says, whichever is written first. Settings that are joined
can be joined again: pod proxies do so with those of the policies that apply to a request that the pod sends.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate

import msgspec

from sidestep.model.filter import PathTest
from sidestep.model.waf import MAX_EXEMPTION_BYTES, MAX_EXEMPTIONS, OverLimit, Waf
from sidestep.policy.seclang import CustomRules
from sidestep.snapshots.waf import MAX_CUSTOM, MAX_OUTWARD, MAX_REGEXES, Exemption, PortWaf, Profile


class PolicyWaf(msgspec.Struct, frozen=True):
    """What one policy says: whether it blocks, whether it closes without a verdict, its settings and custom rules."""

    name: str
    enforces: bool
    closes: bool
    waf: Waf
    custom: CustomRules


def join(policies: Sequence[PolicyWaf]) -> PortWaf:
    """Join the policies of a port, of which there is at least one."""
    return strictest([alone(each, place) for place, each in enumerate(policies)])


def alone(policy: PolicyWaf, place: int) -> PortWaf:
    """What a policy says alone; its custom rules have the ids of this place (`seclang.rule_id`)."""
    waf, custom, responses = policy.waf, policy.custom.render(place), policy.custom.render_responses(place)
    if len(custom) + len(responses) > MAX_CUSTOM or len(policy.custom.regexes) > MAX_REGEXES:
        custom = responses = ""
    return PortWaf(
        names=(policy.name,),
        profile=Profile(
            paranoia=waf.paranoia,
            threshold=waf.threshold,
            arguments=waf.limits.fields,
            excluded=waf.excluded,
            custom=custom,
            regexes=policy.custom.regexes if custom or responses else (),
            responses=bool(responses) or waf.responses,
            exemptions=_bounded(each for each in exemptions_of(waf) if each.rule not in waf.excluded),
            custom_responses=responses,
        ),
        body_bytes=waf.limits.body_bytes,
        seconds=waf.limits.verdict_seconds,
        blocks_over_limit=waf.limits.over_limit is OverLimit.BLOCK,
        enforces=policy.enforces,
        closes=policy.closes,
        blocking=policy.name,
        closing=policy.name,
    )


def strictest(settings: Sequence[PortWaf]) -> PortWaf:
    """Join settings, of which there are some. Custom rules of later ones are left out for want of room."""
    profiles = [each.profile for each in settings]
    blocking = [each for each in settings if each.blocks_over_limit]
    closing = [each.seconds for each in settings if each.closes]
    excluded = set(profiles[0].excluded).intersection(*(each.excluded for each in profiles))
    custom, responses, regexes = _custom(profiles)
    return PortWaf(
        names=tuple(name for each in settings for name in each.names),
        profile=Profile(
            paranoia=max(each.paranoia for each in profiles),
            threshold=min(each.threshold for each in profiles),
            arguments=(
                min(each.profile.arguments for each in blocking)
                if blocking
                else max(each.arguments for each in profiles)
            ),
            excluded=tuple(sorted(excluded)),
            custom=custom,
            regexes=regexes,
            responses=any(each.responses for each in profiles),
            exemptions=_exemptions(profiles, excluded),
            custom_responses=responses,
        ),
        body_bytes=min(each.body_bytes for each in blocking) if blocking else max(each.body_bytes for each in settings),
        seconds=min(closing) if closing else max(each.seconds for each in settings),
        blocks_over_limit=bool(blocking),
        enforces=any(each.enforces for each in settings),
        closes=any(each.closes for each in settings),
        blocking=next((each.blocking for each in settings if each.enforces), settings[0].blocking),
        closing=next((each.closing for each in settings if each.closes), settings[0].closing),
    )


def most_profiles(ports: Iterable[PortWaf | None], outward: Iterable[PortWaf | None]) -> int:
    """How many profiles the inspector of a pod may be told of: those of its ports, and those of policies about what it
    sends with what they can be joined to."""
    alone = len({each.profile for each in outward if each is not None})
    joined = max(alone + (alone > 1), min(MAX_OUTWARD, (1 << alone) - 1))
    return len({each.profile for each in ports if each is not None}) + joined


def exemptions_of(settings: Waf) -> tuple[Exemption, ...]:
    """What a policy excepts: one for each rule, path and argument."""
    return tuple(
        Exemption(rule, path, is_prefix, parameter)
        for each in settings.exceptions
        for rule in each.rules
        for path, is_prefix in [(at.value, at.test is PathTest.PREFIX) for at in each.paths] or [("", False)]
        for parameter in each.parameters or ("",)
    )


def _exemptions(profiles: Sequence[Profile], excluded: set[int]) -> tuple[Exemption, ...]:
    """What all of them except, beside the rules that all of them exclude."""
    said = [(set(each.excluded), each.exemptions) for each in profiles]
    wanted = {each for _, exemptions in said for each in exemptions if each.rule not in excluded}
    return _bounded(
        each
        for each in wanted
        if all(each.rule in rules or any(one.includes(each) for one in exemptions) for rules, exemptions in said)
    )


def _bounded(exemptions: Iterable[Exemption]) -> tuple[Exemption, ...]:
    """Each once, in order; those beyond the bound are left out."""
    common = sorted({*exemptions})
    sizes = accumulate(len(each.path) + len(each.parameter) for each in common)
    return tuple(each for each, size in zip(common, sizes, strict=True) if size <= MAX_EXEMPTION_BYTES)[:MAX_EXEMPTIONS]


def _custom(profiles: Sequence[Profile]) -> tuple[str, str, tuple[str, ...]]:
    """The custom rules of all, those about responses, and the regexes of both."""
    text, responses, regexes = "", "", dict[str, None]()
    for each in profiles:
        size = len(text) + len(responses) + len(each.custom) + len(each.custom_responses)
        more = regexes | dict.fromkeys(each.regexes)
        if size <= MAX_CUSTOM and len(more) <= MAX_REGEXES:
            text, responses, regexes = text + each.custom, responses + each.custom_responses, more
    return text, responses, tuple(regexes)
