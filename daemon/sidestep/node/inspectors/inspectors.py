"""Makes inspectors: starts their zygote when the first one is wanted, and has custom rules checked.

An inspector is handed out when it has said that it is locked. Whoever gets it owns its process, and the socket to it.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

import msgspec

from sidestep.aio.channel import DeadlineError
from sidestep.aio.packets import control_pair
from sidestep.aio.patience import patience
from sidestep.aio.process import Process
from sidestep.inspector.zygote_messages import FromZygote, Loaded, Spawn, Spawned
from sidestep.model.errors import BugError, ConfigurationError, KernelError, PeerError
from sidestep.node.proxies.zygote_keeper import KeeperSettings, ZygoteKeeper, ZygoteProgram
from sidestep.protocols.waf_messages import MAX_PACKET, VERSION, Configure, Configured, FromInspector, Ready

if TYPE_CHECKING:
    from sidestep.snapshots.waf import Profile

MEMORY: Final = 192 * 1024 * 1024
"""Bytes of private writable memory of an inspector; some 30 MiB of them are the zygote's, unchanged."""
GROUP_MEMORY: Final = MEMORY + 64 * 1024 * 1024
"""Bytes that its memory cgroup may be charged: MEMORY, and what the kernel holds for it. The pages that it shares with
the zygote are charged to that."""
TICK: Final = 0.5
"""Seconds between two looks at the zygote."""
IDLE: Final = 10.0
"""Seconds after which a zygote is ended that nobody wants."""
READY: Final = 10.0
"""Seconds until an inspector is locked, or has taken profiles."""

_encoder = msgspec.msgpack.Encoder()
_from_inspector: msgspec.msgpack.Decoder[FromInspector] = msgspec.msgpack.Decoder(FromInspector)


class _Codec:
    """As `aio.channel.MessageCodec` says. The zygote is trusted; nothing of it wants an answer."""

    def __init__(self) -> None:
        self._decoder: msgspec.msgpack.Decoder[FromZygote] = msgspec.msgpack.Decoder(FromZygote)

    def encode(self, message: Spawn, fd: int | None = None, /) -> tuple[bytes, int | None]:
        del fd
        return _encoder.encode(message), None

    def decode(self, data: bytes, fd: int | None, /) -> tuple[FromZygote, int | None]:
        try:
            return self._decoder.decode(data), fd
        except msgspec.DecodeError as error:
            if fd is not None:
                os.close(fd)
            raise PeerError(f"the zygote of the inspectors sent no message: {error}") from error

    def acknowledge(self, seq: int, error: str, /) -> Spawn:
        raise BugError(f"the zygote of the inspectors wants no answer ({seq}, {error})")

    def is_answer(self, message: FromZygote, /) -> bool:
        return isinstance(message, Spawned)

    def wants_answer(self, message: FromZygote, /) -> bool:
        del message
        return False


class InspectorProcess(msgspec.Struct, frozen=True):
    """A locked inspector. Owns the pidfd of `process`, and `sock`, which does not block."""

    process: Process
    sock: socket.socket

    def close(self) -> None:
        """End it, and give everything back."""
        self.process.kill()
        self.process.close()
        self.sock.close()


class Inspectors:
    """See the module. `folder` is a Core Rule Set as it is released, None for Debian's."""

    def __init__(
        self, on_output: Callable[[str], None], folder: str | None = None, settings: KeeperSettings | None = None
    ) -> None:
        options = () if folder is None else ("--crs", folder)
        program = ZygoteProgram(
            "the zygote of the inspectors", "sidestep.inspector.zygote", options, _Codec(), Loaded, VERSION
        )
        self._loaded: Loaded | None = None
        self._wanting: set[object] = set()
        self._idle = 0.0
        self._keeper: ZygoteKeeper[FromZygote, Spawn] = ZygoteKeeper(program, settings or KeeperSettings(), on_output)

    @property
    def pid(self) -> int | None:
        """The zygote's process id; None while there is none."""
        return self._keeper.pid

    async def loaded(self) -> Loaded:
        """What the zygote has loaded. Raises SidestepError, among others where a library or the rules are missing."""
        greeting = await self._keeper.ready()
        if not isinstance(greeting, Loaded):
            raise BugError("the zygote of the inspectors greets with something else")
        return greeting

    @property
    def names(self) -> Mapping[int, str]:
        """What rules of the Core Rule Set say, by id; empty before the first inspector."""
        return {} if self._loaded is None else self._loaded.names

    @property
    def version(self) -> str:
        """What the engine and the rules say of themselves; empty before the first inspector."""
        return "" if self._loaded is None else version_of(self._loaded)

    def want(self, who: object) -> None:
        """Somebody wants inspectors, until `release`."""
        self._wanting.add(who)

    def release(self, who: object) -> None:
        """Somebody wants none any more."""
        self._wanting.discard(who)

    async def run(self) -> None:
        """Look for signs of life of the zygote, and end it once nobody has wanted it for IDLE seconds; until
        cancelled."""
        loop = asyncio.get_running_loop()
        last = loop.time()
        while True:
            await asyncio.sleep(TICK)
            now = loop.time()
            self._keeper.watch(min(now - last, 2 * TICK))
            self._idle = 0.0 if self._wanting or self._keeper.is_busy else self._idle + now - last
            last = now
            if self._idle > IDLE:
                await self._keeper.rest()

    async def spawn(self, uid: int) -> InspectorProcess:
        """Make an inspector that runs as this user. Raises SidestepError."""
        try:
            ours, theirs = control_pair()
        except OSError as error:
            raise KernelError("socketpair", error.errno or 0, doing="making an inspector") from error
        try:
            self._loaded = await self.loaded()
            answer, fd = await self._keeper.exchange(Spawn(0, uid, MEMORY), theirs.fileno())
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        if not isinstance(answer, Spawned) or fd is None:
            ours.close()
            raise KernelError("fork", 0, doing=f"making an inspector ({getattr(answer, 'error', None)})")
        ours.setblocking(False)
        made = InspectorProcess(Process(answer.pid, fd), ours)
        try:
            told = await _receive(made, "locking an inspector")
            if not isinstance(told, Ready) or told.version != VERSION:
                raise PeerError("an inspector began with something else than Ready")
            if told.error is not None:
                raise ConfigurationError(f"an inspector cannot be locked: {told.error}")
        except BaseException:
            made.close()
            raise
        return made

    async def check(self, profile: Profile, *, uid: int) -> None:
        """Have a throw-away inspector take a profile. Raises ConfigurationError for one that is not possible, and other
        SidestepErrors where it could not be asked. An inspector that ends over it says that it is not possible, too."""
        made = await self.spawn(uid)
        try:
            await asyncio.get_running_loop().sock_sendall(made.sock, _encoder.encode(Configure((profile,))))
            told = await _receive(made, "checking rules of a web application firewall")
        except (OSError, PeerError) as error:
            raise ConfigurationError("the engine ended when it read these rules") from error
        finally:
            made.close()
        if not isinstance(told, Configured):
            raise PeerError("an inspector answered with something else than Configured")
        if told.error is not None:
            raise ConfigurationError(told.error)

    async def aclose(self) -> None:
        """End the zygote; inspectors live on until their sockets close."""
        await self._keeper.aclose()


def version_of(loaded: Loaded) -> str:
    """Engine and rules, for people."""
    return f"{loaded.engine}, CRS {loaded.crs}" if loaded.crs else loaded.engine


async def _receive(made: InspectorProcess, doing: str) -> FromInspector:
    """Wait for a message. Raises DeadlineError, PeerError (it has ended, or sends something else)."""
    try:
        async with patience(READY, of=made.process.pid):
            packet = await asyncio.get_running_loop().sock_recv(made.sock, MAX_PACKET)
    except TimeoutError as error:
        raise DeadlineError(doing, READY) from error
    except OSError as error:
        raise PeerError(f"{doing}: {error.strerror}") from error
    if not packet:
        raise PeerError(f"{doing}: the inspector has ended")
    try:
        return _from_inspector.decode(packet)
    except msgspec.DecodeError as error:
        raise PeerError(f"{doing}: it sent no message") from error


__all__ = ["InspectorProcess", "Inspectors", "version_of"]
