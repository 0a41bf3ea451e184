"""The policies about connections that the pod makes, as one pod proxy holds them, and who listens to them.

Counters and rules of sessions are those of a port that stands for all such connections.
"""

from __future__ import annotations

import copy
import dataclasses
import datetime as dt
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

from sidestep.engine.outbound import Decision, Opening, Seen
from sidestep.model.errors import BugError
from sidestep.model.inspection import FailurePolicy
from sidestep.policy.accepted_policy import AcceptedPolicy
from sidestep.policy.egress import EgressPolicies, EgressPolicy, compile_egress
from sidestep.policy.egress_rows import from_egress_snapshot
from sidestep.policy.inspection import Inspection
from sidestep.policy.outbound_hosts import HostsOf, OpenedHosts
from sidestep.protocols.eve_redaction import Redaction
from sidestep.proxy.connection.live_ports import LivePort, Outward
from sidestep.proxy.control.messages import OUTBOUND
from sidestep.proxy.egress.outbound_firewalls import OutboundFirewalls
from sidestep.proxy.egress.unopened import Unopened
from sidestep.proxy.tls.issuing import IssuedLeaves
from sidestep.snapshots.egress import EgressSnapshot
from sidestep.snapshots.ports import PortSnapshot

_UNHEARD: Final = PortSnapshot(OUTBOUND, "tcp", tls="never", http2="never", rules=())
"""Nobody listens."""
_Judging = tuple[tuple[EgressPolicy, ...], tuple[EgressPolicy, ...]]
"""The policies that a connection is about, and others that one of its requests may be about. Of clear HTTP that is read
all are the former."""
Issued = Callable[[str], IssuedLeaves | None]
"""What answers clients in the name of a CA, by the name of its credential."""


class OutboundPolicies:
    """`port` stands where a relayed connection has its port: its counters are those of all connections that the pod
    makes, and its rules those of the sessions that listen. `firewalls_changed` is called when requests may be judged by
    other `firewalls` than before, unless `configure` was.
    """

    def __init__(self, firewalls_changed: Callable[[], None] = lambda: None) -> None:
        self.firewalls = OutboundFirewalls(firewalls_changed)
        self._compiled: dict[EgressSnapshot, EgressPolicy] = {}
        self._snapshots: dict[EgressPolicy, EgressSnapshot] = {}
        self.unopened = Unopened()
        self._opened: dict[_Judging, Inspection] = {}
        """What judges the requests of connections that are read."""
        self.current = EgressPolicies(())
        self.port = LivePort(_UNHEARD)
        self.redaction = Redaction()
        """What all policies together keep out of records."""

    def configure(self, snapshots: Sequence[EgressSnapshot], listened: PortSnapshot | None = None) -> None:
        """Replace the policies, and who listens; new connections are judged by them, and told.

        Raises ConfigurationError, and changes nothing then.
        """
        compiled = {
            each: self._compiled.get(each) or compile_egress(*from_egress_snapshot(each), each.waf)
            for each in snapshots
        }
        self.port.replace(listened or _UNHEARD)
        if [*compiled] != [*self._compiled]:
            before = self.current
            self.current = EgressPolicies([*compiled.values()], thresholds=before.thresholds, limits=before.limits)
            self._compiled = compiled
            wanted = [each.policy.redaction for each in compiled.values()]
            self.redaction = Redaction(
                any(each.query_values for each in wanted) or not wanted,
                frozenset(name.encode() for each in wanted for name in each.headers),
            )
            self._snapshots = {policy: snapshot for snapshot, policy in compiled.items()}
            self.unopened.forget()
            self.firewalls.replace(self.current.policies)
            self._give_way()

    def _give_way(self) -> None:
        """Have opened connections judged by what their policies say now, from their next request on: by those that are
        left, though that be only those about other hosts.

        Those of which no policy has changed find out anew what applies to requests for each host: firewalls were joined
        anew (`OutboundFirewalls.replace`), and the inspector may not know those that it was asked about before.
        """
        before = {key: (self._left(key[0]), self._left(key[1])) for key in self._opened}
        opened, self._opened = self._opened, {}
        for key, left in before.items():
            if left == key:
                opened[key].hosts.clear()
                self._opened[key] = opened[key]
        # The others after these, of which one may be what others are judged by from now on.
        for key, left in before.items():
            if left != key:
                opened[key].give_way(self._inspection(*left) if any(left) else None)

    def _left(self, policies: tuple[EgressPolicy, ...]) -> tuple[EgressPolicy, ...]:
        """What these policies say now, of those that are left."""
        names = {each.policy.display for each in policies}
        return tuple(each for each in self.current.policies if each.policy.display in names)

    def _inspection(self, judging: tuple[EgressPolicy, ...], others: tuple[EgressPolicy, ...] = ()) -> Inspection:
        found = self._opened.get((judging, others))
        if found is None:
            current = self.current
            found = self._opened[judging, others] = Inspection(
                [*(each.whole for each in judging), *(_not_closing(each.whole) for each in others)],
                thresholds=current.thresholds,
                limits=current.limits,
                waf=self.firewalls.bound((*judging, *others)),
                waf_of=self.firewalls.of,
            )
        return found

    def hindrance(self, decision: Decision, seen: Seen, issued: Issued, now: float) -> str:
        """Why a connection that should be opened cannot be, in a word; empty if it can."""
        if decision.opening is Opening.READ:
            return ""
        snapshot = self._opener(decision)
        if not snapshot.opens:
            return "no-trust"
        if decision.opening is Opening.ORIGINATE:
            return ""
        leaves = issued(snapshot.issuer)
        if leaves is None:
            return "no-issuer"
        return leaves.issuer.hindrance(seen.name, dt.datetime.now(dt.UTC)) or self.unopened.reason(
            seen.name, seen.hello, now
        )

    def open(self, decision: Decision, *, name: str, flow: int) -> LivePort:
        """Return the port of a connection that is opened: what judges its requests, and how its TLS is made."""
        if decision.opening is Opening.READ:
            return self._read(decision, name=name, flow=flow)
        opener, judging, facts = self._opener(decision), decision.treatment.policies, decision.facts
        if facts.destination is not None:
            hosts = OpenedHosts(
                lambda: self.current, facts.destination, facts.port, name=facts.server_name, judging=judging
            )
            facts = dataclasses.replace(facts, binds_host=True, hosts=hosts)
        is_clear = decision.opening is Opening.ORIGINATE
        snapshot = msgspec.structs.replace(
            self.port.snapshot,
            tls="never" if is_clear else "always",
            http2="probe",
            identity="" if is_clear else opener.issuer,
            upstream_trust=opener.trust,
            opens=True,
        )
        others = tuple(each for each in decision.reading if each not in judging)
        outward = Outward(name, flow, facts, self._feeds_ids(judging))
        return self.port.for_connection(outward, self._inspection(judging, others), snapshot)

    def _read(self, decision: Decision, *, name: str, flow: int) -> LivePort:
        """Return the port of a connection whose requests are read in clear."""
        facts, judging = decision.facts, decision.reading
        inspection = self._inspection(judging) if judging else None
        if inspection is not None and facts.destination is not None:
            is_told = bool(decision.reason)
            hosts = HostsOf(lambda: self.current, facts.destination, facts.port, is_told=is_told)
            facts = dataclasses.replace(facts, hosts=hosts, is_told=is_told)
        outward = Outward(name, flow, facts, self._feeds_ids(judging))
        return self.port.for_connection(outward, inspection, self.port.snapshot)

    def _feeds_ids(self, judging: tuple[EgressPolicy, ...]) -> bool:
        return any(self._snapshots[each].policy.ids for each in judging)

    def _opener(self, decision: Decision) -> EgressSnapshot:
        opener = decision.opener
        found = None if opener is None else self._snapshots.get(opener)
        if found is None:
            raise BugError("a connection is opened for a policy that is not there")
        return found


def _not_closing(accepted: AcceptedPolicy) -> AcceptedPolicy:
    """The same policy as one of others: what cannot be inspected of the connection is nothing to it."""
    made = copy.copy(accepted)
    made.policy = replace(accepted.policy, failure_policy=FailurePolicy.IGNORE)
    return made
