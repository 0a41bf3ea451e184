"""All pod proxies of a node over one zygote, with one timer that watches every heartbeat.

`PodProxy` keeps one proxy alive; `Zygote` keeps the zygote alive.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Self

from sidestep.node.proxies.desired import CredentialSource, ProxyError
from sidestep.node.proxies.memory_cgroups import MemoryCgroups
from sidestep.node.proxies.pod_proxy import PodProxy, SupervisorSettings
from sidestep.node.proxies.proxy_handler import ProxyHandler, ProxyState
from sidestep.node.proxies.proxy_process import Placement, ProxyLimits
from sidestep.node.proxies.zygote import Zygote, ZygoteSettings

_TICK = 0.5
"""Seconds between looks at the heartbeats."""


class ProxySupervisor:
    """The zygote and all pod proxies of a node. Make it with `await ProxySupervisor.start(...)`."""

    def __init__(self, zygote: Zygote, settings: SupervisorSettings) -> None:
        self.zygote = zygote
        self._settings = settings
        self._proxies: set[PodProxy] = set()
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()
        self._timer = self._loop.call_later(_TICK, self._tick)

    @classmethod
    async def start(
        cls,
        *,
        on_output: Callable[[str], None],
        zygote: ZygoteSettings | None = None,
        settings: SupervisorSettings | None = None,
    ) -> Self:
        """Start the zygote. `on_output` gets lines of what zygote and proxies write to stderr. Raises SidestepError."""
        return cls(await Zygote.start(on_output=on_output, settings=zygote), settings or SupervisorSettings())

    @property
    def cgroups(self) -> MemoryCgroups | None:
        """Where processes beside the proxies get memory cgroups, too; None where there are none."""
        return self._settings.cgroups

    def proxy(self, name: str, *, netns_fd: int, uid: int, handler: ProxyHandler) -> PodProxy:
        """Make the proxy of a pod, not started yet. `netns_fd` stays the caller's, and open while the proxy is used."""
        proxy = PodProxy(self.zygote, Placement(name, netns_fd, uid), handler, self._settings)
        self._proxies.add(proxy)
        return proxy

    async def remove(self, proxy: PodProxy) -> None:
        """End a proxy and forget it."""
        await proxy.aclose()
        self._proxies.discard(proxy)

    async def aclose(self) -> None:
        """End all proxies, then the zygote."""
        self._timer.cancel()
        for proxy in self._proxies:
            proxy.kill()
        for proxy in list(self._proxies):
            await self.remove(proxy)
        await self.zygote.aclose()
        if self._settings.cgroups is not None:
            await self._settings.cgroups.aclose()

    def _tick(self) -> None:
        """Watch all heartbeats with one timer: a hundred of them would cost a measurable part of an idle node."""
        now = self._loop.time()
        elapsed = min(now - self._last, 2 * _TICK)
        self._last = now
        self._timer = self._loop.call_later(_TICK, self._tick)
        self.zygote.watch(elapsed)
        for proxy in self._proxies:
            proxy.watch(elapsed)


__all__ = [
    "ProxySupervisor",
    "PodProxy",
    "ProxyHandler",
    "ProxyState",
    "CredentialSource",
    "ProxyError",
    "ProxyLimits",
    "SupervisorSettings",
    "ZygoteSettings",
]
