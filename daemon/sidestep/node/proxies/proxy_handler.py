"""What a `PodProxy` tells its owner, which is the target of the pod.

Of several processes it tells as if they were one (`merged_reports`).
"""

from __future__ import annotations

import enum
import socket
from collections.abc import Mapping
from typing import Protocol

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


class ProxyState(enum.Enum):
    """What `on_state` reports."""

    RUNNING = "running"
    RESTARTING = "restarting"
    FAILED = "failed"
    STOPPED = "stopped"


class ProxyHandler(Protocol):
    """The pod's owner, called in the event loop. The `on_` functions return at once and do not raise."""

    async def open_stream(self, request: Open, /) -> socket.socket:
        """Return one end of a stream socketpair to the handler; RefusedError (or any SidestepError) says why not."""

    def on_reset(self, message: Reset, /) -> None:
        """The connection of an earlier `open_stream` is to break for its handler."""

    def on_requests(self, requests: Requests, /) -> None:
        """Take log lines."""

    def on_records(self, records: Records, rules: Rules, /) -> None:
        """Take records of inspection; `rules` are those that it may be about. Raises PeerError for what is none."""

    def on_live_records(self, records: LiveRecords, rules: Rules, /) -> None:
        """Take records for a session that covers the pod. Raises PeerError as `on_records` does."""

    def on_report(self, report: Report, /) -> None:
        """Take a condition."""

    def on_name_client(self, message: NameClient, worker: int, /) -> None:
        """Name a connection that the proxy's process of this number is about to make. May raise SidestepError: the
        proxy is told."""

    def on_forget_client(self, message: ForgetClient, worker: int, /) -> None:
        """A connection that the proxy's process of this number had named is over. May raise SidestepError."""

    def on_probed(self, probed: Probed, /) -> None:
        """Learn what a probe of the app found."""

    def on_no_app(self, no_app: NoApp, /) -> None:
        """Learn that nothing listens behind a port."""

    def on_no_server(self, no_server: NoServer, /) -> None:
        """A server that the pod connects to could not be reached."""

    def on_hindered(self, hindrances: tuple[Hindrance, ...], /) -> None:
        """Learn all that keeps the present process from serving."""

    def on_inspector_late(self) -> None:
        """Learn that the inspector that was handed over last has missed a deadline."""

    def on_heartbeat(self, beat: Heartbeat, /) -> None:
        """Take the counters; they begin anew when the proxy does."""

    def on_process_ended(self, worker: int, reason: str, /) -> None:
        """A process of this number has ended, and others of the pod live: its connections are over."""

    def on_state(self, state: ProxyState, reason: str, /) -> None:
        """Learn that the state has changed."""

    def on_credentials(self, failures: Mapping[str, str], /) -> None:
        """Learn which credentials a *replay* could not use, and why (`apply` returns its own)."""
