"""Decides what should be steered on this node: pods, intercepts, settings and certificates in, a `Plan` out.

Pure and deterministic: the same input gives equal plans, and everything in a plan is sorted. The reconciler applies a
plan and decides nothing.

For each pod that may be a target (it has not ended, has a network namespace of its own, is in an allowed namespace and
within `max-pods`) the plan holds the `PortSnapshot` of every port that an admitted intercept or wiretap wants and that
can serve it. What cannot be served is left out and becomes a condition: a bad port never disables a good one.

- Intercepts are admitted oldest first (`policy.conflicts.admit`): sessions are checked when they begin, but two of them
  may come to mean the same port later, when a Service changes.
- An HTTP filter reads requests. It is left out where the port's protocol rules HTTP out, and where the port always
  speaks TLS and has no usable certificate: steering such a port would only add a hop.
- A port whose app is told who its clients are (`forward-client-cert`) is opened for everyone who steers it. Where it
  cannot be opened, nobody steers it, and clients reach the app directly.
- A certificate is wanted if somebody wants requests of its port to be read, or the port must be opened. A pod with a
  certificate that nobody has looked for yet is in `waiting`: it keeps its present plan.
- What is not there *yet* is `pending`, and no condition: a pod that the runtime has not started, and a port whose
  certificate lies in a container without processes. Other ports of the pod do not wait for it.
- With `max-pods`, the pods of older intercepts come first: a new session never takes a target from an old one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sidestep.model.condition import Condition, ConditionType
from sidestep.model.errors import RefusedError
from sidestep.model.intercept import Intercept, Kind
from sidestep.model.pod import ContainerPort, PodKey, Transport
from sidestep.node.planning.plan import CertificateFacts, Plan, PodPlan, PortPlan
from sidestep.node.planning.port_plan import PortPlans
from sidestep.node.planning.refusals import opening_pending, opening_refusal, refusal_of, refusal_type
from sidestep.node.planning.surveys import Surveys
from sidestep.policy.conflicts import Claim, admit, claim_of
from sidestep.policy.pod_ports import ports_of
from sidestep.policy.survey import CertificateKey, PodSurvey, PortSurvey, Side, WantedCertificate, port_subject
from sidestep.policy.workloads import pods_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sidestep.config.node_settings import NodeSettings
    from sidestep.model.inventory import Inventory
    from sidestep.model.pod import Pod


@dataclass(slots=True)
class _Draft:
    """A plan in the making."""

    port_plans: PortPlans
    wanted: dict[PodKey, dict[tuple[int, Transport], list[Intercept]]] = field(default_factory=dict)
    undeclared: dict[PodKey, set[ContainerPort]] = field(default_factory=dict)
    coverage: dict[str, tuple[PodKey, ...]] = field(default_factory=dict)
    refusals: dict[tuple[str, PodKey], str] = field(default_factory=dict)
    pending: dict[tuple[str, PodKey], str] = field(default_factory=dict)
    conditions: dict[PodKey | None, list[Condition]] = field(default_factory=dict)

    def refuse(self, intercepts: Iterable[Intercept], pod: PodKey, condition: Condition) -> None:
        """Note why a pod does not serve these intercepts."""
        for intercept in intercepts:
            self.refusals.setdefault((intercept.uid, pod), condition.text)
        self.conditions.setdefault(pod, []).append(condition)

    def wait(self, intercepts: Iterable[Intercept], pod: PodKey, reason: str) -> None:
        """Note why a pod does not serve these intercepts yet."""
        for intercept in intercepts:
            self.pending.setdefault((intercept.uid, pod), reason)

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
    surveys: Surveys | None = None,
    port_plans: PortPlans | None = None,
) -> Plan:
    """Decide what should be steered. `node_addresses` are the node's own, from which kubelet probes come.

    `surveys` and `port_plans` are those of earlier plans, which change what a plan costs and never what it says.
    """
    surveys = Surveys() if surveys is None else surveys
    draft = _Draft(port_plans=PortPlans() if port_plans is None else port_plans)
    draft.port_plans.begin()
    for claim in _admitted(intercepts, inventory, draft):
        _spread(claim.intercept, inventory, draft)
    surveyed = {
        pod.key: surveys.of(
            pod, inventory, node_annotations=node_annotations, extra_ports=draft.undeclared.get(pod.key, ())
        )
        for pod in inventory.index.living
    }
    surveys.keep_only(surveyed)
    targets = _within_bound(
        [key for key in draft.wanted if _may_be_target(inventory.pods[key], settings, draft)], settings, draft
    )
    pods: dict[PodKey, PodPlan] = {}
    waiting = set()
    needed: list[WantedCertificate] = []
    for key in sorted(targets):
        found = surveyed[key]
        opened = _opened(found, draft.wanted[key])
        mine = [wanted for wanted in found.certificates() if wanted.key.port in opened]
        needed += mine
        if not found.pod.started:
            waiting.add(key)
            draft.wait(draft.everyone(key), key, "the pod has not been started yet")
            continue
        if any(wanted.key not in certificates for wanted in mine):
            waiting.add(key)
            draft.wait(draft.everyone(key), key, "its certificate has not been read yet")
            continue
        ports = _ports(found, draft.wanted[key], certificates, node_addresses=node_addresses, draft=draft)
        if ports:
            pods[key] = PodPlan(found.pod, ports)
    for key, found in surveyed.items():
        if found.conditions:
            draft.conditions.setdefault(key, []).extend(found.conditions)
    return Plan(
        pods=pods,
        waiting=frozenset(waiting),
        ended=frozenset(key for key, pod in inventory.pods.items() if pod.ended),
        surveys=surveyed,
        coverage=draft.coverage,
        refusals=draft.refusals,
        pending=draft.pending,
        conditions={key: tuple(dict.fromkeys(stated)) for key, stated in draft.conditions.items()},
        certificates=tuple(needed),
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
            found = ports_of(pod, inventory).resolve(intercept.port, transport=intercept.transport)
        except RefusedError as error:
            draft.refuse([intercept], key, Condition(ConditionType.PORT_UNKNOWN, f"pod {key}", str(error)))
            continue
        for resolved in found:
            port = resolved.port
            draft.wanted.setdefault(key, {}).setdefault((port.number, port.transport), []).append(intercept)
            if not resolved.declared:
                draft.undeclared.setdefault(key, set()).add(port)


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


def _opened(found: PodSurvey, wanted: Mapping[tuple[int, Transport], list[Intercept]]) -> frozenset[int]:
    """The TCP ports whose requests are read; what is carried unparsed needs no key."""
    return frozenset(
        number
        for (number, transport), wanting in wanted.items()
        if transport is Transport.TCP
        and (any(each.reads_requests for each in wanting) or _must_be_opened(found, number))
    )


def _must_be_opened(found: PodSurvey, number: int) -> bool:
    surveyed = found.port(number, Transport.TCP)
    return surveyed is not None and surveyed.must_be_opened


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
        served = _served(surveyed, found.pod.key, wanting, facts, draft)
        if served:
            passing = node_addresses if number in found.pod.probe_ports else ()
            whole = [each for each in served if each.kind is Kind.INTERCEPT and each.filter.is_global]
            if passing and whole and not whole[0].divert_probes:
                _state_passing(found.pod.key, number, passing, draft)
            ports.append(draft.port_plans.of(surveyed, found.pod, served, facts, passing=passing))
    return tuple(ports)


def _served(
    surveyed: PortSurvey,
    pod: PodKey,
    wanting: list[Intercept],
    facts: Mapping[Side, CertificateFacts],
    draft: _Draft,
) -> list[Intercept]:
    """Return those who can be served now; note for the others why not, or why not yet."""
    not_yet = surveyed.protocol.refusal == "" and opening_pending(surveyed, facts)
    reason = "" if not_yet else opening_refusal(surveyed, facts[Side.DOWNSTREAM])
    if not not_yet and not reason:
        return list(wanting)
    left_out = [each for each in wanting if each.reads_requests or surveyed.must_be_opened]
    if not_yet:
        draft.wait(left_out, pod, not_yet)
    elif left_out:
        subject = port_subject(pod, surveyed.port.number)
        draft.refuse(left_out, pod, Condition(refusal_type(surveyed), subject, reason))
    return [each for each in wanting if each not in left_out]


def _state_passing(pod: PodKey, number: int, addresses: tuple[str, ...], draft: _Draft) -> None:
    text = (
        f"the kubelet probes it, so connections from the node's own addresses ({', '.join(addresses)}) go to the app, "
        "also those of clients whose source was translated to the node's; --divert-probes takes them all"
    )
    condition = Condition(ConditionType.PROBES_PASSED, port_subject(pod, number), text)
    draft.conditions.setdefault(pod, []).append(condition)
