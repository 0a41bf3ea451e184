"""Keeps the rules that policies have in ConfigMaps, for an engine beside the proxies: the last good ones of each.

The inventory has the ConfigMaps that policies name. `offer` takes both; whatever text is new is judged, one after the
other, in the order in which the texts came. Of a ConfigMap that keeps changing, the newest text is judged when it is
its turn. A judgement depends on the text alone and is remembered by it.

States of the rules of a policy

    being judged    their text is new; the set before it, if there is one, stays in force
    accepted        they are in force
    refused         a condition says why: no such ConfigMap or key, or what is wrong in which line. The last good set,
                    if there is one, stays in force
    gone            the policy has none any more, or is not in force

A daemon that starts knows no last good set.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import msgspec

from sidestep.aio.turns import Turns
from sidestep.model.condition import Condition, ConditionType
from sidestep.model.errors import ConfigurationError, SidestepError
from sidestep.node.conditions import Conditions, Source
from sidestep.observability.logs import get_logger

if TYPE_CHECKING:
    from sidestep.model.config_map_key import ConfigMapKey
    from sidestep.model.inspection import InspectionPolicy
    from sidestep.model.inventory import ConfigMap

MAX_REMEMBERED: Final = 256
"""Judgements that are remembered."""

R = TypeVar("R")
"""What a judgement makes of a text."""


class RuleKind(msgspec.Struct, frozen=True):
    """The rules of one engine: how it is called, where a policy has them, and what is told of those that are refused.

    `without` says what becomes of the engine without any.
    """

    name: str
    place: Callable[[InspectionPolicy], ConfigMapKey | None]
    condition: ConditionType
    without: str


@dataclass(slots=True)
class _Entry(Generic[R]):
    """The rules of one policy. `text` is None when there is none."""

    policy: InspectionPolicy
    text: str | None
    problem: str = ""
    in_force: R | None = None
    due: int = 0
    """The number of its turn to be judged; 0 when it is not due."""

    @property
    def digest(self) -> bytes:
        return hashlib.sha256((self.text or "").encode("utf-8", "surrogatepass")).digest()


class RuleStore(Generic[R]):
    """See the module. `judge` raises SidestepError for what is refused; `pace` is how often it is called, a second and
    at once. `on_change` is called when other sets are in force than before."""

    def __init__(
        self,
        kind: RuleKind,
        *,
        conditions: Conditions,
        judge: Callable[[str], Awaitable[R]],
        pace: tuple[float, float],
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._kind = kind
        self._conditions = conditions
        self._on_change = on_change
        self._judge = judge
        self._entries: dict[str, _Entry[R]] = {}
        self._judgements: dict[bytes, R | str] = {}
        self._offered = asyncio.Event()
        self._numbers = itertools.count(1)
        self._turns = Turns(rate=pace[0], burst=pace[1])
        self._log = get_logger(kind.name)

    def of(self, policy: str) -> R | None:
        """The set in force of a policy, by its name (`InspectionPolicy.display`)."""
        entry = self._entries.get(policy)
        return None if entry is None else entry.in_force

    def offer(self, policies: Iterable[InspectionPolicy], config_maps: Mapping[tuple[str, str], ConfigMap]) -> None:
        """Take the policies in force, and the ConfigMaps that there are."""
        before, self._entries = self._entries, {}
        for policy in policies:
            place = self._kind.place(policy)
            if place is None:
                continue
            text, problem = _text_of(place, config_maps)
            entry = before.get(policy.display)
            is_other = entry is None or (entry.text, self._kind.place(entry.policy)) != (text, place)
            if entry is None or is_other or (text is None and entry.problem != problem):
                kept, turn = (entry.in_force, entry.due) if entry is not None else (None, 0)
                due = (turn or next(self._numbers)) if text is not None else 0
                entry = _Entry(policy, text, problem, kept, due)
            self._entries[policy.display] = entry
        for name in before.keys() - self._entries.keys():
            self._conditions.state(Source(self._kind.name, detail=name), ())
        self._settle()

    async def run(self) -> None:
        """Judge what is offered, until cancelled."""
        while True:
            await self._offered.wait()
            self._offered.clear()
            while self._due():
                await self._turns.take()
                due = min(self._due(), key=lambda each: each.due, default=None)
                if due is None:
                    break
                try:
                    judgement: R | str = await self._judge(due.text or "")
                except ConfigurationError as error:
                    judgement = error.reason
                except SidestepError as error:
                    judgement = str(error)
                problem = judgement if isinstance(judgement, str) else ""
                self._log.info("rules judged", policy=due.policy.display, problem=problem)
                while len(self._judgements) >= MAX_REMEMBERED:
                    del self._judgements[next(iter(self._judgements))]
                self._judgements[due.digest] = judgement
                self._settle()

    def _due(self) -> list[_Entry[R]]:
        return [each for each in self._entries.values() if each.due]

    def _settle(self) -> None:
        """Conclude about what has been judged, and tell what has changed."""
        changed = False
        for name, entry in self._entries.items():
            judgement = self._judgements.get(entry.digest) if entry.due else None
            if judgement is not None:
                entry.due = 0
                entry.problem = judgement if isinstance(judgement, str) else ""
                if not isinstance(judgement, str):
                    changed = changed or entry.in_force != judgement
                    entry.in_force = judgement
            self._conditions.state(Source(self._kind.name, detail=name), _conditions(entry, self._kind))
        if self._due():
            self._offered.set()
        if changed:
            self._on_change()


def _text_of(wanted: ConfigMapKey, config_maps: Mapping[tuple[str, str], ConfigMap]) -> tuple[str | None, str]:
    """The text of rules, or None and why there is none."""
    found = config_maps.get((wanted.namespace, wanted.name))
    if found is not None and found.problem:
        return None, found.problem
    if found is None:
        return None, f"there is no ConfigMap {wanted.namespace}/{wanted.name}"
    text = found.data.get(wanted.key)
    if text is None:
        return None, f"ConfigMap {wanted.namespace}/{wanted.name} has no key {wanted.key}"
    return text, ""


def _conditions(entry: _Entry[R], kind: RuleKind) -> list[Condition]:
    if not entry.problem:
        return []
    subject = "InspectionPolicy" if entry.policy.namespace else "ClusterInspectionPolicy"
    outcome = "the last good rules stay in force" if entry.in_force is not None else kind.without
    text = f"{kind.name}: {entry.problem}; {outcome}"
    return [Condition(kind.condition, f"{subject} {entry.policy.display}", text)]
