"""Why something cannot be steered, in one line for people; empty when it can. Pure.

The planner leaves out what is refused here and states a condition; admission tells the person at the command line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidestep.config.annotation_names import CLIENT_AUTH, DOWNSTREAM_PATH, DOWNSTREAM_SECRET, FORWARD_CLIENT_CERT
from sidestep.config.annotations import ClientAuth
from sidestep.model.condition import ConditionType
from sidestep.policy.protocol_choice import Use
from sidestep.policy.survey import Side

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sidestep.config.node_settings import NodeSettings
    from sidestep.model.pod import Pod
    from sidestep.node.planning.plan import CertificateFacts
    from sidestep.policy.survey import PortSurvey


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


def opening_refusal(surveyed: PortSurvey, facts: Mapping[Side, CertificateFacts]) -> str:
    """Why requests of this port cannot be read; empty when they can. `facts` are of the sides that have been read.

    It concerns who wants requests to be read. On a port that must be opened it concerns everybody.
    """
    if surveyed.protocol.refusal:
        return surveyed.protocol.refusal
    downstream = facts.get(Side.DOWNSTREAM)
    reason = _cannot_verify_clients(surveyed, downstream) or _cannot_answer_app(surveyed, facts.get(Side.UPSTREAM))
    if reason:
        return reason
    tls = surveyed.protocol.tls
    if (downstream and downstream.identity) or not (
        tls is Use.ALWAYS or (tls is Use.PROBE and surveyed.must_be_opened)
    ):
        return ""
    number = surveyed.port.number
    source = surveyed.tls.downstream
    speaks = "speaks" if tls is Use.ALWAYS else "may speak"
    if source is None and not surveyed.tls.downstream_problem:
        return (
            f"port {number} {speaks} TLS, no certificate is configured to open it, and {FORWARD_CLIENT_CERT}.{number} "
            f"closes what cannot be opened: set {DOWNSTREAM_PATH}.{number} or {DOWNSTREAM_SECRET}.{number}"
        )
    named = f" ({source.annotation} {source.value!r})" if source is not None else ""
    reason = surveyed.tls.downstream_problem or (downstream and downstream.problem) or "it has not been read yet"
    return f"port {number} {speaks} TLS and its certificate{named} cannot be used: {reason}"


def opening_pending(surveyed: PortSurvey, facts: Mapping[Side, CertificateFacts]) -> str:
    """Why requests of this port cannot be read yet, because a certificate of it is not there; empty otherwise.

    It concerns the same as `opening_refusal`, and is asked first: what is not there yet is no reason to refuse.
    """
    if surveyed.protocol.tls is Use.NEVER:
        return ""
    for side, source in ((Side.DOWNSTREAM, surveyed.tls.downstream), (Side.UPSTREAM, surveyed.tls.upstream)):
        found = facts.get(side)
        if source is not None and found is not None and found.pending:
            return (
                f"port {surveyed.port.number} waits for its certificate ({source.annotation} {source.value!r}): "
                f"{found.pending}"
            )
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


def _cannot_answer_app(surveyed: PortSurvey, upstream: CertificateFacts | None) -> str:
    """Why the app's wish for a certificate cannot be met on a port where every connection would be closed for that."""
    tls, number = surveyed.tls, surveyed.port.number
    if not surveyed.must_be_opened or surveyed.protocol.tls is Use.NEVER or (upstream and upstream.identity):
        return ""
    reason = tls.upstream_problem or (upstream and upstream.problem)
    if not reason:
        return ""
    named = f" ({tls.upstream.annotation} {tls.upstream.value!r})" if tls.upstream is not None else ""
    return (
        f"the certificate that port {number} shows the app{named} cannot be used: {reason}; and "
        f"{FORWARD_CLIENT_CERT}.{number} closes what cannot be opened"
    )


def refusal_type(surveyed: PortSurvey) -> ConditionType:
    """What kind of condition `opening_refusal` is."""
    if surveyed.protocol.tls is not Use.NEVER:
        return ConditionType.NO_CERTIFICATE
    return ConditionType.PROTOCOL_CONTRADICTION
