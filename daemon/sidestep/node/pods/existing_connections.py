"""Ends the connections that a port had before it was steered, where an intercept asks for that.

Without such an intercept they go on with the app. They are listed before the port is steered and ended after it, each
by the kernel's cookie (`netns.established`), so that no connection that the proxy accepts meanwhile is ended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidestep.model.condition import Condition, ConditionType
from sidestep.model.errors import KernelError
from sidestep.netns import Connection, Netns, destroy, established
from sidestep.node.proxy_uids import is_proxy
from sidestep.observability.logs import get_logger
from sidestep.policy.survey import port_subject

if TYPE_CHECKING:
    from sidestep.model.pod import PodKey
    from sidestep.node.conditions import Statements
    from sidestep.node.pods.listening_port import ListeningPort


class ExistingConnections:
    """Lists and ends the connections that the ports of one pod had before they were steered."""

    def __init__(self, pod: PodKey, statements: Statements) -> None:
        self._pod = pod
        self._statements = statements
        self._log = get_logger("target").bind(pod=str(pod))

    def of(self, port: ListeningPort, netns: Netns) -> tuple[Connection, ...]:
        """The connections of a port that are not the proxy's, if somebody asks for their end. Raises KernelError."""
        if port.plan.resets <= port.reset_for:
            return ()
        return tuple(each for each in established(netns, port.plan.number) if not is_proxy(each.uid))

    def end(self, port: ListeningPort, netns: Netns, existing: tuple[Connection, ...]) -> None:
        """End them, now that the port is steered, for those who asked for it; once for each of them."""
        if not port.steered or port.plan.resets <= port.reset_for:
            return
        port.reset_for = port.plan.resets
        conditions = []
        try:
            ended = sum(destroy(netns, each) for each in existing)
            self._log.info("existing connections ended", port=port.plan.number, count=ended)
        except KernelError as error:
            text = f"connections that existed stay with the app: {error}"
            conditions.append(Condition(ConditionType.EXISTING_KEPT, port_subject(self._pod, port.plan.number), text))
        self._statements.state(port.plan.number, "existing", conditions)
