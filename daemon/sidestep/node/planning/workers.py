"""Decides how many processes the proxy of a pod has. Pure.

Several share listeners and divide budgets, and nothing else: whatever keeps counts, order or a conversation over all
connections of a pod needs one process. A pod that has any of it keeps one, and `status` says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sidestep.model.pod import Transport

if TYPE_CHECKING:
    from sidestep.node.planning.plan import PortPlan
    from sidestep.snapshots.egress import EgressSnapshot
    from sidestep.snapshots.ports import PortSnapshot


def workers_of(
    asked: int | None,
    node: int | None,
    ports: Sequence[PortPlan],
    egress: Sequence[EgressSnapshot],
    outbound: PortSnapshot | None,
) -> tuple[int, str]:
    """Return the number of processes, and why it is smaller than what is wanted (empty: it is not).

    `asked` is what the annotations of the pod, its owners or its namespace say, `node` what those of the Node do, which
    is the most; None: nothing.
    """
    wanted = asked or node or 1
    if wanted == 1:
        return 1, ""
    if any(port.snapshot.policies for port in ports):
        return 1, "inspection policies count over all connections"
    if egress or outbound is not None:
        return 1, "connections that the pod makes are followed by one process"
    if any(port.transport is Transport.UDP for port in ports):
        return 1, "datagrams of a flow are followed by one process"
    if any(port.snapshot.recent for port in ports):
        return 1, "recent requests are kept in order (annotation sidestep.dev/recent-requests)"
    if node is not None and node < wanted:
        return node, f"its node allows {node} (annotation sidestep.dev/proxy-workers)"
    return wanted, ""
