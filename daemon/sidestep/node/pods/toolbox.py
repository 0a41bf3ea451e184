"""What every target of a node needs; the daemon makes one `Toolbox`, the reconciler hands it to each target."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from sidestep.aio.turns import Turns
from sidestep.node.inspectors.inspectors import Inspectors
from sidestep.node.pods.late_client_auth import LateClientAuth

if TYPE_CHECKING:
    import socket

    from sidestep.ids.rules import RuleSet
    from sidestep.model.pod import Pod, PodKey
    from sidestep.node.conditions import Conditions
    from sidestep.node.proxies.supervisor import CredentialSource, ProxySupervisor
    from sidestep.node.records.checking import Rules
    from sidestep.node.records.presence import Absence
    from sidestep.protocols.eve_records import Kubernetes, Record
    from sidestep.proxy.control.messages import Earlier, LiveRecords, LoggedRequest, LostCopies, Open, Records
    from sidestep.steering import CompiledProgram, EgressPrograms, PeernamePrograms


IDS_STARTS: Final = (1.0, 32.0)
"""Suricatas of the node that are started again, a second and at once. A start takes some 0.3 s of processor time."""


class Handlers(Protocol):
    """What is needed of `SessionRegistry`."""

    async def open_stream(self, opening: Open, *, pod: PodKey, proxy: int) -> socket.socket:
        """Connect to a handler. `proxy` is who asks, by its uid."""

    def reset_stream(self, stream: int, *, proxy: int) -> None:
        """Break a connection to a handler."""

    def record(self, requests: tuple[LoggedRequest, ...], *, pod: PodKey) -> None:
        """Log diverted requests."""

    def record_losses(self, losses: tuple[LostCopies, ...], *, pod: PodKey) -> None:
        """Tell of copies that were held back."""

    def record_earlier(self, told: tuple[Earlier, ...], *, pod: PodKey) -> None:
        """Tell that a pod's earlier requests were told."""


class RecordLog(Protocol):
    """What is needed of `EveLog`."""

    @property
    def wanted(self) -> bool:
        """Whether anybody reads records, so that pod proxies should make them."""

    def take(self, pod: Pod, message: Records, rules: Rules) -> None:
        """Take records of a pod's proxy. Raises PeerError for what is no record."""

    def missed(self, pod: Pod, ports: tuple[int, ...], absence: Absence) -> None:
        """Record the time for which nobody inspected these ports of a pod."""

    def take_alert(self, pod: Pod, make: Callable[[Kubernetes], Record | None]) -> None:
        """Take what the IDS of a pod says."""

    def ids_ended(self) -> None:
        """An IDS has ended that should run."""


class IdsRuleSource(Protocol):
    """What is needed of `IdsRuleStore`."""

    def of(self, policy: str) -> RuleSet | None:
        """The rules in force of a policy, by its name."""


class NoIdsRules:
    """Nobody has any."""

    def of(self, policy: str) -> RuleSet | None:
        """None."""


class NoRecords:
    """A log that nobody reads."""

    wanted = False

    def take(self, pod: Pod, message: Records, rules: Rules) -> None:
        """Drop them."""

    def missed(self, pod: Pod, ports: tuple[int, ...], absence: Absence) -> None:
        """Drop it."""

    def take_alert(self, pod: Pod, make: Callable[[Kubernetes], Record | None]) -> None:
        """Drop it."""

    def ids_ended(self) -> None:
        """Nobody is told."""


class LiveRecordTaker(Protocol):
    """What is needed of `node.records.live.LiveRecordRelay`."""

    def take(self, pod: Pod, message: LiveRecords, rules: Rules) -> None:
        """Take records for a session. Raises PeerError for what is no record."""


class NoLiveRecords:
    """No session gets records."""

    def take(self, pod: Pod, message: LiveRecords, rules: Rules) -> None:
        """Drop them."""


class Toolbox(msgspec.Struct, frozen=True):
    """What all targets of a node are made with. `credential` gives the source of a named credential of a pod."""

    program: CompiledProgram
    supervisor: ProxySupervisor
    handlers: Handlers
    credential: Callable[[PodKey, str], CredentialSource]
    conditions: Conditions
    now: Callable[[], float]
    peernames: Callable[[], Awaitable[PeernamePrograms]]
    """The programs that let apps see their clients; compiled when first asked for. Raises SidestepError."""
    outbound: Callable[[], Awaitable[EgressPrograms]]
    """The same of those that steer the connections that pods make."""
    on_change: Callable[[PodKey], None]
    """Called when what the target can do has changed by itself: its proxy is back, has failed, lost its app."""
    records: RecordLog = msgspec.field(default_factory=NoRecords)
    live_records: LiveRecordTaker = msgspec.field(default_factory=NoLiveRecords)
    ids_rules: IdsRuleSource = msgspec.field(default_factory=NoIdsRules)
    ids_starts: Turns = msgspec.field(default_factory=lambda: Turns(rate=IDS_STARTS[0], burst=IDS_STARTS[1]))
    """Paces the starts of Suricatas."""
    inspectors: Inspectors = msgspec.field(default_factory=lambda: Inspectors(lambda _line: None))
    """Makes inspectors, from when the first policy has a firewall."""
    late_client_auth: LateClientAuth = msgspec.field(default_factory=LateClientAuth)
    """Which apps ask for client certificates after the handshake."""
