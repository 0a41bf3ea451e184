"""Checks whether an intercept may begin, before anything is changed for it. Pure; raises the reason why not.

The planner leaves out what cannot be served and states a condition; a person who waits at a command line gets the
reason at once instead. A workload of which *some* pods can serve the intercept is accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

from sidestep.config.node_settings import NodeSettings
from sidestep.model.errors import RefusedError
from sidestep.model.intercept import Intercept
from sidestep.model.inventory import Inventory
from sidestep.model.pod import Pod, PodKey, Transport
from sidestep.node.planning.inspection import (
    Policies,
    enforcing,
    filter_refusal,
    inspected_pod,
    intercept_refusal,
    is_overruled,
)
from sidestep.node.planning.plan import CertificateFacts
from sidestep.node.planning.refusals import opening_refusal, refusal_of
from sidestep.node.planning.surveys import Surveys
from sidestep.policy.conflicts import Claim, check, claim_of
from sidestep.policy.matching import prove
from sidestep.policy.pod_access import why_unusable
from sidestep.policy.pod_ports import ports_of
from sidestep.policy.survey import CertificateKey, PodSurvey, Side, WantedCertificate
from sidestep.policy.workloads import pods_of

MAX_PREPARED = 8
"""Pods whose certificates are read before an intercept is answered; the others' are read while it begins."""


def admit(
    new: Intercept,
    existing: Iterable[Intercept],
    inventory: Inventory,
    settings: NodeSettings,
    certificates: Mapping[CertificateKey, CertificateFacts],
    *,
    node_annotations: Mapping[str, str],
    policies: Mapping[PodKey, Policies] | None = None,
    surveys: Surveys | None = None,
) -> tuple[Pod, ...]:
    """Judge a new intercept beside the existing ones; returns the pods that would serve it.

    `policies` are those that select each pod.

    No pods: the workload has none now. Raises RefusedError (a rule says no) or ConfigurationError (a bad filter).
    """
    prove(new.filter)
    look = partial((surveys or Surveys()).of, inventory=inventory, node_annotations=node_annotations, keep=False)
    claim = claim_of(new, inventory)
    pods = pods_of(new, inventory)
    able, reasons = [], []
    for pod in pods:
        selecting = (policies or {}).get(pod.key, ()) if settings.inspection else ()
        reason = refusal_of(pod, settings) or (
            why_unusable(new, pod) if new.allow else _port_refusal(new, pod, inventory, certificates, look, selecting)
        )
        if reason:
            reasons.append(reason)
        else:
            able.append(pod)
    if reasons and not able:
        raise RefusedError(reasons[0])
    enforced = (policies or {}) if settings.inspection else {}
    rivals = [each for each in existing if not is_overruled(each, inventory, enforced, look)]
    check(claim, _claims(rivals, inventory))
    return tuple(able)


def certificates_of(
    new: Intercept, inventory: Inventory, *, node_annotations: Mapping[str, str], surveys: Surveys
) -> tuple[WantedCertificate, ...]:
    """The certificates that an intercept would need; none where it cannot be served anyway."""
    found: list[WantedCertificate] = []
    if new.transport is not Transport.TCP or not new.has_port:
        return ()
    try:
        claim_of(new, inventory)
        pods = pods_of(new, inventory)
    except RefusedError:
        return ()
    for pod in pods[:MAX_PREPARED]:
        try:
            resolved = ports_of(pod, inventory).resolve(new.port, transport=new.transport)
        except RefusedError:
            continue
        ports = [each.port for each in resolved]
        numbers = {port.number for port in ports}
        surveyed = surveys.of(pod, inventory, node_annotations=node_annotations, extra_ports=ports, keep=False)
        if not new.wants_opened:
            numbers &= {each.port.number for each in surveyed.ports if each.must_be_opened}
        found += [each for each in surveyed.certificates() if each.key.port in numbers]
    return tuple(found)


def _port_refusal(
    new: Intercept,
    pod: Pod,
    inventory: Inventory,
    certificates: Mapping[CertificateKey, CertificateFacts],
    look: Callable[..., PodSurvey],
    selecting: Policies,
) -> str:
    if new.egress:
        return ""
    try:
        resolved = ports_of(pod, inventory).resolve(new.port, transport=new.transport)
    except RefusedError as error:
        return str(error)
    ports = [each.port for each in resolved]
    found = look(pod, extra_ports=ports)
    for port in ports:
        surveyed = found.port(port.number, port.transport)
        if selecting and port.transport is Transport.TCP and (new.takes_whole or new.records):
            applying = inspected_pod(found, selecting).ports.get(port.number, ())
            strict = enforcing(applying) if new.takes_whole else None
            if strict is not None:
                return intercept_refusal(strict.policy, port.number)
            if hidden := filter_refusal(new, applying, port.number):
                return hidden
        if surveyed is None or not (new.reads_requests or surveyed.must_be_opened):
            continue
        keys = {side: CertificateKey(pod.key, port.number, side) for side in Side}
        facts = {side: certificates[key] for side, key in keys.items() if key in certificates}
        downstream = facts.get(Side.DOWNSTREAM)
        # A certificate that has not been read, or is not there yet, is given the benefit of the doubt.
        unknown = surveyed.tls.downstream is not None and (downstream is None or downstream.pending != "")
        reason = surveyed.protocol.refusal if unknown else opening_refusal(surveyed, facts)
        if reason:
            return reason
    return ""


def _claims(existing: Iterable[Intercept], inventory: Inventory) -> list[Claim]:
    claims = []
    for intercept in existing:
        try:
            claims.append(claim_of(intercept, inventory))
        except RefusedError:
            continue  # its workload is gone: it takes nothing now
    return claims
