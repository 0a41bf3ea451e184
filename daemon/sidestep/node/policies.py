"""Accepts inspection policies: compiles and probes each once, and keeps the last good version of one that is edited.

The inventory has the policies as they are written. `offer` takes them; whatever is new is judged in a thread, one after
the other, because probing a policy's regexes takes some 50 ms of processor time. A judgement depends on the rules
alone, so it is remembered by them: a policy that is moved, relabelled or written again is not probed again.

Authors of one namespace are not trusted by those of another. Policies of the cluster are judged first, and namespaces
take turns, whoever writes more or edits more often. So they do where there are more than MAX_POLICIES.

States of a policy, by name

    being checked   it is new, or was edited; the version before it, if there is one, stays in force
    accepted        it is in force
    invalid         a condition says why; the last good version, if there is one, stays in force
    gone            neither its document nor an invalid one of its name is there

A daemon that starts knows no last good version.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from sidestep.aio.time_limit import time_limit
from sidestep.config.field_error import FieldError
from sidestep.model.condition import Condition, ConditionType
from sidestep.model.errors import ConfigurationError
from sidestep.node.conditions import Conditions, Source
from sidestep.node.planning.inspection import PlannedPolicy
from sidestep.observability.logs import get_logger
from sidestep.policy.accepted_policy import accept
from sidestep.policy.egress_rows import to_egress_snapshot
from sidestep.policy.inspection_rows import to_snapshot

if TYPE_CHECKING:
    from sidestep.model.inspection import InspectionPolicy
    from sidestep.snapshots.egress import EgressSnapshot
    from sidestep.snapshots.inspection import PolicySnapshot

MAX_POLICIES = 256
"""Policies of one node; those beyond are not accepted (`_within_bound`)."""
MAX_REMEMBERED = 1024
"""Judgements that are remembered."""
CHECKING = "is being checked"

Name = tuple[str, str]
"""Namespace (empty for a policy of the cluster) and name."""


@dataclass(slots=True)
class PolicyEntry:
    """One policy that is written. `policy` is None when its document could not be parsed."""

    name: Name
    policy: InspectionPolicy | None = None
    problem: str = CHECKING
    """Why it is not accepted as it is written, or not yet; empty once it is."""
    in_force: PlannedPolicy | None = None
    """The version that applies."""
    _snapshot: PolicySnapshot | None = None
    _digest: bytes = b""

    @property
    def is_due(self) -> bool:
        """Whether it is to be judged."""
        return self.policy is not None and self.problem == CHECKING

    @property
    def snapshot(self) -> PolicySnapshot:
        """What pod proxies are told of `policy`. Made once: it takes milliseconds for a large policy."""
        assert self.policy is not None  # noqa: S101 - asked of what was parsed
        if self._snapshot is None:
            self._snapshot = to_snapshot(self.policy)
        return self._snapshot

    @property
    def egress(self) -> EgressSnapshot | None:
        """What pod proxies are told of the connections that pods make; None if the policy says nothing of them."""
        return None if self.policy is None else to_egress_snapshot(self.policy)

    @property
    def digest(self) -> bytes:
        """Of the rules, on which a judgement depends."""
        if not self._digest:
            egress = self.egress
            rules = (self.snapshot.rules, () if egress is None else egress.policy.rules)
            self._digest = hashlib.sha256(msgspec.msgpack.encode(rules)).digest()
        return self._digest

    @property
    def display(self) -> str:
        """As `InspectionPolicy.display`."""
        return "/".join(filter(None, self.name))

    @property
    def subject(self) -> str:
        """How conditions name it."""
        return f"{'InspectionPolicy' if self.name[0] else 'ClusterInspectionPolicy'} {self.display}"


class Judgement(msgspec.Struct, frozen=True):
    """Why rules are refused, empty if they are accepted, and what their regexes compile to."""

    problem: str = ""
    instructions: int = 0


def judged(policy: InspectionPolicy) -> Judgement:
    """Compile and probe a policy. Takes some 50 ms."""
    try:
        return Judgement(instructions=accept(policy, time.thread_time).instructions)
    except FieldError as error:
        return Judgement(f"{error.path}: {error.reason}")
    except ConfigurationError as error:
        return Judgement(str(error))


class PolicyStore:
    """The policies of the inventory. `on_change` is called when others are in force than before."""

    def __init__(self, *, conditions: Conditions, on_change: Callable[[], None]) -> None:
        self._conditions = conditions
        self._on_change = on_change
        self._entries: dict[Name, PolicyEntry] = {}
        self._in_force: tuple[PlannedPolicy, ...] = ()
        self._judgements: dict[bytes, Judgement] = {}
        """By the digest of the rules."""
        self._judged_last: dict[str, int] = {}
        """When a policy of a namespace was judged last, as a number that grows."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="policies")
        self._offered = asyncio.Event()
        self._settled = asyncio.Event()
        self._log = get_logger("policies")

    @property
    def entries(self) -> tuple[PolicyEntry, ...]:
        """All policies that are written, those of the cluster first."""
        return tuple(self._entries.values())

    @property
    def in_force(self) -> tuple[PlannedPolicy, ...]:
        """The versions that apply, those of the cluster first. The same tuple while nothing changes."""
        return self._in_force

    def offer(
        self, policies: Iterable[InspectionPolicy], invalid: Mapping[Name, str], *, present: Collection[str] = ()
    ) -> None:
        """Take what is written now: policies, and why documents of some names could not be parsed.

        `present` are the namespaces of the node's pods.
        """
        before, entries = self._entries, {}
        written = {(policy.namespace, policy.name): policy for policy in policies}
        names = [*sorted(written), *sorted(invalid.keys() - written.keys())]
        within, beyond = _within_bound(names, present), f"the node has {MAX_POLICIES} policies already"
        for name in sorted(names):
            policy, entry = written.get(name), before.get(name)
            in_force = entry.in_force if entry is not None and name in within else None
            if policy is None:
                entry = PolicyEntry(name, None, invalid[name], in_force)
            elif name not in within:
                entry = PolicyEntry(name, policy, beyond)
            elif entry is None or entry.policy != policy or entry.problem == beyond:
                entry = PolicyEntry(name, policy, in_force=in_force)
            entries[name] = entry
        self._entries = entries
        for entry in self._entries.values():
            self._settle(entry)
        for name in before.keys() - entries.keys():
            self._conditions.state(_source(before[name]), ())
        self._update()

    async def run(self) -> None:
        """Judge what is offered, until cancelled."""
        try:
            while True:
                await self._offered.wait()
                self._offered.clear()
                while due := [each for each in self._entries.values() if each.is_due]:
                    await self._judge(min(due, key=self._turn_of))
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def settle(self, *, within: float) -> None:
        """Wait until nothing is being checked, at most `within` seconds. `run` must be running."""
        with contextlib.suppress(TimeoutError):
            async with time_limit(within):
                await self._settled.wait()

    # --- inside -----------------------------------------------------------------------------------------------------

    def _turn_of(self, entry: PolicyEntry) -> tuple[bool, int, Name]:
        """Sort key of an entry among those that are due: the cluster's, then the namespace that has waited longest."""
        namespace = entry.name[0]
        return bool(namespace), self._judged_last.get(namespace, 0), entry.name

    async def _judge(self, entry: PolicyEntry) -> None:
        namespaces = {each.name[0] for each in self._entries.values()}
        self._judged_last = {name: turn for name, turn in self._judged_last.items() if name in namespaces}
        self._judged_last[entry.name[0]] = max(self._judged_last.values(), default=0) + 1
        policy = entry.policy
        assert policy is not None  # noqa: S101 - it is due
        loop = asyncio.get_running_loop()
        began = loop.time()
        judgement = await loop.run_in_executor(self._thread, judged, policy)
        seconds = round(loop.time() - began, 3)
        self._log.info("policy judged", policy=entry.display, seconds=seconds, problem=judgement.problem)
        while len(self._judgements) >= MAX_REMEMBERED:
            del self._judgements[next(iter(self._judgements))]
        self._judgements[entry.digest] = judgement
        for each in self._entries.values():
            self._settle(each)
        self._update()

    def _settle(self, entry: PolicyEntry) -> None:
        """Conclude about an entry that is due, if its rules have been judged."""
        if entry.policy is None or not entry.is_due:
            return
        judgement = self._judgements.get(entry.digest)
        if judgement is None:
            return
        entry.problem = judgement.problem
        if not judgement.problem:
            size = len(msgspec.msgpack.encode(entry.snapshot))
            entry.in_force = PlannedPolicy(
                entry.policy, entry.snapshot, size, judgement.instructions, egress=entry.egress
            )

    def _update(self) -> None:
        """Tell what has changed: conditions, and the versions in force."""
        for entry in self._entries.values():
            self._conditions.state(_source(entry), _conditions(entry))
        if any(each.is_due for each in self._entries.values()):
            self._settled.clear()
            self._offered.set()
        else:
            self._settled.set()
        in_force = tuple(each.in_force for each in self._entries.values() if each.in_force is not None)
        if in_force != self._in_force:
            self._in_force = in_force
            self._on_change()


def _within_bound(names: Sequence[Name], present: Collection[str]) -> set[Name]:
    """The MAX_POLICIES of these names that count.

    Those of the cluster come first, then those of namespaces with pods here, then the others. Namespaces take turns:
    the first policy of each, as they are given, then the second of each, and so on.
    """
    ranks: Counter[str] = Counter()
    keys: dict[Name, tuple[bool, bool, int, Name]] = {}
    for name in names:
        namespace = name[0]
        keys[name] = (bool(namespace), namespace not in present, ranks[namespace], name)
        ranks[namespace] += 1
    return set(sorted(keys, key=keys.__getitem__)[:MAX_POLICIES])


def _source(entry: PolicyEntry) -> Source:
    return Source("policy", detail=entry.display)


def _conditions(entry: PolicyEntry) -> list[Condition]:
    if not entry.problem or entry.is_due:
        return []
    outcome = "its last good version stays in force" if entry.in_force is not None else "it is not in force"
    return [Condition(ConditionType.POLICY_INVALID, entry.subject, f"{entry.problem}; {outcome}")]
