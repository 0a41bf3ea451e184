"""Keeps a zygote alive: starts it, replaces it when it ends or hangs, and asks it for processes.

A zygote is a Python program that has everything loaded, holds one end of a control channel, greets when it is ready,
and answers requests with a pidfd each. Which program that is, `ZygoteProgram` says.

A zygote that owes an answer and sends nothing at all for `silence` seconds is killed and replaced. (A deadline for each
request would also kill a zygote that works through a long queue.)

The end of the zygote harms no process that it forked, since the daemon holds a pidfd of each; it only delays the next
one. The zygote is therefore started again in the background, with a backoff. It gets two environment variables, which
say where the system's CAs are, no descriptor but its control socket and stdio, and a session of its own, so that Ctrl-C
at a terminal reaches only the daemon. Lines that it writes to stderr go to `on_output` for the log.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import msgspec

from sidestep.aio.channel import AsyncChannel, DeadlineError, MessageCodec
from sidestep.aio.packets import ChannelClosed, control_pair
from sidestep.aio.patience import Silence, patience
from sidestep.aio.process import Process
from sidestep.aio.tasks import Tasks
from sidestep.model.errors import BugError, KernelError, SidestepError
from sidestep.node.proxies.backoff import Backoff, CrashHistory
from sidestep.node.proxies.output import Output

_KEPT_VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR")

In = TypeVar("In", bound=Any)
Out = TypeVar("Out", bound=Any)


class ZygoteProgram(msgspec.Struct, Generic[In, Out], frozen=True):
    """A zygote: `module` is run with its descriptor and `options`; `noun` names it in texts.

    `greeting` is the type of its first message, whose `version` has to be this one.
    """

    noun: str
    module: str
    options: tuple[str, ...]
    codec: MessageCodec[In, Out]
    greeting: type
    version: int


class KeeperSettings(msgspec.Struct, frozen=True):
    """Deadlines in seconds."""

    start_deadline: float = 20.0
    spawn_deadline: float = 60.0
    silence: float = 3.0
    """Without an answer while one is waited for."""
    backoff: Backoff = msgspec.field(default_factory=Backoff)


class ZygoteKeeper(Generic[In, Out]):
    """The zygote, whichever process it is at the moment."""

    def __init__(
        self, program: ZygoteProgram[In, Out], settings: KeeperSettings, on_output: Callable[[str], None]
    ) -> None:
        self._program = program
        self._settings = settings
        self._on_output = on_output
        self._history = CrashHistory(settings.backoff)
        self._tasks = Tasks(program.noun)
        self._lock = asyncio.Lock()
        self._instance: _Instance[In, Out] | None = None
        self._ending: set[_Instance[In, Out]] = set()
        self._closing = False
        self.restarts = 0

    @property
    def pid(self) -> int | None:
        """The current process id; None while it is being replaced."""
        return None if self._instance is None else self._instance.process.pid

    async def ready(self) -> In:
        """Start it if it does not run; returns its greeting. Raises SidestepError when it cannot start."""
        return (await self._ready()).greeting

    async def exchange(self, message: Out, fd: int) -> tuple[In, int | None]:
        """Ask for a process that holds a copy of `fd`; returns the answer and its descriptor, the caller's to close.

        Raises SidestepError: the zygote cannot be started, has ended, does not answer.
        """
        instance = await self._ready()
        instance.asked += 1
        try:
            return await instance.channel.exchange(
                message, fd, deadline=self._settings.spawn_deadline, process=instance.process.pid
            )
        finally:
            instance.asked -= 1

    def watch(self, elapsed: float) -> None:
        """Look for a sign of life; called regularly. `elapsed` is the seconds since then that count."""
        if self._instance is not None and self._instance.hangs(elapsed):
            self._on_output(f"{self._program.noun} (process {self._instance.process.pid}) hangs and is replaced")
            self._instance.process.kill()

    @property
    def is_busy(self) -> bool:
        """Whether somebody waits for a process."""
        return self._lock.locked() or (self._instance is not None and self._instance.asked > 0)

    async def rest(self) -> None:
        """End the zygote until it is asked again; what it forked lives on."""
        async with self._lock:
            instance, self._instance = self._instance, None
            if instance is not None:
                await instance.end()

    async def aclose(self) -> None:
        """End the zygote; what it forked lives on."""
        self._closing = True
        await self._tasks.aclose()
        if self._instance is not None:
            self._ending.add(self._instance)
            self._instance = None
        for instance in self._ending:
            await instance.end()

    async def _ready(self) -> _Instance[In, Out]:
        async with self._lock:
            if self._closing:
                raise ChannelClosed(f"{self._program.noun} was stopped")
            if self._instance is None:
                self._instance = await _start(self._program, self._settings, self._on_output, self._lost)
            return self._instance

    def _lost(self, instance: _Instance[In, Out]) -> None:
        if instance is self._instance:
            self._instance = None
            self.restarts += 1
        self._ending.add(instance)
        if not self._closing:
            self._tasks.start(self._replace(instance), name="replace")

    async def _replace(self, lost: _Instance[In, Out]) -> None:
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
                self._on_output(f"{self._program.noun} cannot be started again: {error}")
            else:
                return


class _Instance(Generic[In, Out]):
    """One zygote process."""

    def __init__(
        self,
        popen: subprocess.Popen[bytes],
        ours: socket.socket,
        program: ZygoteProgram[In, Out],
        on_lost: Callable[[_Instance[In, Out]], None],
        *,
        silence: float,
    ) -> None:
        self._popen = popen
        self._program = program
        self._on_lost = on_lost
        self.greeted: asyncio.Future[In] = asyncio.get_running_loop().create_future()
        self.is_ready = False
        self._silence = Silence(silence)
        self._packets = 0
        self.started = asyncio.get_running_loop().time()
        self.asked = 0
        """Requests that wait for an answer."""
        self.process = Process(popen.pid, os.pidfd_open(popen.pid))
        self.channel: AsyncChannel[In, Out] = AsyncChannel(
            ours, codec=program.codec, on_message=self._received, on_closed=self._closed
        )

    @property
    def greeting(self) -> In:
        """Its first message; it has come."""
        return self.greeted.result()

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
        self.is_ready = False
        self.channel.close()
        if not await self.process.wait(deadline=1.0):
            self.process.kill()
            await self.process.wait()
        self._popen.wait()
        self.process.close()

    def _received(self, message: In, fd: int | None) -> None:
        if fd is not None:
            os.close(fd)
        if isinstance(message, self._program.greeting) and not self.greeted.done():
            self.greeted.set_result(message)

    def _closed(self, cause: SidestepError) -> None:
        if not self.greeted.done():
            self.greeted.set_exception(ChannelClosed(f"{self._program.noun} ended before it was ready: {cause}"))
            self.greeted.exception()
        elif self.is_ready:
            self._on_lost(self)


async def _start(
    program: ZygoteProgram[In, Out],
    settings: KeeperSettings,
    on_output: Callable[[str], None],
    on_lost: Callable[[_Instance[In, Out]], None],
) -> _Instance[In, Out]:
    """Start a process and wait until it has greeted. Raises SidestepError."""
    ours, popen = _execute(program, on_output)
    try:
        instance = _Instance(popen, ours, program, on_lost, silence=settings.silence)
    except OSError as error:
        popen.kill()
        popen.wait()
        ours.close()
        raise KernelError("pidfd_open", error.errno or 0, doing=f"starting {program.noun}") from error
    try:
        async with patience(settings.start_deadline, of=popen.pid):
            greeting = await instance.greeted
        if greeting.version != program.version:
            raise ChannelClosed(f"{program.noun} speaks version {greeting.version}, the daemon {program.version}")
    except TimeoutError as error:
        await instance.end()
        raise DeadlineError(f"starting {program.noun}", settings.start_deadline) from error
    except BaseException:
        await instance.end()
        raise
    instance.is_ready = True
    return instance


def _execute(
    program: ZygoteProgram[In, Out], on_output: Callable[[str], None]
) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """Execute the program; returns our end of its channel. Raises KernelError."""
    ours, theirs = control_pair()
    arguments = [sys.executable, "-I", "-m", program.module, str(theirs.fileno()), *program.options]
    try:
        popen = subprocess.Popen(
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
        raise KernelError("execve", error.errno or 0, doing=f"starting {program.noun}") from error
    finally:
        theirs.close()
    if popen.stderr is None:
        raise BugError(f"{program.noun} has no stderr")
    with popen.stderr as errors:
        Output(os.dup(errors.fileno()), on_output)
    return ours, popen
