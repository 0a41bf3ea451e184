"""Remembers the ports whose app asks clients for certificates after the handshake.

A pod proxy learns it by losing one connection (`proxy.runtime.worker`); the daemon remembers it across intercepts until
the pod or the daemon ends. A hostile proxy can report it falsely: its own pod loses interception, no other does.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from sidestep.model.pod import Pod
    from sidestep.snapshots.ports import PortSnapshot

MAX_PODS = 4096
"""Pods remembered; the one that was seen longest ago is forgotten first."""


class LateClientAuth:
    """Remembers, for each pod, the ports whose app asks for client certificates after the handshake."""

    def __init__(self) -> None:
        self._ports: OrderedDict[tuple[str, str], set[int]] = OrderedDict()

    def add(self, pod: Pod, number: int) -> None:
        """Remember that the app behind this port asks after the handshake."""
        key = _key(pod)
        self._ports.setdefault(key, set()).add(number)
        self._ports.move_to_end(key)
        if len(self._ports) > MAX_PODS:
            self._ports.popitem(last=False)

    def snapshot(self, pod: Pod, port: PortSnapshot) -> PortSnapshot:
        """The port's snapshot with `late_client_auth` set where the port is remembered."""
        if port.number not in self._ports.get(_key(pod), ()):
            return port
        return msgspec.structs.replace(port, late_client_auth=True)


def _key(pod: Pod) -> tuple[str, str]:
    """Name and UID: a pod that is created again under the same name starts with nothing remembered."""
    return str(pod.key), pod.uid
