"""Decides how many processes the proxy of a pod has. Pure.

Several share listeners and divide budgets, and nothing else: whatever keeps counts, order or a conversation over all
connections of a pod needs one process. A pod that has any of it keeps one, and `status` says why.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec.structs import replace

from sidestep.config.proxy_workers import ONE, Workers
from sidestep.model.pod import Transport

if TYPE_CHECKING:
    from sidestep.model.pod import Pod
    from sidestep.node.planning.plan import PortPlan
    from sidestep.snapshots.egress import EgressSnapshot
    from sidestep.snapshots.ports import PortSnapshot


def workers_of(
    pod: Pod,
    asked: Workers | None,
    node: Workers | None,
    ports: Sequence[PortPlan],
    egress: Sequence[EgressSnapshot],
    outbound: PortSnapshot | None,
) -> tuple[Workers, str]:
    """Return the processes, and why they are fewer than what is wanted (empty: they are not).

    `asked` is what the annotations of the pod, its owners or its namespace say, `node` what those of the Node do, which
    is the most; None: nothing. Where the load decides, they are no more than the processors that the containers of the
    pod may use.
    """
    wanted = asked or node or ONE
    if wanted.most == 1:
        return ONE, ""
    if any(port.snapshot.policies for port in ports):
        return ONE, "inspection policies count over all connections"
    if egress or outbound is not None:
        return ONE, "connections that the pod makes are followed by one process"
    if any(port.transport is Transport.UDP for port in ports):
        return ONE, "datagrams of a flow are followed by one process"
    if any(port.snapshot.recent for port in ports):
        return ONE, "recent requests are kept in order (annotation sidestep.dev/recent-requests)"
    if wanted.automatic and pod.processors is not None and pod.processors < wanted.most:
        most = max(1, math.ceil(pod.processors))
        wanted = ONE if most == 1 else Workers(most, automatic=True)
    if node is not None and node.most < wanted.most:
        why = "" if wanted.automatic else f"its node allows {node.most} (annotation sidestep.dev/proxy-workers)"
        return replace(wanted, most=node.most), why
    return wanted, ""
