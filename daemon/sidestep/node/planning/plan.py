"""A plan as a value: what should be steered on this node, port by port. `planner` makes it, the reconciler applies it.

Plans are frozen and comparable: an equal plan means that nothing has to be done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from sidestep.config.proxy_workers import ONE, Workers
from sidestep.model.pod import Transport

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sidestep.model.condition import Condition
    from sidestep.model.pod import Pod, PodKey
    from sidestep.policy.survey import PodSurvey, WantedCertificate
    from sidestep.snapshots.access import AccessSnapshot
    from sidestep.snapshots.egress import EgressSnapshot
    from sidestep.snapshots.ports import PortSnapshot


class CertificateFacts(msgspec.Struct, frozen=True):
    """What is known about a certificate that was looked at: names of credentials, empty where there is none."""

    identity: str = ""
    trust: str = ""
    dns_name: str = ""
    problem: str = ""
    """What is wrong with it, for people."""
    pending: str = ""
    """Why it is not there yet, for people; empty once it has been read, usable or not."""


class PortPlan(msgspec.Struct, frozen=True):
    """A port that is to be steered. `needs_app`: only while an app listens on it (it is filtered).

    `resets` are the uids of those for whose sake connections that exist are ended, and names of such policies.
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
        """The uids of the intercepts and wiretaps that want it."""
        return self.snapshot.uids


class PodPlan(msgspec.Struct, frozen=True):
    """A target pod and its ports, sorted.

    Of the connections that it makes `egress` are the policies, and `outbound` says which sessions listen to them.
    `access` are the sessions that may have it make connections. `workers` are the processes of its proxy;
    `why_fewer_workers` says why there are fewer than its annotations ask for.
    """

    pod: Pod
    ports: tuple[PortPlan, ...]
    egress: tuple[EgressSnapshot, ...] = ()
    outbound: PortSnapshot | None = None
    access: tuple[AccessSnapshot, ...] = ()
    workers: Workers = ONE
    why_fewer_workers: str = ""

    @property
    def uids(self) -> frozenset[str]:
        """The uids of all intercepts and wiretaps of the pod."""
        listening = frozenset() if self.outbound is None else self.outbound.uids
        return listening.union((each.uid for each in self.access), *(port.uids for port in self.ports))

    @property
    def inspected(self) -> frozenset[int]:
        """The TCP ports that have inspection policies."""
        return frozenset(port.number for port in self.ports if port.snapshot.policies)

    @property
    def closing(self) -> frozenset[int]:
        """The TCP ports on which what is not steered is to be refused."""
        return frozenset(port.number for port in self.ports if port.snapshot.closes)


class Plan(msgspec.Struct, frozen=True):
    """The desired state of the node.

    `coverage` maps the uid of each intercept to the pods it covers, whether or not they can be targets; `refusals` maps
    (uid, pod) to the reason why the pod does not serve it, `pending` to the reason why it does not serve it yet;
    `inspected` has the names (`InspectionPolicy.display`) of the policies that apply to each TCP port of a pod,
    `outward` of those that apply to connections that it makes,
    `not_inspected` maps (name, pod) to the reason why a policy is not carried out, or not on all of its ports;
    `namespace_labels` has those of the namespaces of `surveys`, while there are policies; `conditions` are by pod
    (None: about no pod in particular). A pod in `waiting` keeps its present plan, except that its ports are open which
    are not in `closing`: the ports that its policies close, of pods in `waiting` only.
    """

    pods: Mapping[PodKey, PodPlan] = msgspec.field(default_factory=dict)
    waiting: frozenset[PodKey] = frozenset()
    closing: Mapping[PodKey, frozenset[int]] = msgspec.field(default_factory=dict)
    ended: frozenset[PodKey] = frozenset()
    surveys: Mapping[PodKey, PodSurvey] = msgspec.field(default_factory=dict)
    coverage: Mapping[str, tuple[PodKey, ...]] = msgspec.field(default_factory=dict)
    refusals: Mapping[tuple[str, PodKey], str] = msgspec.field(default_factory=dict)
    pending: Mapping[tuple[str, PodKey], str] = msgspec.field(default_factory=dict)
    inspected: Mapping[PodKey, Mapping[int, tuple[str, ...]]] = msgspec.field(default_factory=dict)
    outward: Mapping[PodKey, tuple[str, ...]] = msgspec.field(default_factory=dict)
    not_inspected: Mapping[tuple[str, PodKey], str] = msgspec.field(default_factory=dict)
    namespace_labels: Mapping[str, Mapping[str, str]] = msgspec.field(default_factory=dict)
    conditions: Mapping[PodKey | None, tuple[Condition, ...]] = msgspec.field(default_factory=dict)
    certificates: tuple[WantedCertificate, ...] = ()
    """Those of the ports that somebody wants opened; no other is read."""
