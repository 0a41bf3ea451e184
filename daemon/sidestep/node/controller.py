"""Plans whenever something changes, and hands the plan to the reconciler.

The inventory, the sessions and the certificates set one flag; one task plans anew, once for all changes that come
together. A round has a fixed order: settings of the node, plan, the certificates that the plan wants (reading them
takes time and is another change), conditions, reconciler, events of the sessions.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import Protocol

from sidestep.aio.time_limit import time_limit
from sidestep.config import node_settings
from sidestep.config.annotations import SourceKind
from sidestep.config.node_settings import NodeSettings
from sidestep.model.condition import Condition, ConditionType
from sidestep.model.errors import ConfigurationError, RefusedError, SidestepError
from sidestep.model.intercept import Intercept
from sidestep.model.inventory import Inventory
from sidestep.model.pod import Family, Pod, PodKey
from sidestep.netns import listening, netns_id
from sidestep.node.certificates.store import CertificateStore
from sidestep.node.conditions import Conditions, Source
from sidestep.node.manifests import Reading
from sidestep.node.planning.admission import admit, certificates_of
from sidestep.node.planning.inspection import Placements, Policies
from sidestep.node.planning.pace import Pace
from sidestep.node.planning.plan import Plan
from sidestep.node.planning.planner import plan
from sidestep.node.planning.port_plan import PortPlans
from sidestep.node.planning.surveys import Surveys
from sidestep.node.pods.pod_netns import AbsentError, netns_path, open_pod_netns
from sidestep.node.policies import PolicyStore
from sidestep.observability.logs import get_logger
from sidestep.policy.pod_ports import ports_of
from sidestep.policy.survey import WantedCertificate
from sidestep.policy.workloads import pods_of

LOCATIONS = 2.0
"""Seconds between two looks at the namespaces of pods that are no targets."""

PREPARATION = 5.0
"""Seconds for reading the certificates that a new intercept needs; what is read later becomes a condition."""


PLAN_PAUSE_MAX = 1.0
"""Seconds in which changes are gathered at most before they are planned."""


class PlanSink(Protocol):
    """What is needed of the `Reconciler`."""

    def apply(self, plan: Plan, /, *, drain_timeout: float) -> None:
        """Carry a plan out."""


class Controller:
    """Holds the present inventory, settings and plan of the node."""

    def __init__(
        self,
        *,
        node_name: str,
        conditions: Conditions,
        node_addresses: frozenset[IPv4Address | IPv6Address],
        own_namespace: str = node_settings.OWN_NAMESPACE,
    ) -> None:
        self.inventory = Inventory()
        self.settings = NodeSettings(own_namespace=own_namespace)
        self.plan = Plan()
        self._found_ports: set[str] = set()
        """uids of intercepts whose port some pod of this node was seen to have."""
        self.stopping = False
        self._node_name = node_name
        self._conditions = conditions
        self._addresses = tuple(sorted(str(address) for address in node_addresses))
        self._intercepts: Callable[[], tuple[Intercept, ...]] = tuple
        self._want_secrets: Callable[[frozenset[tuple[str, str]]], None] = lambda _names: None
        self._use_settings: Callable[[NodeSettings], None] = lambda _settings: None
        self._use_policies: Callable[[Policies, Inventory], None] = lambda _policies, _inventory: None
        self._complete: Callable[[Policies], Policies] = lambda policies: policies
        self._certificates: CertificateStore | None = None
        self._policies: PolicyStore | None = None
        self._absent: set[PodKey] = set()
        self._planned: set[PodKey | None] = set()
        self._surveys = Surveys()
        self._port_plans = PortPlans()
        self._placements = Placements()
        self._changed = asyncio.Event()
        self._pace = Pace(least=0.0, most=PLAN_PAUSE_MAX)
        self._planning = 0.0
        """Seconds that the plans of this round took."""
        self._log = get_logger("controller")

    def connect(
        self,
        *,
        certificates: CertificateStore,
        policies: PolicyStore,
        intercepts: Callable[[], tuple[Intercept, ...]],
        want_secrets: Callable[[frozenset[tuple[str, str]]], None] = lambda _names: None,
        use_settings: Callable[[NodeSettings], None] = lambda _settings: None,
        use_policies: Callable[[Policies, Inventory], None] = lambda _policies, _inventory: None,
        complete: Callable[[Policies], Policies] = lambda policies: policies,
    ) -> None:
        """Say where certificates, policies and intercepts come from, who reads Secrets, and who else is told of the
        settings of the node and of the policies in force, before each plan; once, before `run`. `complete` adds to
        policies what they have outside of their documents.
        """
        self._certificates = certificates
        self._policies = policies
        self._intercepts = intercepts
        self._want_secrets = want_secrets
        self._use_settings = use_settings
        self._use_policies = use_policies
        self._complete = complete

    def changed(self) -> None:
        """Plan anew soon: something has changed."""
        self._changed.set()

    def replace_inventory(self, reading: Reading) -> None:
        """Use this inventory from now on, and state its conditions."""
        self.inventory = reading.inventory
        stated = [*(error.condition() for error in reading.errors), *reading.conditions]
        self._conditions.state(Source("manifests"), stated)
        if self._policies is not None:
            present = {key.namespace for key in reading.inventory.pods}
            self._policies.offer(reading.inventory.policies, reading.inventory.invalid_policies, present=present)
        self._log.info("inventory read", pods=len(reading.inventory.pods), errors=len(reading.errors))
        self.changed()

    def node_annotations(self) -> Mapping[str, str]:
        """Annotations of this node."""
        return self.inventory.node_annotations(self._node_name) or self.inventory.node_annotations()

    async def run(self, sink: PlanSink, refresh: Callable[[], None]) -> None:
        """Plan when something has changed, until cancelled.

        At once after a quiet time, else at the pace that the cost of the last plan sets.
        """
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self.stopping:
                continue
            self._planning = 0.0
            await self._round(sink)
            refresh()
            self._pace.took(self._planning)
            await asyncio.sleep(self._pace.pause)

    async def plan_once(self, sink: PlanSink) -> None:
        """Plan once, before sessions may connect."""
        self._changed.clear()
        await self._round(sink)

    async def watch_locations(self) -> None:
        """Look for pods whose namespace is not where their manifest says, until cancelled."""
        while True:
            self.look_at_locations()
            await asyncio.sleep(LOCATIONS)

    def look_at_locations(self) -> None:
        """State a condition for every pod whose namespace is not there; a bad manifest is told before it is needed."""
        absent: dict[PodKey, str] = {}
        for key, pod in self.inventory.pods.items():
            path = netns_path(pod.location)
            if path and not pod.ended and not pod.location.searched:
                try:
                    netns_id(path)
                except SidestepError as error:
                    absent[key] = str(error)
        for key in self._absent - absent.keys():
            self._conditions.state(Source("location", key), ())
        for key, text in absent.items():
            condition = Condition(ConditionType.NETNS_UNAVAILABLE, f"pod {key}", text)
            self._conditions.state(Source("location", key), [condition])
        self._absent = set(absent)

    def _certificates_of(self, new: Intercept) -> tuple[WantedCertificate, ...]:
        return certificates_of(new, self.inventory, node_annotations=self.node_annotations(), surveys=self._surveys)

    async def prepare(self, new: Intercept) -> None:
        """Have the certificates read that an intercept would need, so that `check` can judge them."""
        if self._certificates is not None and not self.stopping:
            wanted = self._certificates_of(new)
            if not wanted:
                return
            try:
                async with time_limit(PREPARATION):
                    await self._certificates.prepare(wanted, self.inventory.pods)
            except TimeoutError:
                self._log.info("certificates not read in time", intercept=new.display)

    def check(self, new: Intercept) -> None:
        """Whether an intercept may begin. Raises RefusedError, ConfigurationError."""
        if self.stopping:
            raise RefusedError("the node daemon is stopping; try again when it runs")
        facts = self._certificates.facts() if self._certificates is not None else {}
        able = admit(
            new,
            [each for each in self._intercepts() if each.uid != new.uid],  # it may come back
            self.inventory,
            self.settings,
            facts,
            node_annotations=self.node_annotations(),
            policies=self._placements.of(self.inventory, self._in_force),
            surveys=self._surveys,
        )
        problem: SidestepError | None = None
        for pod in able if not new.allow else ():
            try:
                self._enter(pod, new)
            except AbsentError:
                return  # it is being started
            except SidestepError as error:
                problem = problem or error
            else:
                return
        if problem is not None:
            raise RefusedError(str(problem)) from problem

    def _enter(self, pod: Pod, new: Intercept) -> None:
        """Look into the pod. Raises SidestepError when it cannot be entered, or has no such port at all."""
        pod_netns = open_pod_netns(pod)
        with pod_netns.netns:
            if new.egress:
                return
            ports = ports_of(pod, self.inventory)
            found = ports.resolve(new.port, transport=new.transport)
            if any(each.declared or each.service_ports for each in found):
                return
            table = listening(pod_netns.netns, [each.port.number for each in found], transport=new.transport)
            for each in found:
                if any(table.serves(each.port.number, family, pod_netns.addresses) for family in Family):
                    return
        if pod.idle_containers:
            return  # whose app may listen there once it runs
        raise RefusedError(
            f"pod {pod.key} has no {new.transport.upper()} port {new.port}: nothing declares it, and nothing listens "
            f"there (ports there are: {ports.texts})"
        )

    def _unknown_port(self, new: Intercept) -> str:
        """Why no pod of this node has the port that an intercept wants; empty when one has it, or it cannot be told."""
        reason = ""
        for pod in pods_of(new, self.inventory):
            try:
                self._enter(pod, new)
            except RefusedError as error:
                reason = str(error)
            except SidestepError:
                return ""
            else:
                return ""
        return reason

    @property
    def _in_force(self) -> Policies:
        return self._complete(self._policies.in_force) if self._policies is not None else ()

    def basis(self) -> object:
        """What `refusal` depends on beside the intercept: while this is the same, so are its answers."""
        facts = self._certificates.facts() if self._certificates is not None else {}
        return (self.stopping, _Same(self.inventory), self.settings, facts, self._in_force)

    def refusal(self, new: Intercept) -> str:
        """Why no pod of this node can serve an intercept, conflicts with others left aside; empty when one can.

        The intercept stands: certificates that it needs are read, which is a change (`basis`) once it is done.
        """
        if self.stopping:
            return "the node daemon is stopping"
        facts = {}
        if self._certificates is not None:
            facts = self._certificates.facts()
            unread = [each for each in self._certificates_of(new) if each.key not in facts]
            self._certificates.expect(unread, self.inventory.pods)
        try:
            admit(
                new,
                (),
                self.inventory,
                self.settings,
                facts,
                node_annotations=self.node_annotations(),
                policies=self._placements.of(self.inventory, self._in_force),
                surveys=self._surveys,
            )
        except (RefusedError, ConfigurationError) as error:
            return str(error)
        if new.uid in self._found_ports or new.allow:
            return ""  # that its app goes away later is no reason
        reason = self._unknown_port(new)
        if not reason:
            self._found_ports = {each.uid for each in self._intercepts() if each.uid in self._found_ports} | {new.uid}
        return reason

    async def _round(self, sink: PlanSink) -> None:
        annotations = self.node_annotations()
        self.settings, problems = node_settings.resolve(annotations, previous=self.settings, node=self._node_name)
        self._use_settings(self.settings)
        self._use_policies(self._in_force, self.inventory)
        self._conditions.state(Source("node"), [problem.condition() for problem in problems])
        drafted = self._plan(annotations)
        if self._certificates is not None:
            self._want_secrets(
                frozenset(
                    (each.namespace, each.source.value)
                    for each in drafted.certificates
                    if each.source.kind is SourceKind.SECRET
                )
            )
            self._certificates.want(drafted.certificates, self.inventory.pods)
        self.plan = drafted
        self._state(drafted)
        if not self.stopping:
            sink.apply(drafted, drain_timeout=self.settings.drain_timeout)

    def _plan(self, annotations: Mapping[str, str]) -> Plan:
        began = time.perf_counter()
        drafted = plan(
            self.inventory,
            self._intercepts(),
            self.settings,
            self._certificates.facts() if self._certificates is not None else {},
            node_annotations=annotations,
            node_addresses=self._addresses,
            surveys=self._surveys,
            policies=self._in_force,
            port_plans=self._port_plans,
            placements=self._placements,
        )
        self._planning += time.perf_counter() - began
        return drafted

    def _state(self, drafted: Plan) -> None:
        for key in self._planned - drafted.conditions.keys():
            self._conditions.state(Source("plan", key), ())
        for key, stated in drafted.conditions.items():
            self._conditions.state(Source("plan", key), stated)
        self._planned = set(drafted.conditions)


class _Same:
    """Equal to what wraps the very same object; comparing inventories takes long."""

    __slots__ = ("_of",)
    __hash__ = None  # type: ignore[assignment]  # compared, never looked up

    def __init__(self, of: object) -> None:
        self._of = of

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other._of is self._of
