"""One process of a pod proxy, from its fork to its end, and what it has acknowledged so far.

A target pod has one for each of its workers. Its end is the end of the process and nothing else: when the channel
closes or carries nonsense, when no sign of life comes, or when a deadline passes, the process is killed with SIGKILL,
which also ends a stopped process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from typing import Self

import msgspec

from sidestep.aio.channel import AsyncChannel, DeadlineError
from sidestep.aio.packets import control_pair
from sidestep.aio.patience import Silence
from sidestep.aio.process import Process
from sidestep.aio.pulse import Watched
from sidestep.aio.share import Share, ShareLimits
from sidestep.model.errors import PeerError, SidestepError
from sidestep.node.proxies.desired import Acknowledged, ProxyError
from sidestep.node.proxies.memory_cgroups import MemoryCgroups
from sidestep.node.proxies.output import Output, pipe
from sidestep.node.proxies.zygote import Zygote
from sidestep.proxy.control.channel import Codec
from sidestep.proxy.control.messages import VERSION, Ack, Enter, FromProxy, Hello, Message, Pulse, Stderr

OnMessage = Callable[["ProxyProcess", FromProxy], None]

KILL_PATIENCE = 5.0
"""Seconds after SIGKILL until a process that the kernel does not end is left behind."""


TALK = ShareLimits(burst=0.5, share=0.35, patience=5.0)
"""The share of the event loop that the messages of one pod's proxy may take, of all its processes together.

A proxy that names and diverts 2,000 connections a second, and logs as much as it may
(`proxy.mirror.request_log.RATE`), takes some 0.3.
"""


class ProxyLimits(msgspec.Struct, frozen=True):
    """What a pod proxy may use, and how long the daemon waits for it (seconds)."""

    memory: int = 1 << 30
    """Bytes of private memory; far above what a proxy needs, far below what hurts a node."""
    descriptors: int = 65536
    """Open files; lowered to the hard limit of the daemon."""
    answer: float = 5.0
    """For an acknowledgement."""
    silence: float = 3.0
    """Without any sign of life before the process is killed."""
    talk: ShareLimits = TALK


class Placement(msgspec.Struct, frozen=True):
    """Where a proxy process runs: `netns_fd` stays the caller's; `uid` is this pod's own user id."""

    name: str
    netns_fd: int
    uid: int


class ProxyProcess:
    """A running proxy process. Make it with `await ProxyProcess.begin(...)`."""

    def __init__(
        self,
        process: Process,
        sock: socket.socket,
        pulse: Watched,
        output: Output,
        *,
        limits: ProxyLimits,
        on_message: OnMessage,
        cgroups: MemoryCgroups | None = None,
        worker: int = 0,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._limits = limits
        self._on_message = on_message
        self._greeted = False
        self._silence = Silence(limits.silence)
        self._packets = 0
        self._ended: asyncio.Future[str] = self._loop.create_future()
        self._cause = ""
        self._patience: asyncio.TimerHandle | None = None
        self._call_off = process.watch(self._process_ended)
        self._share = Share(limits.talk, now=self._loop.time())
        self._channel: AsyncChannel[FromProxy, Message] = AsyncChannel(
            sock,
            codec=Codec[FromProxy](FromProxy),
            on_message=self._received,
            on_closed=self._channel_closed,
            share=self._share,
        )
        self._pulse = pulse
        self._output = output
        self._cgroups = cgroups
        if cgroups is not None:
            cgroups.enter(process, limits.memory + limits.memory // 2)
        self.worker = worker
        """The number of its worker, unique among the processes of the pod."""
        self.process = process
        self.began = self._loop.time()
        self.told = Acknowledged()

    @classmethod
    async def begin(
        cls,
        zygote: Zygote,
        placement: Placement,
        *,
        limits: ProxyLimits,
        on_message: OnMessage,
        cgroups: MemoryCgroups | None = None,
        worker: int = 0,
    ) -> Self:
        """Fork a proxy and have it enter its pod and lock its sandbox. Raises SidestepError; nothing is left then.

        Few processes start at the same time (`Zygote.starting`): the deadlines begin when it is this one's turn.
        """
        async with zygote.starting:
            return await cls._start(
                zygote, placement, limits=limits, on_message=on_message, cgroups=cgroups, worker=worker
            )

    @classmethod
    async def _start(
        cls,
        zygote: Zygote,
        placement: Placement,
        *,
        limits: ProxyLimits,
        on_message: OnMessage,
        cgroups: MemoryCgroups | None,
        worker: int,
    ) -> Self:
        with contextlib.ExitStack() as undo:
            pulse = Watched()
            undo.callback(pulse.close)
            reading, writing = pipe()
            undo.callback(os.close, writing)
            output = Output(reading, zygote.on_output, label=placement.name)
            undo.callback(output.close)
            ours, theirs = control_pair()
            undo.callback(ours.close)
            try:
                process = await zygote.spawn(placement.name, theirs)
            finally:
                theirs.close()
            undo.callback(process.close)
            undo.callback(process.kill)
            life = cls(
                process, ours, pulse, output, limits=limits, on_message=on_message, cgroups=cgroups, worker=worker
            )
            undo.pop_all()
        try:
            try:
                await life.tell(Stderr(0), writing, doing="take a pipe for errors")
            finally:
                os.close(writing)
            await life.tell(Pulse(0), pulse.fd, doing="count its heartbeats")
            enter = Enter(0, uid=placement.uid, memory_limit=limits.memory, fd_limit=limits.descriptors)
            await life.tell(enter, placement.netns_fd, doing="enter the pod")
            if not life._greeted:
                raise PeerError("the pod proxy did not say hello")
        except BaseException:
            life.kill("it did not start")
            await life.ended()
            raise
        return life

    async def tell(self, message: Message, fd: int | None = None, *, doing: str) -> None:
        """Send a message and wait until it has been carried out.

        Raises ProxyError when the proxy could not, ChannelClosed when it is gone. One that does not answer in time is
        killed, and DeadlineError raised.
        """
        try:
            answer = await self._channel.request(message, fd, deadline=self._limits.answer, process=self.process.pid)
        except DeadlineError as error:
            self.kill(str(error))
            raise
        if isinstance(answer, Ack) and answer.error:
            raise ProxyError(doing, answer.error)

    def divide(self, processes: int) -> None:
        """Listen to it for its part of what all processes of the pod may take."""
        self._share.divide(processes)

    def watch(self, elapsed: float) -> None:
        """Look for a sign of life; to be called regularly. A heartbeat or any message since the last call is one.

        `elapsed` is the seconds since then, already bounded by the caller, so that time in which the daemon itself did
        not run does not count against the proxy; nor does time in which it waited for a CPU.
        """
        if not self.alive:
            return
        packets = self._channel.packets
        if self._pulse.beats() or packets != self._packets:
            self._packets = packets
            self._silence.broken()
        elif self._silence.lasts(elapsed, pid=self.process.pid):
            self.kill(f"no heartbeat for {self.quiet:.1f} s")

    @property
    def quiet(self) -> float:
        """Seconds since the last sign of life, of those that count."""
        return self._silence.seconds

    def kill(self, cause: str) -> None:
        """Send SIGKILL, for this reason. The end is seen through `ended`."""
        self._cause = self._cause or cause
        self.process.kill()
        if self._patience is None and not self._ended.done():
            self._patience = self._loop.call_later(KILL_PATIENCE, self._process_ended)

    async def ended(self) -> str:
        """Wait for the end; returns the reason. Gives back the process and channel."""
        return await asyncio.shield(self._ended)

    @property
    def alive(self) -> bool:
        """Whether the process has not ended yet, as far as the daemon has seen."""
        return not self._ended.done()

    def _process_ended(self) -> None:
        if self._ended.done():
            return
        self._ended.set_result(self._cause or "the process ended")
        self._call_off()
        if self._patience is not None:
            self._patience.cancel()
        self._channel.close()
        self._pulse.close()
        self._output.close()
        if self._cgroups is not None:
            self._cgroups.leave(self.process.pid)
        self.process.close()

    def _channel_closed(self, cause: SidestepError) -> None:
        if self.alive:
            # A process that ends closes its channel just before its pidfd tells: that is no cause of its own.
            self.kill(str(cause) if isinstance(cause, PeerError) else "the process ended")

    def _received(self, message: FromProxy, fd: int | None) -> None:
        del fd  # The codec lets none through: no message of a proxy carries one.
        if isinstance(message, Hello):
            if message.version != VERSION:
                raise PeerError(f"the pod proxy speaks version {message.version}, the daemon {VERSION}")
            self._greeted = True
        elif not self._greeted:
            raise PeerError("the pod proxy spoke before its hello")
        else:
            self._on_message(self, message)
