"""The daemon's end of the zygote of pod proxies: asks it for them, and names them in what it logs.

`zygote_keeper` keeps it alive. Lines that it writes to stderr go to `on_output` for the log. Its proxies have pipes of
their own.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections import OrderedDict
from collections.abc import Callable
from typing import Self

import msgspec

from sidestep.aio.process import Process
from sidestep.node.proxies.backoff import Backoff
from sidestep.node.proxies.desired import ProxyError
from sidestep.node.proxies.zygote_keeper import KeeperSettings, ZygoteKeeper, ZygoteProgram
from sidestep.proxy.control.channel import Codec
from sidestep.proxy.control.messages import VERSION, Ack, FromZygote, Hello, Message, Spawn, Spawned

_PROCESS = re.compile(r"the proxy \(process (\d{1,10})\)")
_NAMES = 4096
"""Processes whose pods are remembered, for the log."""

STARTING = max(4, 2 * (os.cpu_count() or 1))
"""Proxies that may start at the same time; more would wait for a CPU until their deadlines pass."""


class ZygoteSettings(msgspec.Struct, frozen=True):
    """How the zygote is started; the defaults are the product, tests put a worker of their own in.

    `worker` is MODULE:FUNCTION (None: the pod proxy), `path` a folder to import it from; deadlines in seconds.
    """

    worker: str | None = None
    path: str | None = None
    start_deadline: float = 20.0
    spawn_deadline: float = 60.0
    silence: float = 3.0
    """Without an answer while one is waited for."""
    backoff: Backoff = msgspec.field(default_factory=Backoff)

    def program(self) -> ZygoteProgram[FromZygote, Message]:
        """The process that is started."""
        options: tuple[str, ...] = () if self.worker is None else ("--worker", self.worker)
        options += () if self.path is None else ("--path", self.path)
        codec = Codec[FromZygote](FromZygote)
        return ZygoteProgram("the zygote", "sidestep.proxy.runtime.zygote", options, codec, Hello, VERSION)


class Zygote:
    """The zygote, whichever process it is at the moment. Make it with `await Zygote.start(...)`."""

    def __init__(self, settings: ZygoteSettings, on_output: Callable[[str], None]) -> None:
        self.on_output = on_output
        """Gets lines for the log: of the zygote's, and those of the proxies."""
        deadlines = KeeperSettings(settings.start_deadline, settings.spawn_deadline, settings.silence, settings.backoff)
        self._keeper = ZygoteKeeper(settings.program(), deadlines, self._say)
        self._names: OrderedDict[int, str] = OrderedDict()
        self.starting = asyncio.Semaphore(STARTING)
        """Held from the fork of a proxy until it has entered its pod."""

    @classmethod
    async def start(cls, *, on_output: Callable[[str], None], settings: ZygoteSettings | None = None) -> Self:
        """Start the zygote and wait until it is ready to fork. Raises SidestepError when it cannot start."""
        zygote = cls(settings or ZygoteSettings(), on_output)
        await zygote._keeper.ready()
        return zygote

    @property
    def pid(self) -> int | None:
        """The current process id; None while it is being replaced."""
        return self._keeper.pid

    @property
    def restarts(self) -> int:
        """How often it was replaced."""
        return self._keeper.restarts

    async def spawn(self, name: str, control: socket.socket) -> Process:
        """Fork a pod proxy that holds a copy of `control`. Raises SidestepError (the zygote is gone, cannot fork)."""
        answer, fd = await self._keeper.exchange(Spawn(0), control.fileno())
        if isinstance(answer, Spawned) and fd is not None:
            self._names[answer.pid] = name
            self._names.move_to_end(answer.pid)
            if len(self._names) > _NAMES:
                self._names.popitem(last=False)
            return Process(answer.pid, fd)
        raise ProxyError("start", answer.error if isinstance(answer, Ack) else "the zygote gave no answer of use")

    def watch(self, elapsed: float) -> None:
        """Look for a sign of life; called regularly. `elapsed` is the seconds since then that count."""
        self._keeper.watch(elapsed)

    async def aclose(self) -> None:
        """End the zygote; proxies live on."""
        await self._keeper.aclose()

    def _say(self, line: str) -> None:
        """Log a line of the zygote's, which knows proxies by their processes only."""
        found = _PROCESS.search(line)
        name = self._names.get(int(found[1])) if found is not None else None
        self.on_output(line if name is None else f"{name}: {line}")
