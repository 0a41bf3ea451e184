"""Whether the proxy of a target pod is there, and for how long it may be away.

The state comes from `PodProxy`, this module adds the patience: a proxy that restarts keeps its ports for
RESTART_PATIENCE seconds, while its clients wait in the accept queue. Then it is *gone*: its ports are left to the app
(or are closed, where a policy says so), and whoever still waits is reset.

    RUNNING      the proxy serves, unless it shows no sign of life for QUIET seconds
    RESTARTING   away; gone after RESTART_PATIENCE, when `on_gone` is called once
    FAILED       gone
    STOPPED      the target is being made or released: nobody serves
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sidestep.node.proxies.supervisor import ProxyState

RESTART_PATIENCE = 0.8
"""Seconds a proxy may be away before its ports are left to the app; a new proxy takes 30 ms."""

QUIET = 1.5
"""Seconds without a sign of life after which a proxy gets no new connections; it is killed after twice as many."""


class ProxyPresence:
    """The presence of one pod's proxy. `now` is the target's clock, in seconds."""

    def __init__(self, *, now: Callable[[], float], on_gone: Callable[[], None]) -> None:
        self._now = now
        self._on_gone = on_gone
        self._away_since: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_over = False
        """The patience has ended: a timer may fire a moment before the clock says so."""
        self.state = ProxyState.STOPPED

    def changed(self, state: ProxyState) -> bool:
        """Take the proxy's new state. Returns True when the proxy was there until now."""
        self.state = state
        self.stop()
        if state is ProxyState.RUNNING:
            self._away_since, self._is_over = None, False
            return False
        was_there = self._away_since is None
        if was_there:
            self._away_since = self._now()
        if state is ProxyState.RESTARTING:
            self._timer = asyncio.get_running_loop().call_later(RESTART_PATIENCE, self._over)
        return was_there

    def stop(self) -> None:
        """Do not call `on_gone` any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def is_gone(self) -> bool:
        """Whether no proxy is there that could take what waits, nor will be in a moment."""
        if self.state is ProxyState.RESTARTING:
            away = 0.0 if self._away_since is None else self._now() - self._away_since
            return self._is_over or away >= RESTART_PATIENCE
        return self.state is ProxyState.FAILED

    def absence(self, *, quiet: float) -> str:
        """Why the proxy takes no connections, now and in a moment; empty when it does.

        `quiet` is the seconds since its last sign of life.
        """
        if self.state is not ProxyState.RUNNING:
            if self.state is ProxyState.FAILED:
                return "the pod proxy keeps ending"
            if self.state is ProxyState.STOPPED or self.is_gone:
                return "the pod proxy has ended, and another one is not there yet"
        if quiet >= QUIET:
            return "the pod proxy shows no sign of life"
        return ""

    def _over(self) -> None:
        self._timer = None
        self._is_over = True
        self._on_gone()
