"""Ports whose app was seen to ask clients for certificates after the handshake.

A pod proxy finds it out at the expense of one connection (`proxy.worker`), so it is remembered for as long as the pod
and the daemon live, beyond any intercept. A pod that a proxy speaks for falsely loses interception, nothing else.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from sidestep.model.pod import Pod
    from sidestep.proxy.messages import PortSnapshot

MAX_PODS = 4096
"""Pods remembered; the one that was seen longest ago is forgotten first."""


class AskedLater:
    """By pod, the numbers of those ports."""

    def __init__(self) -> None:
        self._ports: OrderedDict[tuple[str, str], set[int]] = OrderedDict()

    def add(self, pod: Pod, number: int) -> None:
        """The app behind this port asks later."""
        key = _key(pod)
        self._ports.setdefault(key, set()).add(number)
        self._ports.move_to_end(key)
        if len(self._ports) > MAX_PODS:
            self._ports.popitem(last=False)

    def snapshot(self, pod: Pod, port: PortSnapshot) -> PortSnapshot:
        """What the proxy is told of a port: with what is remembered."""
        if port.number not in self._ports.get(_key(pod), ()):
            return port
        return msgspec.structs.replace(port, asks_later=True)


def _key(pod: Pod) -> tuple[str, str]:
    """A pod of the same name that is created anew is another one."""
    return str(pod.key), pod.uid
