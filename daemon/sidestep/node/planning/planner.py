"""Decides what should be steered on this node: pods, intercepts, settings and certificates in, a `Plan` out.

Pure and deterministic: the same input gives equal plans, and everything in a plan is sorted. The reconciler applies a
plan and decides nothing.

For each pod that may be a target (it has not ended, has a network namespace of its own, is in an allowed namespace and
within `max-pods`) the plan holds the `PortSnapshot` of every port that an admitted intercept or wiretap wants and that
can serve it, and of every port to which an inspection policy applies (`inspection`). What cannot be served is left out
and becomes a condition: a bad port never disables a good one.

- Intercepts are admitted oldest first (`policy.conflicts.admit`): sessions are checked when they begin, but two of them
  may come to mean the same port later, when a Service changes.
- An HTTP filter reads requests. It is left out where the port's protocol rules HTTP out, and where the port always
  speaks TLS and has no usable certificate: steering such a port would only add a hop.
- A port whose app is told who its clients are (`forward-client-cert`) is opened for everyone who steers it. Where it
  cannot be opened, nobody steers it, and clients reach the app directly.
- A certificate is wanted if somebody wants requests of its port to be read, or the port must be opened. A pod with a
  certificate that nobody has looked for yet is in `waiting`: it keeps its present plan, but no port stays closed that
  its policies do not close any more (`Plan.closing`).
- What is not there *yet* is `pending`, and no condition: a pod that the runtime has not started, and a port whose
  certificate lies in a container without processes. Other ports of the pod do not wait for it.
- With `max-pods`, pods with inspection policies come first, the strictest before others, so that no session takes a
  target from a policy. Then come the pods of older intercepts: a new session never takes a target from an old one.
- A policy steers its ports whether or not their TLS can be opened: what cannot be read is passed through and counted,
  or closed, by the pod proxy. The exception is a port whose app is told who its clients are: where that cannot be
  opened, it is steered only for a policy that fails closed.
- On a port with a policy that enforces, a global intercept is refused, whichever is older: it would be carried unread.
  One that is refused everywhere stands in no other intercept's way.
- Where a policy enforces rules about connections that pods make, an access that may make some is refused: its
  connections, which the pod's proxy makes, are not steered to the policy.
- A policy about connections that pods make, or a session that listens to them, makes a target of each pod that it
  means, with or without steered ports. So does an access that may make connections (`Allow.NETWORK`); another access
  needs no proxy, and is refused or waits by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from sidestep.config.annotation_names import INSPECTION
from sidestep.model.condition import Condition, ConditionType
from sidestep.model.errors import RefusedError
from sidestep.model.intercept import Allow, Intercept
from sidestep.model.pod import ContainerPort, PodKey, Transport
from sidestep.node.planning.egress import certificates_of, outward, with_credentials
from sidestep.node.planning.inspection import (
    InspectedPod,
    Placements,
    Policies,
    closes,
    enforcing,
    filter_refusal,
    intercept_refusal,
    is_overruled,
    strictness,
)
from sidestep.node.planning.plan import CertificateFacts, Plan, PodPlan, PortPlan
from sidestep.node.planning.port_plan import PortPlans, listened
from sidestep.node.planning.refusals import opening_pending, opening_refusal, refusal_of, refusal_type
from sidestep.node.planning.surveys import Surveys
from sidestep.node.planning.workers import workers_of
from sidestep.policy.conflicts import Claim, admit, claim_of
from sidestep.policy.pod_access import why_not_yet, why_unusable
from sidestep.policy.pod_ports import ports_of
from sidestep.policy.survey import CertificateKey, PodSurvey, PortSurvey, Side, WantedCertificate, port_subject
from sidestep.policy.workloads import pods_of
from sidestep.snapshots.access import AccessSnapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from sidestep.config.node_settings import NodeSettings
    from sidestep.model.inventory import Inventory
    from sidestep.model.pod import Pod


@dataclass(slots=True)
class _Draft:
    """A plan in the making."""

    port_plans: PortPlans
    wanted: dict[PodKey, dict[tuple[int, Transport], list[Intercept]]] = field(default_factory=dict)
    inspected: dict[PodKey, InspectedPod] = field(default_factory=dict)
    outward: dict[PodKey, Policies] = field(default_factory=dict)
    listening: dict[PodKey, list[Intercept]] = field(default_factory=dict)
    """Sessions that listen to connections that pods make."""
    connecting: dict[PodKey, list[Intercept]] = field(default_factory=dict)
    """Accesses that may make connections."""
    undeclared: dict[PodKey, set[ContainerPort]] = field(default_factory=dict)
    coverage: dict[str, tuple[PodKey, ...]] = field(default_factory=dict)
    refusals: dict[tuple[str, PodKey], str] = field(default_factory=dict)
    pending: dict[tuple[str, PodKey], str] = field(default_factory=dict)
    not_inspected: dict[tuple[str, PodKey], str] = field(default_factory=dict)
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
        """Note why a pod serves no intercept, and is not inspected at all."""
        if pod in self.wanted or pod in self.listening or pod in self.connecting:
            self.refuse(self.everyone(pod), pod, Condition(ConditionType.POD_REFUSED, f"pod {pod}", reason))
        if pod in self.inspected or pod in self.outward:
            self.leave_out(pod, f"pod {pod}", self.policies(pod), reason)

    def leave_out(self, pod: PodKey, subject: str, policies: Iterable[str], reason: str) -> None:
        """Note why policies, given by their names, are not carried out in a pod or on one of its ports."""
        names = list(policies)
        for name in names:
            self.not_inspected.setdefault((name, pod), reason)
        text = f"not inspected by {', '.join(names)}: {reason}"
        self.conditions.setdefault(pod, []).append(Condition(ConditionType.NOT_INSPECTED, subject, text))

    def policies(self, pod: PodKey) -> list[str]:
        """The names of all policies that apply to ports of this pod, or to connections that it makes."""
        found = self.inspected.get(pod, InspectedPod())
        applying = [each for policies in (*found.ports.values(), self.outward.get(pod, ())) for each in policies]
        return list(dict.fromkeys(each.display for each in applying))

    def everyone(self, pod: PodKey) -> list[Intercept]:
        """All intercepts that want a port of this pod, the connections that it makes, or to make some there."""
        ports = [intercept for wanting in self.wanted.get(pod, {}).values() for intercept in wanting]
        return [*ports, *self.listening.get(pod, ()), *self.connecting.get(pod, ())]


def plan(
    inventory: Inventory,
    intercepts: Iterable[Intercept],
    settings: NodeSettings,
    certificates: Mapping[CertificateKey, CertificateFacts],
    *,
    node_annotations: Mapping[str, str],
    node_addresses: tuple[str, ...] = (),
    policies: Policies = (),
    surveys: Surveys | None = None,
    port_plans: PortPlans | None = None,
    placements: Placements | None = None,
) -> Plan:
    """Decide what should be steered. `node_addresses` are the node's own, from which kubelet probes come.

    `surveys`, `port_plans` and `placements` are those of earlier plans, which change what a plan costs and never what
    it says.
    """
    surveys = Surveys() if surveys is None else surveys
    draft = _Draft(port_plans=PortPlans() if port_plans is None else port_plans)
    draft.port_plans.begin()
    placements = Placements() if placements is None else placements
    placed = placements.of(inventory, policies)
    enforced = placed if settings.inspection else {}
    look = partial(surveys.of, inventory=inventory, node_annotations=node_annotations, keep=False)
    for intercept in _admitted(
        intercepts, inventory, draft, lambda each: is_overruled(each, inventory, enforced, look)
    ):
        if intercept.allow:
            _give_access(intercept, inventory, settings, draft)
        else:
            _spread(intercept, inventory, draft)
    for key, meant in placements.undeclared.items():
        draft.undeclared.setdefault(key, set()).update(meant)
    surveyed = {
        pod.key: surveys.of(
            pod, inventory, node_annotations=node_annotations, extra_ports=draft.undeclared.get(pod.key, ())
        )
        for pod in inventory.index.living
    }
    surveys.keep_only(surveyed)
    _inspect(placed, surveyed, settings, draft, placements)
    _refuse_uninspected(draft)
    steered = sorted(
        draft.wanted.keys()
        | draft.listening.keys()
        | draft.connecting.keys()
        | draft.inspected.keys()
        | draft.outward.keys()
    )
    targets = _within_bound(
        [key for key in steered if _may_be_target(inventory.pods[key], settings, draft)], settings, draft
    )
    pods: dict[PodKey, PodPlan] = {}
    waiting = set()
    needed: list[WantedCertificate] = []
    for key in sorted(targets):
        found = surveyed[key]
        _refuse_global(key, draft)
        _refuse_filters(key, draft)
        opened = _opened(found, draft)
        mine = [wanted for wanted in found.certificates() if wanted.key.port in opened]
        mine += certificates_of(key, draft.outward.get(key, ()))
        needed += mine
        if not found.pod.started:
            waiting.add(key)
            draft.wait(draft.everyone(key), key, "the pod has not been started yet")
            continue
        if any(wanted.key not in certificates for wanted in mine):
            waiting.add(key)
            draft.wait(draft.everyone(key), key, "its certificate has not been read yet")
            continue
        ports = _ports(found, certificates, node_addresses=node_addresses, draft=draft)
        egress = with_credentials(key, draft.outward.get(key, ()), certificates)
        outbound = listened(draft.listening.get(key, ()))
        access = tuple(AccessSnapshot(each.uid, each.allow_loopback) for each in draft.connecting.get(key, ()))
        if ports or egress or access or outbound is not None:
            workers, fewer = workers_of(found.pod, found.workers, settings.proxy_workers, ports, egress, outbound)
            pods[key] = PodPlan(found.pod, ports, egress, outbound, access, workers, fewer)
    for key, found in surveyed.items():
        if found.conditions:
            draft.conditions.setdefault(key, []).extend(found.conditions)
    return Plan(
        pods=pods,
        waiting=frozenset(waiting),
        closing={key: draft.inspected[key].closing for key in waiting if key in draft.inspected},
        ended=frozenset(key for key, pod in inventory.pods.items() if pod.ended),
        surveys=surveyed,
        coverage=draft.coverage,
        refusals=draft.refusals,
        pending=draft.pending,
        inspected={
            key: {number: tuple(each.display for each in applying) for number, applying in found.ports.items()}
            for key, found in draft.inspected.items()
        },
        outward={key: tuple(each.display for each in applying) for key, applying in draft.outward.items()},
        not_inspected=draft.not_inspected,
        namespace_labels={
            name: inventory.labels_of(name) for name in {key.namespace for key in surveyed if inventory.policies}
        },
        conditions={key: tuple(dict.fromkeys(stated)) for key, stated in draft.conditions.items()},
        certificates=tuple(needed),
    )


# --- which intercepts, which pods -----------------------------------------------------------------------------------


def _admitted(
    intercepts: Iterable[Intercept], inventory: Inventory, draft: _Draft, is_overruled: Callable[[Intercept], bool]
) -> list[Intercept]:
    """The intercepts that stand, oldest first, and those that policies overrule: they are refused later, pod by pod."""
    claims: list[Claim] = []
    overruled = []
    for intercept in sorted(intercepts, key=lambda each: (each.order, each.uid)):
        draft.coverage[intercept.uid] = ()
        try:
            claim = claim_of(intercept, inventory)
            if is_overruled(intercept):
                overruled.append(intercept)
            else:
                claims.append(claim)
            draft.coverage[intercept.uid] = tuple(pod.key for pod in pods_of(intercept, inventory))
        except RefusedError as error:
            _state(draft, intercept, str(error))
    standing, refused = admit(claims)
    for claim, refusal in refused:
        _state(draft, claim.intercept, str(refusal))
        for key in draft.coverage[claim.intercept.uid]:
            draft.refusals[claim.intercept.uid, key] = str(refusal)
    return [*(claim.intercept for claim in standing), *overruled]


def _state(draft: _Draft, intercept: Intercept, text: str) -> None:
    subject = f"{intercept.session_kind} {intercept.display}"
    draft.conditions.setdefault(None, []).append(Condition(ConditionType.PORT_UNKNOWN, subject, text))


def _spread(intercept: Intercept, inventory: Inventory, draft: _Draft) -> None:
    """Note which ports of which pods an intercept wants."""
    for key in draft.coverage[intercept.uid]:
        if intercept.egress:
            draft.listening.setdefault(key, []).append(intercept)
            continue
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


def _give_access(access: Intercept, inventory: Inventory, settings: NodeSettings, draft: _Draft) -> None:
    """Note which pods' world a session may use, and why not, or not yet, that of others."""
    for key in draft.coverage[access.uid]:
        pod = inventory.pods[key]
        reason = refusal_of(pod, settings) or why_unusable(access, pod)
        if reason:
            draft.refuse([access], key, Condition(ConditionType.POD_REFUSED, f"pod {key}", reason))
            continue
        if not_yet := why_not_yet(access, pod):
            draft.wait([access], key, not_yet)
        if Allow.NETWORK in access.allow:
            draft.connecting.setdefault(key, []).append(access)


def _inspect(
    placed: Mapping[PodKey, Policies],
    surveyed: Mapping[PodKey, PodSurvey],
    settings: NodeSettings,
    draft: _Draft,
    placements: Placements,
) -> None:
    """Note which policies apply to which ports of which pods, and why others do not."""
    if not settings.inspection:
        reason = f"inspection is switched off on this node by its annotation {INSPECTION}"
        for key, selecting in placed.items():
            draft.leave_out(key, f"pod {key}", [each.display for each in selecting], reason)
        return
    for key, found in placements.inspected(placed, surveyed).items():
        for reason, names in found.problems.items():
            draft.leave_out(key, f"pod {key}", names, reason)
        if found.ports:
            draft.inspected[key] = found
    for key, selecting in placed.items():
        applying, problems = outward(selecting)
        if applying:
            draft.outward[key] = applying
        for reason, names in problems.items():
            draft.leave_out(key, f"pod {key}", names, reason)


def _refuse_uninspected(draft: _Draft) -> None:
    """Refuse accesses that make connections in pods whose connections a policy judges: theirs would not be."""
    for key in draft.connecting.keys() & draft.outward.keys():
        strict = enforcing(draft.outward[key])
        if strict is not None:
            refused = draft.connecting.pop(key)
            text = f"{strict.display} enforces rules about the pod's connections, and does not see those of an access"
            draft.refuse(refused, key, Condition(ConditionType.POLICY_ENFORCED, f"pod {key}", text))


def _refuse_global(key: PodKey, draft: _Draft) -> None:
    """Refuse global intercepts on ports where a policy enforces."""
    inspected = draft.inspected.get(key)
    for number, applying in inspected.ports.items() if inspected is not None else ():
        strict = enforcing(applying)
        wanting = draft.wanted.get(key, {}).get((number, Transport.TCP))
        if strict is None or not wanting:
            continue
        refused = [each for each in wanting if each.takes_whole]
        if refused:
            text = intercept_refusal(strict.policy, number)
            draft.refuse(refused, key, Condition(ConditionType.POLICY_ENFORCED, port_subject(key, number), text))
            draft.wanted[key][number, Transport.TCP] = [each for each in wanting if each not in refused]


def _refuse_filters(key: PodKey, draft: _Draft) -> None:
    """Refuse inspections on ports where their filter asks for what a policy redacts."""
    inspected = draft.inspected.get(key)
    for number, applying in inspected.ports.items() if inspected is not None else ():
        for each in [*draft.wanted.get(key, {}).get((number, Transport.TCP), ())]:
            if text := filter_refusal(each, applying, number):
                draft.refusals.setdefault((each.uid, key), text)
                draft.wanted[key][number, Transport.TCP].remove(each)


def _may_be_target(pod: Pod, settings: NodeSettings, draft: _Draft) -> bool:
    reason = refusal_of(pod, settings)
    if reason:
        draft.refuse_pod(pod.key, reason)
    return not reason


def _within_bound(keys: list[PodKey], settings: NodeSettings, draft: _Draft) -> list[PodKey]:
    if settings.max_pods is None or len(keys) <= settings.max_pods:
        return keys
    ordered = sorted(keys, key=lambda key: (*_precedence(key, draft), key))
    for key in ordered[settings.max_pods :]:
        draft.refuse_pod(
            key, f"the node has its {settings.max_pods} target pods already (annotation sidestep.dev/max-pods)"
        )
    return ordered[: settings.max_pods]


def _precedence(key: PodKey, draft: _Draft) -> tuple[int, tuple[float, str, str]]:
    """Sort key of a pod among those that want to be targets."""
    if key in draft.inspected or key in draft.outward:
        outwards = strictness(each.policy.outward or each.policy for each in draft.outward.get(key, ()))
        inwards = draft.inspected[key].strictness if key in draft.inspected else 0
        return -1 - max(inwards, outwards), (0.0, "", "")
    return 0, min(each.order for each in draft.everyone(key))


def _opened(found: PodSurvey, draft: _Draft) -> frozenset[int]:
    """The TCP ports whose requests are read; what is carried unparsed needs no key."""
    key = found.pod.key
    opened = set(draft.inspected[key].ports) if key in draft.inspected else set()
    for (number, transport), wanting in draft.wanted.get(key, {}).items():
        reads = any(each.wants_opened for each in wanting)
        if transport is Transport.TCP and wanting and (reads or _must_be_opened(found, number)):
            opened.add(number)
    return frozenset(opened)


def _must_be_opened(found: PodSurvey, number: int) -> bool:
    surveyed = found.port(number, Transport.TCP)
    return surveyed is not None and surveyed.must_be_opened


# --- one port -------------------------------------------------------------------------------------------------------


def _ports(
    found: PodSurvey,
    certificates: Mapping[CertificateKey, CertificateFacts],
    *,
    node_addresses: tuple[str, ...],
    draft: _Draft,
) -> tuple[PortPlan, ...]:
    key = found.pod.key
    wanted = draft.wanted.get(key, {})
    inspected = draft.inspected.get(key, InspectedPod()).ports
    places = wanted.keys() | {(number, Transport.TCP) for number in inspected}
    ports = []
    for number, transport in sorted(places, key=lambda place: (place[0], place[1].value)):
        surveyed = found.port(number, transport)
        if surveyed is None:
            continue
        facts: Mapping[Side, CertificateFacts] = {
            side: certificates.get(CertificateKey(key, number, side), CertificateFacts()) for side in Side
        }
        served = _served(surveyed, key, wanted.get((number, transport), []), facts, draft)
        applying: Policies = ()
        if transport is Transport.TCP and number in inspected:
            applying, facts = _applying(surveyed, key, inspected[number], facts, draft)
        if served or applying:
            passing = node_addresses if number in found.pod.probe_ports else ()
            whole = [each for each in served if each.takes_whole]
            if passing and whole and not whole[0].divert_probes:
                _state_passing(key, number, passing, draft)
            plans = draft.port_plans
            ports.append(plans.of(surveyed, found.pod, served, facts, passing=passing, policies=applying))
    return tuple(ports)


def _applying(
    surveyed: PortSurvey, pod: PodKey, policies: Policies, facts: Mapping[Side, CertificateFacts], draft: _Draft
) -> tuple[Policies, Mapping[Side, CertificateFacts]]:
    """Return the policies for which the port is steered, and the certificates with which it can be opened.

    A port that cannot be opened is steered without certificates, and a condition says so.
    """
    reason = "" if surveyed.protocol.refusal else opening_pending(surveyed, facts)
    reason = reason or opening_refusal(surveyed, facts)
    if not reason:
        return policies, facts
    subject = port_subject(pod, surveyed.port.number)
    draft.leave_out(pod, subject, [each.display for each in policies], reason)
    if surveyed.must_be_opened and not closes(policies):
        policies = ()
    return policies, dict.fromkeys(Side, CertificateFacts())


def _served(
    surveyed: PortSurvey,
    pod: PodKey,
    wanting: list[Intercept],
    facts: Mapping[Side, CertificateFacts],
    draft: _Draft,
) -> list[Intercept]:
    """Return those who can be served now; note for the others why not, or why not yet."""
    if not wanting:
        return []
    not_yet = surveyed.protocol.refusal == "" and opening_pending(surveyed, facts)
    reason = "" if not_yet else opening_refusal(surveyed, facts)
    if not not_yet and not reason:
        return list(wanting)
    left_out = [
        each for each in wanting if each.reads_requests or surveyed.must_be_opened or (not_yet and each.wants_opened)
    ]
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
