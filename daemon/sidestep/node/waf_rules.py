"""Accepts custom rules of web application firewalls: reads each set, has an inspector try it, keeps the last good one.

A policy whose rules are not in force is carried out with the Core Rule Set alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from sidestep.model.condition import ConditionType
from sidestep.model.inspection import Mode
from sidestep.node.policy_rules import RuleKind, RuleStore
from sidestep.node.proxy_uids import WAF_TESTER
from sidestep.policy.seclang import CustomRules, custom_rules
from sidestep.policy.waf import PolicyWaf
from sidestep.snapshots.waf import Profile

if TYPE_CHECKING:
    from sidestep.model.inspection import InspectionPolicy
    from sidestep.node.conditions import Conditions
    from sidestep.node.inspectors.inspectors import Inspectors
    from sidestep.node.planning.inspection import PlannedPolicy, Policies

WAF: Final = RuleKind(
    "waf",
    lambda policy: policy.waf_rules,
    ConditionType.WAF_RULES_INVALID,
    without="the Core Rule Set applies without them",
)
TRIES: Final = (5.0, 64.0)
"""Sets of rules that are tried in a second, and at once; each takes some 20 ms of processor time."""
_NONE: Final = CustomRules()


class WafRuleStore(RuleStore[CustomRules]):
    """The custom rules of all policies of a node."""

    def __init__(self, inspectors: Inspectors, *, conditions: Conditions, on_change: Callable[[], None]) -> None:
        super().__init__(WAF, conditions=conditions, on_change=on_change, judge=self._tried, pace=TRIES)
        self._inspectors = inspectors
        self._completed: dict[PlannedPolicy, tuple[CustomRules, PlannedPolicy]] = {}
        self._last: tuple[Policies, tuple[CustomRules, ...], Policies] | None = None

    async def _tried(self, text: str) -> CustomRules:
        """Read rules and have an inspector take them. Raises ConfigurationError, SidestepError."""
        found = await asyncio.get_running_loop().run_in_executor(None, custom_rules, text)
        responses = found.render_responses(0)
        profile = Profile(
            1,
            5,
            1,
            custom=found.render(0),
            regexes=found.regexes,
            responses=bool(responses),
            custom_responses=responses,
        )
        await self._inspectors.check(profile, uid=WAF_TESTER)
        return found

    def complete(self, policies: Policies) -> Policies:
        """Add to policies in force what they say of a firewall. The same objects while nothing of that changes."""
        custom = tuple(self.of(each.display) or _NONE for each in policies)
        if self._last is not None and self._last[:2] == (policies, custom):
            return self._last[2]
        before, self._completed = self._completed, {}
        for each, rules in zip(policies, custom, strict=True):
            known = before.get(each)
            if known is None or known[0] != rules:
                known = rules, _completed(each, rules)
            self._completed[each] = known
        made = tuple(known[1] for known in self._completed.values())
        self._last = policies, custom, made
        return made


def _completed(planned: PlannedPolicy, custom: CustomRules) -> PlannedPolicy:
    policy = planned.policy
    waf, egress_waf = _of(policy, custom), None if policy.outward is None else _of(policy.outward, custom)
    if waf is None and egress_waf is None:
        return planned
    return replace(planned, waf=waf, egress_waf=egress_waf, size=planned.size + (0 if waf is None else waf.custom.size))


def _of(policy: InspectionPolicy, custom: CustomRules) -> PolicyWaf | None:
    """What a policy says of a firewall, in one direction."""
    if policy.waf is None:
        return None
    rules = _NONE if policy.waf.rules_from is None else custom
    return PolicyWaf(policy.display, policy.mode is Mode.ENFORCE, policy.closes, policy.waf, rules)
