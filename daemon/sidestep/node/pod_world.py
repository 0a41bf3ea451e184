"""The pods' world as this node has it: what `AccessServer` grants to sessions that may use it.

Variables are read by the reader's one-shot child (`node.certificates.one_shot`), never by a pod's proxy. Rights are
checked by `node.sessions.access` before anything is asked here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sidestep.model.errors import RefusedError
from sidestep.node.sessions.pod_world import NoWorld
from sidestep.policy.pod_access import container_of, process_of

if TYPE_CHECKING:
    from sidestep.model.intercept import Intercept
    from sidestep.model.inventory import Inventory
    from sidestep.model.pod import Pod, PodKey
    from sidestep.node.certificates.reader import Reader


class NodePodWorld(NoWorld):
    """A `node.sessions.pod_world.PodWorld`. `inventory` returns the present one."""

    def __init__(self, *, inventory: Callable[[], Inventory], reader: Reader) -> None:
        self._inventory = inventory
        self._reader = reader

    async def environment(self, access: Intercept, pod: PodKey, container: str) -> bytes:
        """As PodWorld.environment."""
        found = self._pod(pod)
        name = container_of(access, found, container)
        pid = process_of(found, name)
        if pid is None:
            raise RefusedError(f"container {name} of pod {pod} has no process here")
        return await self._reader.environment(pid, found.location.births.get(pid))

    def _pod(self, key: PodKey) -> Pod:
        found = self._inventory().pods.get(key)
        if found is None:
            raise RefusedError(f"pod {key} is gone")
        return found
