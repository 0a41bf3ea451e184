"""What the proxy of one target pod reports and asks for: the target's `ProxyHandler`.

The messages are sanitised already (`node.proxies.sanitising`). This module passes them to whatever of the target they
are about, and adds what only the target knows: which ports there are, and which conditions a proxy may state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from sidestep.model.condition import Condition, ConditionType
from sidestep.node.pods.pod_counters import PodCounters
from sidestep.policy.survey import port_subject

if TYPE_CHECKING:
    import socket

    from sidestep.model.pod import Pod
    from sidestep.node.conditions import Statements
    from sidestep.node.pods.client_addresses import ClientAddresses
    from sidestep.node.pods.pod_netns import Address
    from sidestep.node.pods.probed_apps import ProbedApps
    from sidestep.node.pods.stream_ports import StreamPorts
    from sidestep.node.pods.toolbox import Toolbox
    from sidestep.node.proxies.supervisor import ProxyState
    from sidestep.node.records.checking import Rules
    from sidestep.proxy.control.messages import (
        ForgetClient,
        Heartbeat,
        LiveRecords,
        NameClient,
        NoApp,
        NoServer,
        Open,
        Probed,
        Records,
        Report,
        Requests,
        Reset,
    )
    from sidestep.snapshots.hindrance import Hindrance

REPORTED = frozenset(
    {
        ConditionType.UPSTREAM_UNVERIFIED,
        ConditionType.UPSTREAM_TLS_FAILED,
        ConditionType.CLIENT_CERTIFICATE_REQUESTED,
        ConditionType.CLIENT_CERTIFICATE_REQUESTED_LATER,
        ConditionType.ALPN_UNSUPPORTED,
        ConditionType.SNI_UNSUPPORTED,
        ConditionType.CLIENT_TLS_UNSUPPORTED,
        ConditionType.NO_CERTIFICATE,
        ConditionType.PROTOCOL_CONTRADICTION,
    }
)
"""Conditions that a pod proxy may state about its ports; any other is ignored."""


class ReportsOwner(Protocol):
    """The target whose proxy reports."""

    pod: Pod
    uid: int
    client_addresses: ClientAddresses

    @property
    def own_addresses(self) -> frozenset[Address]:
        """The pod's addresses."""

    def proxy_changed(self, state: ProxyState, reason: str) -> None:
        """The proxy came, went, or is given up for now."""

    def hindered(self, hindrances: tuple[Hindrance, ...]) -> None:
        """The proxy cannot serve as it should, or can again."""

    def worker_ended(self, worker: int, reason: str) -> None:
        """One of several processes of the proxy has ended."""

    def changed(self) -> None:
        """What the target does has changed by itself."""

    def inspector_late(self) -> None:
        """The inspector has missed a deadline."""

    def server_unreachable(self, address: str, port: int) -> None:
        """A server that the pod connects to refused the proxy, or did not answer it."""


class ProxyReports:
    """Implements `ProxyHandler`."""

    def __init__(
        self, owner: ReportsOwner, *, tools: Toolbox, statements: Statements, streams: StreamPorts, apps: ProbedApps
    ) -> None:
        self._owner = owner
        self._tools = tools
        self._statements = statements
        self._streams = streams
        self._apps = apps
        self.counters = PodCounters()
        self.seen = False
        """Whether any connection has ever arrived: proof that the pod's traffic reaches the hook."""

    async def open_stream(self, request: Open, /) -> socket.socket:
        """Connect to a handler. Raises RefusedError."""
        self._see()
        return await self._tools.handlers.open_stream(request, pod=self._owner.pod.key, proxy=self._owner.uid)

    def on_reset(self, message: Reset, /) -> None:
        """Break a connection to a handler."""
        self._tools.handlers.reset_stream(message.stream, proxy=self._owner.uid)

    def on_requests(self, requests: Requests, /) -> None:
        """Log diverted and copied requests."""
        self._see()
        self._tools.handlers.record(requests.requests, pod=self._owner.pod.key)
        self._tools.handlers.record_losses(requests.losses, pod=self._owner.pod.key)
        self._tools.handlers.record_earlier(requests.earlier, pod=self._owner.pod.key)

    def on_records(self, records: Records, rules: Rules, /) -> None:
        """Have records of inspection written."""
        self._see()
        self._tools.records.take(self._owner.pod, records, rules)

    def on_live_records(self, records: LiveRecords, rules: Rules, /) -> None:
        """Have records of inspection sent to their session."""
        self._see()
        self._tools.live_records.take(self._owner.pod, records, rules)

    def on_report(self, report: Report, /) -> None:
        """State a condition of a port that this proxy serves."""
        kind = next((each for each in REPORTED if each.value == report.type), None)
        if kind is None or report.port not in self._streams:
            return
        pod = self._owner.pod
        if kind is ConditionType.CLIENT_CERTIFICATE_REQUESTED_LATER and report.text:
            self._tools.late_client_auth.add(pod, report.port)
        conditions = [Condition(kind, port_subject(pod.key, report.port), report.text)] if report.text else []
        self._statements.state(report.port, kind.value, conditions)

    def on_name_client(self, message: NameClient, worker: int, /) -> None:
        """Have the app see a client's own address. Raises SidestepError."""
        own = self._owner.own_addresses
        self._owner.client_addresses.name(message, ports=self._streams, own=own, worker=worker)

    def on_forget_client(self, message: ForgetClient, worker: int, /) -> None:
        """A named connection is over. Raises SidestepError."""
        self._owner.client_addresses.forget(message, worker=worker)

    def on_probed(self, probed: Probed, /) -> None:
        """Take what a probe of the app found."""
        self._apps.learn(probed, ports=self._streams)

    def on_no_app(self, no_app: NoApp, /) -> None:
        """A dial was refused: unsteer the port at once."""
        if self._streams.refused(no_app):
            self._owner.changed()

    def on_no_server(self, no_server: NoServer, /) -> None:
        """A server could not be reached: for a while the pod's processes connect to it themselves."""
        self._owner.server_unreachable(no_server.address, no_server.port)

    def on_hindered(self, hindrances: tuple[Hindrance, ...], /) -> None:
        """The proxy cannot serve as it should, or can again."""
        self._owner.hindered(hindrances)

    def on_inspector_late(self) -> None:
        """The inspector has missed a deadline."""
        self._owner.inspector_late()

    def on_heartbeat(self, beat: Heartbeat, /) -> None:
        """Keep the counters of ports that there are."""
        if self.counters.update(beat, ports=self._streams):
            self._see()

    def on_process_ended(self, worker: int, reason: str, /) -> None:
        """One of several processes has ended."""
        self._owner.worker_ended(worker, reason)

    def on_state(self, state: ProxyState, reason: str, /) -> None:
        """The proxy came, went, or is given up for now."""
        self._owner.proxy_changed(state, reason)

    def on_credentials(self, failures: Mapping[str, str], /) -> None:
        """Some credentials could not be used: the ports that name them carry TLS end to end."""
        pod = self._owner.pod.key
        for number, plan in self._streams.plans().items():
            reasons = sorted({failures[name] for name in plan.snapshot.credentials if name in failures})
            texts = [f"the pod proxy cannot use the certificate, TLS is carried end to end: {each}" for each in reasons]
            conditions = [
                Condition(ConditionType.CERTIFICATE_INVALID, port_subject(pod, number), text) for text in texts
            ]
            self._statements.state(number, "credentials", conditions)
        known = {name for plan in self._streams.plans().values() for name in plan.snapshot.credentials}
        texts = [
            f"the pod proxy cannot use a certificate of a policy, whose connections are not opened: {failures[name]}"
            for name in sorted(failures.keys() - known)
        ]
        others = [Condition(ConditionType.CERTIFICATE_INVALID, f"pod {pod}", text) for text in texts]
        self._statements.state(None, "egress credentials", others)

    def _see(self) -> None:
        """A connection has arrived. Whatever the proxy says first tells so; heartbeats come twice a second only."""
        if not self.seen:
            self.seen = True
            self._owner.changed()
