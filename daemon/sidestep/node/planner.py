"""What should be steered on this node, as a value: pods, intercepts, settings and certificates in, desired state out.

Pure and deterministic: the same input gives equal plans, everything in them is sorted, and an equal plan means that
nothing has to be done. The reconciler carries a plan out; it never decides.

For each pod that may be a target (not ended, not in the host's network, of an allowed namespace, within `max-pods`) the
plan holds the `PortSnapshot` of every port that an admitted intercept or wiretap wants and that can serve it. What
cannot be served is left out and is a condition: a bad port never disables a good one.

- Intercepts are admitted oldest first (`policy.conflicts.admit`): sessions are checked when they begin, but two of them
  may come to mean the same port later, when a Service changes.
- An HTTP filter needs HTTP to be seen: it is left out where the protocol rules it out, and where the port always speaks
  TLS and no certificate of it is usable. Steering such a port would only add a hop.
- A pod whose certificates have not been looked at yet is in `waiting`: it keeps what it has.
- `max-pods`: the pods of older intercepts come first, so that a new session never takes a target away from an old one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sidestep.config.annotation_names import CLIENT_AUTH
from sidestep.config.annotations import ClientAuth
from sidestep.model.condition import Condition, ConditionType
from sidestep.model.errors import RefusedError
from sidestep.model.intercept import Intercept, Kind
from sidestep.model.pod import ContainerPort, PodKey, Transport
from sidestep.node.survey import CertificateKey, PodSurvey, PortSurvey, Side, port_subject, survey
from sidestep.policy.conflicts import Claim, admit, claim_of
from sidestep.policy.matching import to_rows
from sidestep.policy.protocol_choice import Use
from sidestep.policy.workloads import pods_of, resolve_port
from sidestep.proxy.messages import Condition as ConditionSnapshot
from sidestep.proxy.messages import PortSnapshot, RuleSnapshot

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sidestep.config.node_settings import NodeSettings
    from sidestep.model.inventory import Inventory
    from sidestep.model.pod import Pod


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """What is known about a certificate that was looked at: names of credentials, empty where there is none."""

    identity: str = ""
    trust: str = ""
    dns_name: str = ""
    problem: str = ""
    """What is wrong with it, for people."""


@dataclass(frozen=True, slots=True)
class PortPlan:
    """A port that is to be steered. `needs_app`: only while an app listens on it (it is filtered).

    `resets` are the uids of those for whose sake connections that exist are ended.
    """

    snapshot: PortSnapshot
    needs_app: bool
    resets: frozenset[str] = frozenset()

    @property
    def number(self) -> int:
        """The container port."""
        return self.snapshot.number

    @property
    def transport(self) -> Transport:
        """Its transport."""
        return Transport(self.snapshot.transport)

    @property
    def uids(self) -> frozenset[str]:
        """The intercepts and wiretaps that want it."""
        snapshot = self.snapshot
        return frozenset({snapshot.global_uid, *snapshot.global_taps, *(rule.uid for rule in snapshot.rules)} - {""})


@dataclass(frozen=True, slots=True)
class PodPlan:
    """A target pod and its ports, sorted."""

    pod: Pod
    ports: tuple[PortPlan, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """The desired state of the node.

    `coverage` maps the uid of each intercept to the pods it covers, whether or not they can be targets; `refusals` maps
    (uid, pod) to the reason why the pod does not serve it; `conditions` are by pod (None: about no pod in particular).
    """

    pods: Mapping[PodKey, PodPlan] = field(default_factory=dict)
    waiting: frozenset[PodKey] = frozenset()
    ended: frozenset[PodKey] = frozenset()
    surveys: Mapping[PodKey, PodSurvey] = field(default_factory=dict)
    coverage: Mapping[str, tuple[PodKey, ...]] = field(default_factory=dict)
    refusals: Mapping[tuple[str, PodKey], str] = field(default_factory=dict)
    conditions: Mapping[PodKey | None, tuple[Condition, ...]] = field(default_factory=dict)


@dataclass(slots=True)
class _Draft:
    """A plan in the making."""

    wanted: dict[PodKey, dict[tuple[int, Transport], list[Intercept]]] = field(default_factory=dict)
    undeclared: dict[PodKey, set[ContainerPort]] = field(default_factory=dict)
    coverage: dict[str, tuple[PodKey, ...]] = field(default_factory=dict)
    refusals: dict[tuple[str, PodKey], str] = field(default_factory=dict)
    conditions: dict[PodKey | None, list[Condition]] = field(default_factory=dict)

    def refuse(self, intercepts: Iterable[Intercept], pod: PodKey, condition: Condition) -> None:
        """Note why a pod does not serve these intercepts."""
        for intercept in intercepts:
            self.refusals.setdefault((intercept.uid, pod), condition.text)
        self.conditions.setdefault(pod, []).append(condition)

    def refuse_pod(self, pod: PodKey, reason: str) -> None:
        """Note why a pod serves no intercept at all."""
        self.refuse(self.everyone(pod), pod, Condition(ConditionType.POD_REFUSED, f"pod {pod}", reason))

    def everyone(self, pod: PodKey) -> list[Intercept]:
        """All intercepts that want a port of this pod."""
        return [intercept for wanting in self.wanted.get(pod, {}).values() for intercept in wanting]


def plan(
    inventory: Inventory,
    intercepts: Iterable[Intercept],
    settings: NodeSettings,
    certificates: Mapping[CertificateKey, CertificateFacts],
    *,
    node_annotations: Mapping[str, str],
    node_addresses: tuple[str, ...] = (),
) -> Plan:
    """Decide what should be steered. `node_addresses` are the node's own, from which kubelet probes come."""
    draft = _Draft()
    for claim in _admitted(intercepts, inventory, draft):
        _spread(claim.intercept, inventory, draft)
    surveys = {
        key: survey(pod, inventory, node_annotations=node_annotations, extra_ports=draft.undeclared.get(key, ()))
        for key, pod in sorted(inventory.pods.items())
        if not pod.ended
    }
    targets = _within_bound(
        [key for key in draft.wanted if _may_be_target(inventory.pods[key], settings, draft)], settings, draft
    )
    pods: dict[PodKey, PodPlan] = {}
    waiting = set()
    for key in sorted(targets):
        found = surveys[key]
        if any(wanted.key not in certificates for wanted in found.certificates()):
            waiting.add(key)
            continue
        ports = _ports(found, draft.wanted[key], certificates, node_addresses=node_addresses, draft=draft)
        if ports:
            pods[key] = PodPlan(found.pod, ports)
    for key, found in surveys.items():
        if found.conditions:
            draft.conditions.setdefault(key, []).extend(found.conditions)
    return Plan(
        pods=pods,
        waiting=frozenset(waiting),
        ended=frozenset(key for key, pod in inventory.pods.items() if pod.ended),
        surveys=surveys,
        coverage=draft.coverage,
        refusals=draft.refusals,
        conditions={key: tuple(dict.fromkeys(stated)) for key, stated in draft.conditions.items()},
    )


# --- which intercepts, which pods -----------------------------------------------------------------------------------


def _admitted(intercepts: Iterable[Intercept], inventory: Inventory, draft: _Draft) -> tuple[Claim, ...]:
    claims = []
    for intercept in sorted(intercepts, key=lambda each: (each.order, each.uid)):
        draft.coverage[intercept.uid] = ()
        try:
            claims.append(claim_of(intercept, inventory))
            draft.coverage[intercept.uid] = tuple(pod.key for pod in pods_of(intercept, inventory))
        except RefusedError as error:
            _state(draft, intercept, str(error))
    standing, refused = admit(claims)
    for claim, refusal in refused:
        _state(draft, claim.intercept, str(refusal))
        for key in draft.coverage[claim.intercept.uid]:
            draft.refusals[claim.intercept.uid, key] = str(refusal)
    return standing


def _state(draft: _Draft, intercept: Intercept, text: str) -> None:
    subject = f"{intercept.kind} {intercept.display}"
    draft.conditions.setdefault(None, []).append(Condition(ConditionType.PORT_UNKNOWN, subject, text))


def _spread(intercept: Intercept, inventory: Inventory, draft: _Draft) -> None:
    """Note which ports of which pods an intercept wants."""
    for key in draft.coverage[intercept.uid]:
        pod = inventory.pods[key]
        try:
            found = resolve_port(intercept.port, pod, inventory.services_of(pod), transport=intercept.transport)
        except RefusedError as error:
            draft.refuse([intercept], key, Condition(ConditionType.PORT_UNKNOWN, f"pod {key}", str(error)))
            continue
        for resolved in found:
            port = resolved.port
            draft.wanted.setdefault(key, {}).setdefault((port.number, port.transport), []).append(intercept)
            if not resolved.declared:
                draft.undeclared.setdefault(key, set()).add(port)


def refusal_of(pod: Pod, settings: NodeSettings) -> str:
    """Why nothing of this pod may be steered on this node; empty when it may."""
    if not settings.enabled:
        return "steering is switched off on this node by its annotation sidestep.dev/enabled"
    if pod.host_network:
        return "the pod uses the host's network; Sidestep steers pods with a network namespace of their own only"
    if not settings.allows(pod.key.namespace):
        return (
            f"namespace {pod.key.namespace} may not be steered on this node "
            f"(annotation sidestep.dev/namespaces: {', '.join(settings.namespaces)})"
        )
    return ""


def _may_be_target(pod: Pod, settings: NodeSettings, draft: _Draft) -> bool:
    reason = refusal_of(pod, settings)
    if reason:
        draft.refuse_pod(pod.key, reason)
    return not reason


def _within_bound(keys: list[PodKey], settings: NodeSettings, draft: _Draft) -> list[PodKey]:
    if settings.max_pods is None or len(keys) <= settings.max_pods:
        return keys
    ordered = sorted(keys, key=lambda key: (min(each.order for each in draft.everyone(key)), key))
    for key in ordered[settings.max_pods :]:
        draft.refuse_pod(
            key, f"the node has its {settings.max_pods} target pods already (annotation sidestep.dev/max-pods)"
        )
    return ordered[: settings.max_pods]


# --- one port -------------------------------------------------------------------------------------------------------


def _ports(
    found: PodSurvey,
    wanted: Mapping[tuple[int, Transport], list[Intercept]],
    certificates: Mapping[CertificateKey, CertificateFacts],
    *,
    node_addresses: tuple[str, ...],
    draft: _Draft,
) -> tuple[PortPlan, ...]:
    ports = []
    for (number, transport), wanting in sorted(wanted.items(), key=lambda item: (item[0][0], item[0][1].value)):
        surveyed = found.port(number, transport)
        if surveyed is None:
            continue
        facts = {
            side: certificates.get(CertificateKey(found.pod.key, number, side), CertificateFacts()) for side in Side
        }
        served = list(wanting)
        reason = filter_refusal(surveyed, facts[Side.DOWNSTREAM])
        if reason:
            served = [intercept for intercept in wanting if not intercept.reads_requests]
            left_out = [intercept for intercept in wanting if intercept.reads_requests]
            if left_out:
                subject = port_subject(found.pod.key, number)
                draft.refuse(left_out, found.pod.key, Condition(_refusal_type(surveyed), subject, reason))
        if served:
            passing = node_addresses if number in found.pod.probe_ports else ()
            whole = [each for each in served if each.kind is Kind.INTERCEPT and each.filter.is_global]
            if passing and whole and not whole[0].divert_probes:
                _state_passing(found.pod.key, number, passing, draft)
            ports.append(_port_plan(surveyed, found.pod, served, facts, passing=passing))
    return tuple(ports)


def _state_passing(pod: PodKey, number: int, addresses: tuple[str, ...], draft: _Draft) -> None:
    text = (
        f"the kubelet probes it, so connections from the node's own addresses ({', '.join(addresses)}) go to the app, "
        "also those of clients whose source was translated to the node's; --divert-probes takes them all"
    )
    condition = Condition(ConditionType.PROBES_PASSED, port_subject(pod, number), text)
    draft.conditions.setdefault(pod, []).append(condition)


def filter_refusal(surveyed: PortSurvey, downstream: CertificateFacts | None) -> str:
    """Why an HTTP filter cannot be served on this port; empty when it can."""
    if surveyed.protocol.refusal:
        return surveyed.protocol.refusal
    unverifiable = _cannot_verify_clients(surveyed, downstream)
    if unverifiable:
        return unverifiable
    if surveyed.protocol.tls is Use.ALWAYS and not (downstream and downstream.identity):
        source = surveyed.tls.downstream
        named = f" ({source.annotation} {source.value!r})" if source is not None else ""
        reason = (downstream and downstream.problem) or "it has not been read yet"
        return f"port {surveyed.port.number} speaks TLS and its certificate{named} cannot be used: {reason}"
    return ""


def _cannot_verify_clients(surveyed: PortSurvey, downstream: CertificateFacts | None) -> str:
    """Why clients cannot be verified although somebody asked for it: then nothing may be opened."""
    tls = surveyed.tls
    if tls.client_auth not in (ClientAuth.REQUIRE, ClientAuth.REQUEST):
        return ""
    if downstream is None or not downstream.identity or downstream.trust:
        return ""
    number = surveyed.port.number
    source = tls.downstream
    named = f" ({source.annotation} {source.value!r})" if source is not None else ""
    return (
        f"{CLIENT_AUTH}.{number} {tls.client_auth.value!r} wants clients to be verified, and the downstream "
        f"certificate of port {number}{named} comes with no ca.crt to verify them against"
    )


def _refusal_type(surveyed: PortSurvey) -> ConditionType:
    if surveyed.protocol.tls is not Use.NEVER:
        return ConditionType.NO_CERTIFICATE
    return ConditionType.PROTOCOL_CONTRADICTION


def _process_of_app(pod: Pod) -> str:
    """Changes when a container of the pod is started anew."""
    return " ".join(f"{name}={pid}" for name, pid in sorted(pod.location.pids.items()))


def _port_plan(
    surveyed: PortSurvey,
    pod: Pod,
    wanting: list[Intercept],
    facts: Mapping[Side, CertificateFacts],
    *,
    passing: tuple[str, ...],
) -> PortPlan:
    """`wanting` is not empty, admitted, oldest first."""
    whole = next((each for each in wanting if each.kind is Kind.INTERCEPT and each.filter.is_global), None)
    rules = tuple(_rule(each) for each in wanting if each.reads_requests)
    whole_taps = (each.uid for each in wanting if each.kind is Kind.WIRETAP and not each.reads_requests)
    # What is carried unparsed is not opened: no key travels for it.
    none = CertificateFacts()
    downstream, upstream = (facts[Side.DOWNSTREAM], facts[Side.UPSTREAM]) if rules else (none, none)
    # A trust of the upstream side verifies the app; without one the CA of the downstream certificate is the best guess.
    trust = upstream.trust or downstream.trust
    tls = surveyed.tls
    snapshot = PortSnapshot(
        number=surveyed.port.number,
        transport=surveyed.port.transport.value,
        tls=surveyed.protocol.tls.value,
        http2=surveyed.protocol.http2.value,
        rules=rules,
        global_uid=whole.uid if whole is not None else "",
        global_display=whole.display if whole is not None else "",
        global_taps=tuple(sorted(whole_taps)),
        pass_sources=passing if whole is not None and not whole.divert_probes else (),
        identity=downstream.identity,
        client_trust=downstream.trust if downstream.identity else "",
        client_auth=tls.client_auth.value,
        upstream_identity=upstream.identity,
        upstream_trust=trust,
        upstream_name=downstream.dns_name,
        skip_verify=tls.skip_verify,
        forward_client_cert=tls.forward_client_cert,
        probe_timeout=tls.probe_timeout,
        app=_process_of_app(pod),
    )
    resets = frozenset(each.uid for each in wanting if each.reset_existing)
    return PortPlan(snapshot, needs_app=whole is None, resets=resets)


def _rule(intercept: Intercept) -> RuleSnapshot:
    return RuleSnapshot(
        uid=intercept.uid,
        display=intercept.display,
        kind=intercept.kind.value,
        conditions=tuple(ConditionSnapshot(*row) for row in to_rows(intercept.filter)),
        divert_probes=intercept.divert_probes,
        heads_only=intercept.heads_only,
    )
