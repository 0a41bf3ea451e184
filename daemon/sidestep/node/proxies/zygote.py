"""The daemon's end of the zygote: starts it, replaces it when it ends, and asks it for pod proxies.

A zygote that owes an answer and sends nothing at all for `silence` seconds is killed and replaced. (A deadline for each
request would also kill a zygote that works through a long queue.)

The end of the zygote harms no proxy, since the daemon holds a pidfd of each; it only delays the next one. The zygote is
therefore started again in the background, with a backoff. It gets two environment variables, which say where the
system's CAs are, no descriptor but its control socket and stdio, and a session of its own, so that Ctrl-C at a terminal
reaches only the daemon.

Lines that it writes to stderr go to `on_output` for the log. Its proxies have pipes of their own.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from sidestep.aio.channel import AsyncChannel, DeadlineError
from sidestep.aio.packets import ChannelClosed, control_pair
from sidestep.aio.patience import Silence, patience
from sidestep.aio.process import Process
from sidestep.aio.tasks import Tasks
from sidestep.model.errors import BugError, KernelError, SidestepError
from sidestep.node.proxies.backoff import Backoff, CrashHistory
from sidestep.node.proxies.desired import ProxyError
from sidestep.node.proxies.output import Output
from sidestep.proxy.control.channel import Codec
from sidestep.proxy.control.messages import VERSION, Ack, FromZygote, Hello, Message, Spawn, Spawned

_KEPT_VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
_PROCESS = re.compile(r"the proxy \(process (\d{1,10})\)")
_NAMES = 4096
"""Processes whose pods are remembered, for the log."""

STARTING = max(4, 2 * (os.cpu_count() or 1))
"""Proxies that may start at the same time; more would wait for a CPU until their deadlines pass."""


@dataclass(frozen=True, slots=True)
class ZygoteSettings:
    """How the zygote is started; the defaults are the product, tests put a worker of their own in.

    `worker` is MODULE:FUNCTION (None: the pod proxy), `path` a folder to import it from; deadlines in seconds.
    """

    worker: str | None = None
    path: str | None = None
    start_deadline: float = 20.0
    spawn_deadline: float = 60.0
    silence: float = 3.0
    """Without an answer while one is waited for."""
    backoff: Backoff = field(default_factory=Backoff)


class Zygote:
    """The zygote, whichever process it is at the moment. Make it with `await Zygote.start(...)`."""

    def __init__(self, settings: ZygoteSettings, on_output: Callable[[str], None]) -> None:
        self._settings = settings
        self.on_output = on_output
        """Gets lines for the log: of the zygote's, and those of the proxies."""
        self._history = CrashHistory(settings.backoff)
        self._tasks = Tasks("zygote")
        self._lock = asyncio.Lock()
        self._instance: _Instance | None = None
        self._ending: set[_Instance] = set()
        self._closing = False
        self.restarts = 0
        self._names: OrderedDict[int, str] = OrderedDict()
        self.starting = asyncio.Semaphore(STARTING)
        """Held from the fork of a proxy until it has entered its pod."""

    @classmethod
    async def start(cls, *, on_output: Callable[[str], None], settings: ZygoteSettings | None = None) -> Self:
        """Start the zygote and wait until it is ready to fork. Raises SidestepError when it cannot start."""
        zygote = cls(settings or ZygoteSettings(), on_output)
        await zygote._ready()
        return zygote

    @property
    def pid(self) -> int | None:
        """The current process id; None while it is being replaced."""
        return None if self._instance is None else self._instance.process.pid

    async def spawn(self, name: str, control: socket.socket) -> Process:
        """Fork a pod proxy that holds a copy of `control`. Raises SidestepError (the zygote is gone, cannot fork)."""
        instance = await self._ready()
        instance.asked += 1
        try:
            answer, fd = await instance.channel.exchange(
                Spawn(0),
                control.fileno(),
                deadline=self._settings.spawn_deadline,
                process=instance.process.pid,
            )
        finally:
            instance.asked -= 1
        if isinstance(answer, Spawned) and fd is not None:
            self._names[answer.pid] = name
            self._names.move_to_end(answer.pid)
            if len(self._names) > _NAMES:
                self._names.popitem(last=False)
            return Process(answer.pid, fd)
        raise ProxyError("start", answer.error if isinstance(answer, Ack) else "the zygote gave no answer of use")

    def watch(self, elapsed: float) -> None:
        """Look for a sign of life; called regularly. `elapsed` is the seconds since then that count."""
        if self._instance is not None and self._instance.hangs(elapsed):
            self.on_output(f"the zygote (process {self._instance.process.pid}) hangs and is replaced")
            self._instance.process.kill()

    async def aclose(self) -> None:
        """End the zygote; proxies live on."""
        self._closing = True
        await self._tasks.aclose()
        if self._instance is not None:
            self._ending.add(self._instance)
            self._instance = None
        for instance in self._ending:
            await instance.end()

    async def _ready(self) -> _Instance:
        async with self._lock:
            if self._closing:
                raise ChannelClosed("the zygote was stopped")
            if self._instance is None:
                self._instance = await _Instance.start(self._settings, self._say, self._lost)
            return self._instance

    def _say(self, line: str) -> None:
        """Log a line of the zygote's, which knows proxies by their processes only."""
        found = _PROCESS.search(line)
        name = self._names.get(int(found[1])) if found is not None else None
        self.on_output(line if name is None else f"{name}: {line}")

    def _lost(self, instance: _Instance) -> None:
        if instance is self._instance:
            self._instance = None
            self.restarts += 1
        self._ending.add(instance)
        if not self._closing:
            self._tasks.start(self._replace(instance), name="replace")

    async def _replace(self, lost: _Instance) -> None:
        loop = asyncio.get_running_loop()
        lived = loop.time() - lost.started
        await lost.end()
        self._ending.discard(lost)
        while not self._closing:
            await asyncio.sleep(self._history.crashed(loop.time(), lived=lived).pause)
            lived = 0.0
            try:
                await self._ready()
            except SidestepError as error:
                self.on_output(f"the zygote cannot be started again: {error}")
            else:
                return


class _Instance:
    """One zygote process."""

    def __init__(
        self,
        popen: subprocess.Popen[bytes],
        ours: socket.socket,
        on_lost: Callable[[_Instance], None],
        *,
        silence: float,
    ) -> None:
        self._popen = popen
        self._on_lost = on_lost
        self._hello: asyncio.Future[Hello] = asyncio.get_running_loop().create_future()
        self._is_ready = False
        self._silence = Silence(silence)
        self._packets = 0
        self.started = asyncio.get_running_loop().time()
        self.asked = 0
        """Requests that wait for an answer."""
        self.process = Process(popen.pid, os.pidfd_open(popen.pid))
        self.channel: AsyncChannel[FromZygote, Message] = AsyncChannel(
            ours, codec=Codec[FromZygote](FromZygote), on_message=self._received, on_closed=self._closed
        )

    @classmethod
    async def start(
        cls, settings: ZygoteSettings, on_output: Callable[[str], None], on_lost: Callable[[_Instance], None]
    ) -> Self:
        ours, theirs = control_pair()
        arguments = [sys.executable, "-I", "-m", "sidestep.proxy.runtime.zygote", str(theirs.fileno())]
        if settings.worker is not None:
            arguments += ["--worker", settings.worker]
        if settings.path is not None:
            arguments += ["--path", settings.path]
        try:
            popen = subprocess.Popen(  # noqa: ASYNC220 - vfork and exec of ourselves, once; its pipe is read by the loop
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(theirs.fileno(),),
                env={name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ},
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            raise KernelError("execve", error.errno or 0, doing="starting the zygote") from error
        finally:
            theirs.close()
        if popen.stderr is None:
            raise BugError("the zygote has no stderr")
        with popen.stderr as errors:
            Output(os.dup(errors.fileno()), on_output)
        try:
            instance = cls(popen, ours, on_lost, silence=settings.silence)
        except OSError as error:
            popen.kill()
            popen.wait()
            ours.close()
            raise KernelError("pidfd_open", error.errno or 0, doing="starting the zygote") from error
        try:
            async with patience(settings.start_deadline, of=popen.pid):
                hello = await instance._hello
            if hello.version != VERSION:
                raise ChannelClosed(f"the zygote speaks version {hello.version}, the daemon {VERSION}")
        except TimeoutError as error:
            await instance.end()
            raise DeadlineError("starting the zygote", settings.start_deadline) from error
        except BaseException:
            await instance.end()
            raise
        instance._is_ready = True
        return instance

    def hangs(self, elapsed: float) -> bool:
        """Whether nothing has come for too long although something is waited for."""
        packets = self.channel.packets
        if not self.asked or packets != self._packets:
            self._packets = packets
            self._silence.broken()
            return False
        return self._silence.lasts(elapsed, pid=self.process.pid)

    async def end(self) -> None:
        """End the process, reap it, give everything back."""
        self._is_ready = False
        self.channel.close()
        if not await self.process.wait(deadline=1.0):
            self.process.kill()
            await self.process.wait()
        self._popen.wait()
        self.process.close()

    def _received(self, message: FromZygote, fd: int | None) -> None:
        if fd is not None:
            os.close(fd)
        if isinstance(message, Hello) and not self._hello.done():
            self._hello.set_result(message)

    def _closed(self, cause: SidestepError) -> None:
        if not self._hello.done():
            self._hello.set_exception(ChannelClosed(f"the zygote ended before it was ready: {cause}"))
            self._hello.exception()
        elif self._is_ready:
            self._on_lost(self)
