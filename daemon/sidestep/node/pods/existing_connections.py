"""Ends the connections that a port had before it was steered, where an intercept asks for that.

Without such an intercept they go on with the app. They are listed before the port is steered and ended after it, each
by the kernel's cookie (`netns.established`), so that no connection that the proxy accepts meanwhile is ended.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Final

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

PORTION: Final = 256
"""Connections ended in one turn of the event loop; each takes about 100 microseconds."""


class ExistingConnections:
    """Lists and ends the connections that the ports of one pod had before they were steered."""

    def __init__(self, pod: PodKey, statements: Statements) -> None:
        self._pod = pod
        self._statements = statements
        self._log = get_logger("target").bind(pod=str(pod))

    def of(self, port: ListeningPort, netns: Netns) -> tuple[Connection, ...]:
        """The connections of a port that are not the proxy's, if somebody asks for their end.

        Where they cannot be listed, for instance because there are too many, they stay with the app, and a condition
        says so: new connections are steered all the same.
        """
        if port.plan.resets <= port.reset_for:
            return ()
        try:
            return tuple(each for each in established(netns, port.plan.number) if not is_proxy(each.uid))
        except KernelError as error:
            port.reset_for = port.plan.resets
            self._state_kept(port.plan.number, error)
            return ()

    def end(self, port: ListeningPort, netns: Netns, existing: tuple[Connection, ...]) -> None:
        """End them, now that the port is steered, for those who asked for it; once for each of them.

        The first `PORTION` end at once, the others in later turns of the event loop.
        """
        if not port.steered or port.plan.resets <= port.reset_for:
            return
        port.reset_for = port.plan.resets
        self._statements.state(port.plan.number, "existing", ())
        self._end_some(port.plan.number, netns, existing, ended=0)

    def _end_some(self, port: int, netns: Netns, existing: tuple[Connection, ...], *, ended: int) -> None:
        if netns.closed:
            return  # the pod is released
        try:
            ended += sum(destroy(netns, each) for each in existing[:PORTION])
        except KernelError as error:
            self._state_kept(port, error)
            return
        left = existing[PORTION:]
        if left:
            go_on = partial(self._end_some, port, netns, left, ended=ended)
            asyncio.get_running_loop().call_soon(go_on)
        else:
            self._log.info("existing connections ended", port=port, count=ended)

    def _state_kept(self, port: int, error: KernelError) -> None:
        text = f"connections that existed stay with the app: {error}"
        condition = Condition(ConditionType.EXISTING_KEPT, port_subject(self._pod, port), text)
        self._statements.state(port, "existing", [condition])
