"""Accepts the Suricata rules of policies: reads and tests each set once, and keeps the last good one of each policy.

Whatever text is new is read (`ids.rules`) and tested by Suricata itself in its lock-up (`ids.suricata.check`). A test
takes some 0.3 s of processor time, so they come no faster than TESTS.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from sidestep.ids import rules, suricata
from sidestep.ids.launcher import find_suricata
from sidestep.model.condition import ConditionType
from sidestep.model.errors import ConfigurationError
from sidestep.node.policy_rules import RuleKind, RuleStore
from sidestep.node.proxy_uids import RULES_TESTER

if TYPE_CHECKING:
    from sidestep.ids.rules import RuleSet
    from sidestep.node.conditions import Conditions

TESTS: Final = (0.5, 64.0)
"""Tests a second, and at once."""
IDS: Final = RuleKind(
    "ids", lambda policy: policy.ids_rules, ConditionType.IDS_RULES_INVALID, without="its IDS does not run"
)


async def tested(text: str) -> RuleSet:
    """Read rules and have Suricata test them. Raises ConfigurationError, KernelError."""
    found = await asyncio.get_running_loop().run_in_executor(None, rules.parse, text)
    if find_suricata() is None:
        raise ConfigurationError("Suricata is not installed on this node")
    checked = await suricata.check(found.render(1), uid=RULES_TESTER)
    if checked.problem:
        raise ConfigurationError(f"{checked.problem} ({len(found.rules)} rules)")
    return replace(found, memory=checked.memory)


class IdsRuleStore(RuleStore["RuleSet"]):
    """The rules of all policies of a node."""

    def __init__(
        self,
        *,
        conditions: Conditions,
        on_change: Callable[[], None] = lambda: None,
        judge: Callable[[str], Awaitable[RuleSet]] = tested,
    ) -> None:
        super().__init__(IDS, conditions=conditions, judge=judge, pace=TESTS, on_change=on_change)
