"""The plan of one port: what its pod proxy is told, from those who want it and what is known about it. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidestep.model.intercept import Intercept, Kind
from sidestep.model.pod import PodKey, Transport
from sidestep.node.planning.inspection import Policies, enforcing, resets
from sidestep.node.planning.plan import CertificateFacts, PortPlan
from sidestep.node.planning.refusals import opening_refusal
from sidestep.policy.matching import to_rows
from sidestep.policy.survey import PortSurvey, Side
from sidestep.policy.waf import join
from sidestep.snapshots.filter_row import FilterRow
from sidestep.snapshots.ports import OUTBOUND, PortSnapshot, RuleSnapshot

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sidestep.model.pod import Pod


_PortKey = tuple[PodKey, int, Transport]
_Origin = tuple[PortSurvey, "Pod", tuple[Intercept, ...], "Mapping[Side, CertificateFacts]", tuple[str, ...], Policies]
"""What a port's plan is made of: the arguments of `port_plan`."""


def _process_of_app(pod: Pod) -> str:
    """The containers of the pod and their processes: different once a container is restarted."""
    return " ".join(f"{name}={pid}" for name, pid in sorted(pod.location.pids.items()))


def port_plan(
    surveyed: PortSurvey,
    pod: Pod,
    wanting: list[Intercept],
    facts: Mapping[Side, CertificateFacts],
    *,
    passing: tuple[str, ...],
    policies: Policies = (),
) -> PortPlan:
    """Make the plan. `wanting` are admitted, oldest first. There is something in `wanting` or in `policies`.

    `passing` are the node's own addresses, if the kubelet probes the port.
    """
    whole = next((each for each in wanting if each.takes_whole), None)
    opened = surveyed.must_be_opened or enforcing(policies) is not None
    # Where requests are rewritten or blocked, a wiretap of whole connections gets every request that the app gets.
    captures = [each for each in wanting if each.captures_whole]
    reading = [
        each
        for each in wanting
        if each not in captures and (each.reads_requests or (opened and each.kind is Kind.WIRETAP))
    ]
    rules = tuple(_rule(each) for each in reading)
    whole_taps = (
        each.uid for each in wanting if each.kind is Kind.WIRETAP and each not in reading and each not in captures
    )
    # What is carried unparsed is not opened: no key travels for it.
    none = CertificateFacts()
    opens = bool(captures) and not opening_refusal(surveyed, facts)
    reads = rules or opened or policies or opens
    downstream, upstream = (facts[Side.DOWNSTREAM], facts[Side.UPSTREAM]) if reads else (none, none)
    # A trust of the upstream side verifies the app; without one the CA of the downstream certificate is the best guess.
    trust = upstream.trust or downstream.trust
    tls = surveyed.tls
    wafs = [each.waf for each in policies if each.waf is not None]
    probes = tuple(sorted(pod.probes.get(surveyed.port.number, ())))
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
        late_client_auth=tls.late_client_auth,
        probe_timeout=tls.probe_timeout,
        app=_process_of_app(pod),
        policies=tuple(each.snapshot for each in policies),
        probe_sources=passing if policies and probes else (),
        probes=probes if policies and passing else (),
        waf=join(wafs) if wafs else None,
        captures=tuple(sorted(each.uid for each in captures)),
        recent=tls.keeps_recent and bool(rules or (policies and whole is None)),
        opens=opens,
    )
    resetting = frozenset(each.uid for each in wanting if each.reset_existing)
    return PortPlan(snapshot, needs_app=whole is None, resets=resetting | resets(policies))


def listened(wanting: Sequence[Intercept]) -> PortSnapshot | None:
    """What the pod proxy is told of those who listen to connections that the pod makes; None if nobody does."""
    if not wanting:
        return None
    captures = tuple(sorted(each.uid for each in wanting if each.captures_whole))
    rules = tuple(_rule(each) for each in wanting if not each.captures_whole)
    return PortSnapshot(OUTBOUND, "tcp", tls="never", http2="never", rules=rules, captures=captures)


class PortPlans:
    """Reuses the plans of the last round for ports whose input is the same.

    They are then the same objects, so that comparing the plans of two rounds costs next to nothing.
    """

    def __init__(self) -> None:
        self._last: dict[_PortKey, tuple[_Origin, PortPlan]] = {}
        self._now: dict[_PortKey, tuple[_Origin, PortPlan]] = {}

    def begin(self) -> None:
        """Begin a round. Plans that it does not ask for are forgotten after it."""
        self._last, self._now = self._now, {}

    def of(
        self,
        surveyed: PortSurvey,
        pod: Pod,
        wanting: list[Intercept],
        facts: Mapping[Side, CertificateFacts],
        *,
        passing: tuple[str, ...],
        policies: Policies = (),
    ) -> PortPlan:
        """As `port_plan`."""
        key = (pod.key, surveyed.port.number, surveyed.port.transport)
        origin = (surveyed, pod, tuple(wanting), facts, passing, policies)
        known = self._last.get(key)
        if known is None or known[0] != origin:
            known = (origin, port_plan(surveyed, pod, wanting, facts, passing=passing, policies=policies))
        self._now[key] = known
        return known[1]


def _rule(intercept: Intercept) -> RuleSnapshot:
    return RuleSnapshot(
        uid=intercept.uid,
        display=intercept.display,
        kind=intercept.kind.value,
        conditions=tuple(FilterRow(*row) for row in to_rows(intercept.filter)),
        divert_probes=intercept.divert_probes,
        heads_only=intercept.heads_only,
        capture=intercept.capture.value,
        records=intercept.records.value,
        statuses=intercept.shown.statuses,
        since=intercept.shown.since,
        last=intercept.shown.last,
    )
