"""The engines beside the proxy of one pod: Suricata for policies with `ids`, an inspector for policies with `waf`.

`pod_ids` and `inspectors.pod_inspector` keep them alive; the proxy gets a descriptor of each, and feeds or asks it.
Here both follow the policies of the pod's ports, are shown, and end. The target waits for none of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from sidestep.node.inspectors.pod_inspector import PodInspector, state_inspector, state_profiles
from sidestep.node.pods.pod_ids import PodIds
from sidestep.node.proxy_uids import inspector_uid
from sidestep.policy.waf import most_profiles

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from sidestep.model.pod import Pod
    from sidestep.node.conditions import Statements
    from sidestep.node.pods.pod_counters import PodCounters
    from sidestep.node.pods.toolbox import Toolbox
    from sidestep.node.proxies.supervisor import PodProxy
    from sidestep.snapshots.egress import EgressSnapshot
    from sidestep.snapshots.inspection import PolicySnapshot
    from sidestep.snapshots.ports import PortSnapshot
    from sidestep.tunnel.views import EngineView


class PodEngines:
    """See the module. `proxy` returns the pod's proxy, or raises SidestepError.

    `changed` is called when an inspector comes or goes.
    """

    def __init__(
        self,
        pod: Pod,
        uid: int,
        tools: Toolbox,
        *,
        statements: Statements,
        proxy: Callable[[], PodProxy],
        changed: Callable[[], None],
    ) -> None:
        self._pod = pod
        self._statements = statements
        self._proxy = proxy
        self._changed = changed
        self._inspector = PodInspector(
            str(pod.key), inspector_uid(uid), tools.inspectors, hand_over=self._use_inspector, on_state=self._firewall,
            cgroups=tools.supervisor.cgroups,
        )  # fmt: skip
        self._ids = PodIds(pod, uid, tools, statements=statements, feed=self._feed_ids)

    def follow(self, pod: Pod, ports: Collection[PortSnapshot], egress: Collection[EgressSnapshot] = ()) -> None:
        """These ports have policies now, or have none, and `egress` is about connections that the pod makes. Never
        raises."""
        self._pod = pod
        self._ids.follow(pod, (*(each for port in ports for each in port.policies), *(each.policy for each in egress)))
        of_ports, outward = [each.waf for each in ports], [each.waf for each in egress]
        state_profiles(self._statements, pod.key, most_profiles(of_ports, outward))
        names = (name for each in (*of_ports, *outward) if each is not None for name in each.names)
        self._inspector.follow(tuple(dict.fromkeys(names)))

    def shown(self, counters: PodCounters) -> tuple[EngineView, ...]:
        """Those that policies want, with what the proxy has counted of them."""
        ids, waf = self._ids.engine(), self._inspector.engine(counters.of_engine("waf_verdicts"))
        if waf is not None:
            waf = msgspec.structs.replace(waf, bypassed=_unjudged(counters))
        if ids is not None:
            ids = msgspec.structs.replace(ids, connections=counters.of_engine("ids"))
        return tuple(each for each in (waf, ids) if each is not None)

    def why_unjudged(self, policies: tuple[PolicySnapshot, ...]) -> str:
        """Why the firewall of these policies does not judge requests yet; empty: it does, or they have none."""
        return self._inspector.why_absent if any(policy.waf for policy in policies) else ""

    def inspector_late(self) -> None:
        """The inspector has missed a deadline: end it."""
        self._inspector.late()

    def proxy_runs(self) -> None:
        """Another proxy is there."""
        self._inspector.retry()

    def look(self) -> None:
        """See whether other rules are in force. Never raises."""
        self._ids.look()

    def release(self) -> None:
        """Start nothing any more."""
        self._ids.release()
        self._inspector.release()

    async def aclose(self) -> None:
        """End what runs. Never raises."""
        await self._ids.aclose()
        await self._inspector.aclose()

    # --- inside -----------------------------------------------------------------------------------------------------

    async def _feed_ids(self, fd: int) -> None:
        """Hand the feed of an IDS to the proxy. Raises SidestepError."""
        await self._proxy().feed_ids(fd)

    async def _use_inspector(self, fd: int) -> None:
        """Hand the socket of an inspector to the proxy. Raises SidestepError."""
        await self._proxy().use_inspector(fd)

    def _firewall(self, reason: str) -> None:
        """The inspector is there, or why it is not."""
        state_inspector(self._statements, self._pod.key, reason)
        self._changed()


def _unjudged(counters: PodCounters) -> dict[str, int]:
    """What the inspector should have judged and did not, by reason."""
    passed = counters.of_engine("inspection_bypassed_waf")
    closed = counters.of_engine("inspection_closed_waf")
    return {name: passed.get(name, 0) + closed.get(name, 0) for name in sorted({*passed, *closed})}
