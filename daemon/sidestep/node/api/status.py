"""Status of the node: implements `NodeView` for sessions and the local API.

Keeps no state. Every answer is assembled from the plan (desired state), the targets (actual state), the certificates
and the conditions. A pod of an intercept is

    active     a port is steered, and connections have arrived
    attached   a port is steered, and no connection has arrived yet, or traffic bypasses the hook
    pending    it will be steered: the pod or its containers start, a certificate is not there yet, the proxy starts, no
               app listens, or a failed step is retried
    failed     a rule or the pod's own configuration prevents steering
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Protocol

import msgspec

from sidestep import __version__
from sidestep.aio.meter import LoopMeter
from sidestep.config.annotations import CertificateSource, SourceKind
from sidestep.engine.inspection.alert_changes import changes_of, of_one_exchange
from sidestep.model.condition import Condition
from sidestep.model.inspection import InspectionPolicy
from sidestep.model.intercept import Allow, Intercept, intercepts_among, sessions_among
from sidestep.model.pod import PodKey, Transport, common_labels
from sidestep.node.api.policy_views import policy_views
from sidestep.node.certificates import pem
from sidestep.node.certificates.store import CertificateStore
from sidestep.node.conditions import Conditions
from sidestep.node.controller import Controller
from sidestep.node.planning.plan import PodPlan
from sidestep.node.pods.reconciler import Reconciler
from sidestep.node.pods.target import Target
from sidestep.node.policies import PolicyStore
from sidestep.node.records.recent_alerts import RecentAlerts
from sidestep.policy.exceptions import By
from sidestep.policy.pod_ports import ports_of
from sidestep.policy.protocol_choice import Use
from sidestep.policy.survey import CertificateKey, PodSurvey, PortSurvey, Side, protocol_text
from sidestep.protocols.eve_records import Record
from sidestep.proxy.control.messages import Probed
from sidestep.tunnel.messages import ConditionText, PodState, State
from sidestep.tunnel.views import (
    NOT_READ,
    PENDING,
    AlertView,
    AnswersView,
    CertificateView,
    ChangeView,
    ConditionView,
    InterceptView,
    LoopView,
    NodeStatus,
    OutboundView,
    PodView,
    PolicyView,
    PortView,
    StatusView,
    UninspectedView,
    WorkloadView,
)

WorkloadName = tuple[str, str, str]
"""(namespace, kind, name)."""


class AnswerViews(Protocol):
    """The operations of `AnswerTotals` that are used here."""

    def views(self) -> tuple[AnswersView, ...]:
        """Return the totals."""


class SessionViews(Protocol):
    """The operations of `SessionRegistry` that are used here."""

    @property
    def answers(self) -> AnswerViews:
        """What sessions were told of answers."""

    def views(self) -> tuple[InterceptView, ...]:
        """Return the views of all intercepts."""

    def intercepts(self) -> tuple[Intercept, ...]:
        """Return all intercepts."""

    def intercept(self, uid: str) -> Intercept | None:
        """Return one intercept; None when there is none with this uid."""


class NodeStatusView:
    """Implements `NodeView`. `connect` sets the objects that themselves need a `NodeView`."""

    def __init__(
        self,
        *,
        node_name: str,
        controller: Controller,
        certificates: CertificateStore,
        policies: PolicyStore,
        conditions: Conditions,
        now: Callable[[], float],
        meter: LoopMeter | None = None,
    ) -> None:
        self._node_name = node_name
        self._controller = controller
        self._certificates = certificates
        self._policies = policies
        self._conditions = conditions
        self._now = now
        self._began = now()
        self._meter = meter or LoopMeter()

    def connect(
        self,
        *,
        sessions: SessionViews,
        reconciler: Reconciler,
        counters: Callable[[], dict[str, int]],
        alerts: RecentAlerts,
    ) -> None:
        """Set the remaining objects; once, before any other call."""
        self._alerts = alerts
        self._sessions = sessions
        self._reconciler = reconciler
        self._counters = counters

    async def prepare(self, intercept: Intercept) -> None:
        """As NodeView.prepare: reads the certificates of this intercept."""
        await self._controller.prepare(intercept)

    def check(self, intercept: Intercept) -> None:
        """As NodeView.check. Raises RefusedError, ConfigurationError."""
        self._controller.check(intercept)

    def status(self) -> StatusView:
        """As NodeView.status."""
        targets = self._reconciler.targets()
        node = NodeStatus(
            name=self._node_name,
            version=__version__,
            pid=os.getpid(),
            uptime=round(self._now() - self._began, 3),
            counters={"target_pods": len(targets), **self._counters()},
            loop=_loop_view(self._meter),
            answers=self._sessions.answers.views(),
        )
        return StatusView(
            node=node,
            pods=tuple(self._pod_view(target) for target in targets),
            policies=self.policies(),
            intercepts=self._sessions.views(),
            conditions=tuple(_condition_view(condition) for condition in self._conditions.all()),
        )

    def policies(self) -> tuple[PolicyView, ...]:
        """Return the inspection policies that are written, those of the cluster first."""
        return policy_views(self._policies, self._controller.plan, self._reconciler, self._conditions)

    def alert(self, exchange: str, by: By, policy: str) -> AlertView | None:
        """As NodeView.alert."""
        found = of_one_exchange(self._alerts.of(exchange), policy)
        made = changes_of(found, self._policies_of_record, by=by)
        changes = tuple(ChangeView(each.policy, each.spec, each.notes) for each in made)
        return AlertView(found, changes) if found else None

    def workloads(self) -> tuple[WorkloadView, ...]:
        """As NodeView.workloads."""
        plan, inventory = self._controller.plan, self._controller.inventory
        surveys: dict[WorkloadName, list[PodSurvey]] = {
            (key.namespace, key.kind, key.name): [] for key, each in inventory.workloads.items() if not each.owners
        }
        for survey in plan.surveys.values():
            surveys.setdefault(_workload_of(survey), []).append(survey)
        covering: dict[PodKey, list[Intercept]] = {}
        for intercept in self._sessions.intercepts():
            for key in plan.coverage.get(intercept.uid, ()):
                covering.setdefault(key, []).append(intercept)
        return tuple(self._workload_view(name, found, covering) for name, found in sorted(surveys.items()))

    def state(self, intercept_uid: str) -> State:
        """As NodeView.state."""
        plan = self._controller.plan
        pods = plan.coverage.get(intercept_uid, ())
        intercept = self._sessions.intercept(intercept_uid)
        conditions: list[Condition] = []
        if intercept is not None:
            conditions += self._conditions.about(f"{intercept.session_kind} {intercept.display}")
        for key in pods:
            conditions += self._conditions.of(key)
        return State(
            pods=tuple(self._pod_state(intercept_uid, key) for key in pods),
            conditions=tuple(ConditionText(each.type.value, each.subject, each.text) for each in conditions),
        )

    # --- inside -----------------------------------------------------------------------------------------------------

    def _policies_of_record(self, record: Record) -> tuple[list[InspectionPolicy], bool]:
        """The policies in force on the port of a record, all of them; where the pod has gone the one that it names."""
        in_force = {each.display: each.in_force.policy for each in self._policies.entries if each.in_force is not None}
        key = PodKey(record.kubernetes.namespace, record.kubernetes.pod)
        if record.sidestep is not None and record.sidestep.direction is not None:
            names = self._controller.plan.outward.get(key)
        else:
            ports = self._controller.plan.inspected.get(key, {})
            names = ports.get(record.dest_port or 0) or ports.get(record.src_port or 0)
        if names is not None:
            return [in_force[name] for name in names if name in in_force], True
        named = in_force.get((record.sidestep and record.sidestep.policy) or "")
        return ([] if named is None else [named]), False

    def _pod_view(self, target: Target) -> PodView:
        key = target.pod.key
        return msgspec.structs.replace(
            _pod_view(target, self._controller.plan.surveys.get(key)),
            closed=tuple(f"{number}/tcp" for number in self._reconciler.closed(key)),
            uninspected=tuple(
                UninspectedView(each.outcome.value, each.reason, round(seconds, 3))
                for each, seconds in self._reconciler.uninspected(key).items()
            ),
        )

    def _pod_state(self, uid: str, key: PodKey) -> PodState:
        plan = self._controller.plan
        if (uid, key) in plan.refusals:
            return PodState(str(key), "failed", plan.refusals[uid, key])
        intercept = self._sessions.intercept(uid)
        if intercept is not None and intercept.allow and Allow.NETWORK not in intercept.allow:
            waits = plan.pending.get((uid, key), "")
            return PodState(str(key), "pending" if waits else "active", waits)
        planned = plan.pods.get(key)
        ports = _ports_of(planned, uid) if planned is not None else []
        target = self._reconciler.target(key)
        problem = self._reconciler.problem(key)
        if planned is not None and planned.outbound is not None and uid in planned.outbound.uids:
            return _listening_state(key, target, uid, problem)
        if planned is not None and any(each.uid == uid for each in planned.access):
            return _connecting_state(key, target, uid, plan.pending.get((uid, key), "") or problem)
        if target is None or not ports or not target.serves(uid):
            if (uid, key) in plan.pending:
                return PodState(str(key), "pending", problem or plan.pending[uid, key])
            return PodState(str(key), "failed" if problem else "pending", problem)
        waiting = [port for port in ports if not target.takes(*port)]
        if len(waiting) == len(ports):
            no_app = [number for number, _ in waiting if target.waits_for_app(number)]
            left = next((why for port in waiting if (why := target.why_left(*port))), "")
            detail = left or (f"nothing listens on port {no_app[0]}" if no_app else problem)
            return PodState(str(key), "pending", detail)
        return PodState(str(key), "active" if target.seen else "attached", problem)

    def _workload_view(
        self, name: WorkloadName, surveys: list[PodSurvey], covering: dict[PodKey, list[Intercept]]
    ) -> WorkloadView:
        ports: dict[tuple[int, Transport], PortView] = {}
        conditions: list[Condition] = []
        outward = self._controller.plan.outward
        sessions: set[Intercept] = set()
        claimed: dict[tuple[int, Transport], set[Intercept]] = {}
        steered: dict[int, int] = {}
        for survey in surveys:
            target = self._reconciler.target(survey.pod.key)
            for number, families in (target.steered() if target is not None else {}).items():
                steered[number] = steered.get(number, 0) + bool(families)
        for survey in surveys:
            conditions += self._conditions.of(survey.pod.key)
            here = covering.get(survey.pod.key, [])
            sessions.update(here)
            for port, claiming in ports_of(survey.pod, self._controller.inventory).claimed(here).items():
                claimed.setdefault(port, set()).update(claiming)
            for each in survey.ports:
                key = (each.port.number, each.port.transport)
                if key not in ports:
                    count = steered.get(each.port.number, 0) if each.port.transport is Transport.TCP else 0
                    ports[key] = self._port_view(survey, each, steered_pods=count)
        return WorkloadView(
            namespace=name[0],
            kind=name[1],
            name=name[2],
            pods=tuple(survey.pod.key.name for survey in surveys),
            ports=tuple(
                msgspec.structs.replace(
                    view,
                    intercepts=intercepts_among(claimed.get(key, ())),
                    sessions=sessions_among(claimed.get(key, ())),
                    policies=self._policies_of(surveys, key),
                )
                for key, view in sorted(ports.items())
            ),
            intercepts=intercepts_among(sessions),
            sessions=sessions_among(sessions),
            labels=common_labels(survey.pod for survey in surveys),
            conditions=tuple(_condition_view(each) for each in dict.fromkeys(conditions)),
            egress=self._shown({name for survey in surveys for name in outward.get(survey.pod.key, ())}),
            listening=sessions_among(each for each in sessions if each.egress),
        )

    def _policies_of(self, surveys: list[PodSurvey], port: tuple[int, Transport]) -> tuple[str, ...]:
        """Return the policies of a port of any of these pods, those of the cluster first."""
        if port[1] is not Transport.TCP:
            return ()
        inspected = self._controller.plan.inspected
        return self._shown({name for survey in surveys for name in inspected.get(survey.pod.key, {}).get(port[0], ())})

    def _shown(self, names: AbstractSet[str]) -> tuple[str, ...]:
        """Return the policies of these names with their modes, those of the cluster first."""
        return tuple(
            f"{each.display} ({each.policy.mode.value})" for each in self._policies.in_force if each.display in names
        )

    def _port_view(self, survey: PodSurvey, each: PortSurvey, *, steered_pods: int) -> PortView:
        protocol = each.protocol
        target = self._reconciler.target(survey.pod.key)
        text, known = _protocol_and_source(each, target)
        return PortView(
            number=each.port.number,
            transport=each.port.transport.value,
            protocol=text,
            tls=protocol.tls.value,
            http2=protocol.http2.value,
            known=known,
            name=each.port.name,
            service_ports=each.resolved.services,
            certificate=self._certificate_view(survey.pod.key, each),
            certificate_state=self._certificate_state(survey.pod.key, each),
            steered_pods=steered_pods,
        )

    def _certificate_view(self, pod: PodKey, each: PortSurvey) -> CertificateView | None:
        source = each.tls.downstream
        entry = self._certificates.entry(CertificateKey(pod, each.port.number, Side.DOWNSTREAM))
        if source is None or entry is None or entry.identity is None:
            return None
        identity = entry.identity
        return CertificateView(
            names=identity.names,
            expires=f"{dt.datetime.fromtimestamp(identity.not_after, dt.UTC):%Y-%m-%dT%H:%M:%SZ}",
            serial=identity.serial,
            source=_source_text(source, pod, each.tls.containers),
        )

    def _certificate_state(self, pod: PodKey, each: PortSurvey) -> str:
        if each.tls.downstream is None or each.protocol.tls is Use.NEVER:
            return ""
        entry = self._certificates.entry(CertificateKey(pod, each.port.number, Side.DOWNSTREAM))
        if entry is None:
            return NOT_READ
        if entry.facts.pending:
            return f"{PENDING}: {entry.facts.pending}"
        return "" if entry.identity is not None else "unusable"


def _listening_state(key: PodKey, target: Target | None, uid: str, problem: str) -> PodState:
    """Return how a pod stands to a session that listens to connections that it makes."""
    if target is None or not target.serves(uid):
        return PodState(str(key), "failed" if problem else "pending", problem)
    if target.egress.problem:
        return PodState(str(key), "failed", target.egress.problem)
    if not target.egress.serving:
        return PodState(str(key), "pending", target.absence())
    return PodState(str(key), "active" if target.counters.outbound.get("outbound") else "attached", problem)


def _connecting_state(key: PodKey, target: Target | None, uid: str, problem: str) -> PodState:
    """Return how a pod stands to a session that may have it make connections."""
    if target is None or not target.serves(uid):
        return PodState(str(key), "failed" if problem else "pending", problem)
    absence = problem or target.absence()
    return PodState(str(key), "pending" if absence else "active", absence)


def _protocol_and_source(each: PortSurvey, target: Target | None) -> tuple[str, str]:
    """Return the protocol of a port, and how it is known."""
    protocol = each.protocol
    text, known = protocol_text(protocol, each.port.transport), protocol.source
    if known == "probing":
        known = "not known yet"
    probed = target.probed(each.port.number) if target is not None else None
    if probed is not None and protocol.tls is Use.PROBE:
        text = "https" if probed.tls == "yes" else ("h2c" if probed.http2 == "yes" else "http")
        known = _probed_text(probed)
    elif probed is not None and protocol.tls is Use.ALWAYS and probed.tls == "yes":
        known += f", {_probed_text(probed)}"
    return text, known


def _probed_text(probed: Probed) -> str:
    """Return the other results of the protocol probe in a few words."""
    learnt = [f"ALPN {probed.alpn[:32]}"] if probed.alpn else []
    if probed.asks_certificate:
        learnt.append("asks for client certificates")
    names = pem.names_in(probed.certificate)
    if names:
        learnt.append(f"certificate of {', '.join(name[:64] for name in names[:3])}")
    return "probed" + (f" ({'; '.join(learnt)})" if learnt else "")


def _source_text(source: CertificateSource, pod: PodKey, containers: tuple[str, ...]) -> str:
    if source.kind is SourceKind.SECRET:
        return f"secret {pod.namespace}/{source.value}"
    return f"path {source.value} of container {containers[0]}" if containers else f"path {source.value}"


def _workload_of(survey: PodSurvey) -> WorkloadName:
    """Return the outermost controller of a pod, otherwise the pod itself."""
    pod = survey.pod
    if pod.owners:
        return (pod.key.namespace, pod.owners[-1].kind, pod.owners[-1].name)
    return (pod.key.namespace, "pod", pod.key.name)


def _ports_of(planned: PodPlan, uid: str) -> list[tuple[int, Transport]]:
    return [(port.number, port.transport) for port in planned.ports if uid in port.uids]


def _pod_view(target: Target, survey: PodSurvey | None) -> PodView:
    counters: dict[str, int] = {"connections": target.connections}
    for counts in target.counters.ports.values():
        for name, total in counts.items():
            counters[name] = counters.get(name, 0) + total
    for name, total in target.counters.datagrams.items():
        counters[name] = counters.get(name, 0) + total
    return PodView(
        namespace=target.pod.key.namespace,
        name=target.pod.key.name,
        proxy=target.proxy_state.value if target.proxy_pid is not None or target.attached else "none",
        proxy_pid=target.proxy_pid or 0,
        steered=(
            *(f"{number}/tcp" for number, families in target.steered().items() if families),
            *(f"{number}/udp" for number, families in target.steered_datagrams().items() if families),
        ),
        counters=counters,
        client_addresses=target.client_addresses.status,
        anomalies=dict(target.counters.anomalies),
        protocols=_protocols(target, survey),
        engines=target.engines(),
        outbound=_outbound(target),
        proxy_pids=target.proxy_pids,
        why_fewer_workers=target.why_fewer_workers,
    )


def _outbound(target: Target) -> OutboundView | None:
    """Return the connections that a pod makes, None while no policy is about them and nobody listens."""
    egress = target.egress
    if not (egress.is_wanted or egress.problem):
        return None
    return OutboundView(
        "steered" if egress.serving else "direct",
        egress.problem,
        egress.open_connections,
        dict(target.counters.outbound),
        egress.verdicts(),
    )


def _protocols(target: Target, survey: PodSurvey | None) -> dict[str, str]:
    found = {}
    for number in target.steered():
        each = survey.port(number, Transport.TCP) if survey is not None else None
        if each is not None:
            text, known = _protocol_and_source(each, target)
            found[f"{number}/tcp"] = f"{text} ({known})"
    return found


def _loop_view(meter: LoopMeter) -> LoopView:
    return LoopView(tuple(meter.counts), round(meter.seconds, 3), round(meter.longest, 4))


def _condition_view(condition: Condition) -> ConditionView:
    return ConditionView(condition.type.value, condition.subject, condition.text)
