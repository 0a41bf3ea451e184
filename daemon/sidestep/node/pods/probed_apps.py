"""Keeps what probes have found out about the apps of one target pod.

A finding holds until the app behind the port goes, because the next one may speak another protocol. The proxy keeps its
findings for as long as its configuration names the same *app*. When a probed app goes, `snapshot` changes that name (by
the number of losses), and the proxy must be configured anew (`outdated`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Container

    from sidestep.node.planning.plan import PortPlan
    from sidestep.proxy.control.messages import Probed
    from sidestep.snapshots.ports import PortSnapshot


class ProbedApps:
    """Those behind one pod's TCP ports."""

    def __init__(self) -> None:
        self._found: dict[int, Probed] = {}
        self._losses: dict[int, int] = {}
        """How often an app has gone that was probed, by port."""
        self.outdated = False
        """The proxy should be configured anew although the plan is the same."""

    def get(self, number: int) -> Probed | None:
        """What is known of the app behind a port."""
        return self._found.get(number)

    def learn(self, probed: Probed, *, ports: Container[int]) -> None:
        """Take what a probe found about one of these ports; a finding that is not definite takes back the last one."""
        if probed.tls not in ("yes", "no"):
            self._found.pop(probed.port, None)
        elif probed.port in ports:
            self._found[probed.port] = probed

    def forget(self, number: int) -> None:
        """The plan names another app for this port."""
        self._found.pop(number, None)

    def gone(self, number: int) -> bool:
        """Nothing listens any more; whether that was an app that had been probed."""
        if self._found.pop(number, None) is None:
            return False
        self._losses[number] = self._losses.get(number, 0) + 1
        self.outdated = True
        return True

    def snapshot(self, port: PortPlan) -> PortSnapshot:
        """What the proxy is told of a port: the plan, and that an app it probed has gone since."""
        losses = self._losses.get(port.number, 0)
        return msgspec.structs.replace(port.snapshot, app=f"{port.snapshot.app}/{losses}") if losses else port.snapshot
