"""A supervised pod proxy whose worker is the stand-in, in a network namespace of its own."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import itertools
import json
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sidestep.aio.time_limit import time_limit
from sidestep.model.errors import RefusedError
from sidestep.node.proxies.supervisor import (
    PodProxy,
    ProxyState,
    ProxySupervisor,
    SupervisorSettings,
    ZygoteSettings,
)
from sidestep.proxy.control import messages
from sidestep.snapshots.ports import PortSnapshot
from tests.harness.waiting import SLACK

ROOT = str(Path(__file__).parents[3])
WORKER = "tests.privileged.proxy.stand_in:run"
SETTINGS = SupervisorSettings()
_uids = itertools.count(0x7A000000)


@contextlib.contextmanager
def fresh_netns() -> Iterator[int]:
    """A descriptor of a new, nameless network namespace."""
    fds: list[int] = []

    def make() -> None:
        if ctypes.CDLL(None, use_errno=True).unshare(0x40000000) == 0:
            fds.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    try:
        yield fds[0]
    finally:
        os.close(fds[0])


def unix_listener() -> socket.socket:
    """A listener that can be reached from any network namespace's test through its abstract name; see `ask`."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind("")
    listener.listen(128)
    listener.setblocking(False)
    return listener


@dataclass
class Recorder:
    """A handler that remembers."""

    states: list[tuple[ProxyState, str]] = field(default_factory=list)
    beats: int = 0
    reports: list[messages.Report] = field(default_factory=list)
    probed: list[messages.Probed] = field(default_factory=list)
    no_apps: list[messages.NoApp] = field(default_factory=list)
    requests: list[messages.Requests] = field(default_factory=list)
    failures: list[Mapping[str, str]] = field(default_factory=list)
    opened: list[socket.socket] = field(default_factory=list)
    refuse: str = ""
    stall: bool = False

    async def open_stream(self, request: messages.Open, /) -> socket.socket:
        if self.stall:
            await asyncio.Event().wait()
        if self.refuse:
            raise RefusedError(self.refuse)
        ours, theirs = socket.socketpair()
        self.opened.append(ours)
        return theirs

    def on_requests(self, requests: messages.Requests, /) -> None:
        self.requests.append(requests)

    def on_report(self, report: messages.Report, /) -> None:
        self.reports.append(report)

    def on_probed(self, probed: messages.Probed, /) -> None:
        self.probed.append(probed)

    def on_no_app(self, no_app: messages.NoApp, /) -> None:
        self.no_apps.append(no_app)

    def on_heartbeat(self, beat: messages.Heartbeat, /) -> None:
        self.beats += 1

    def on_state(self, state: ProxyState, reason: str, /) -> None:
        self.states.append((state, reason))

    def on_credentials(self, failures: Mapping[str, str], /) -> None:
        self.failures.append(failures)

    def named(self) -> list[str]:
        return [state.value for state, _ in self.states]


@dataclass
class Scene:
    """What a test works with."""

    supervisor: ProxySupervisor
    proxy: PodProxy
    handler: Recorder
    listener: socket.socket
    output: list[str]
    uid: int
    netns_fd: int

    async def run(self, code: str, *, listener: socket.socket | None = None) -> Any:
        """Run code inside the proxy and return its `result`; OSError and RuntimeError as they were raised there."""
        return await ask(listener or self.listener, code)

    async def errno(self, code: str) -> int:
        """The errno with which code inside the proxy fails; 0 if it does not."""
        try:
            await self.run(code)
        except OSError as error:
            return error.errno
        return 0


async def ask(listener: socket.socket, code: str, *, within: float = 10.0) -> Any:
    """Connect to a listener of the stand-in and have it run code."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.setblocking(False)
        async with time_limit(within):
            await loop.sock_connect(sock, listener.getsockname())
            await loop.sock_sendall(sock, json.dumps(code).encode() + b"\n")
            line = b""
            while not line.endswith(b"\n"):
                part = await loop.sock_recv(sock, 1 << 20)
                if not part:
                    raise ConnectionResetError(104, "the proxy closed the connection")
                line += part
    reply = json.loads(line)
    if "errno" not in reply:
        return reply["result"]
    if reply["errno"]:
        raise OSError(reply["errno"], reply["error"])
    raise RuntimeError(reply["error"])


@contextlib.asynccontextmanager
async def supervised(
    *, settings: SupervisorSettings = SETTINGS, zygote: ZygoteSettings | None = None
) -> AsyncIterator[tuple[ProxySupervisor, list[str]]]:
    """A supervisor with the stand-in as worker."""
    output: list[str] = []
    supervisor = await ProxySupervisor.start(
        on_output=output.append, zygote=zygote or ZygoteSettings(worker=WORKER, path=ROOT), settings=settings
    )
    try:
        yield supervisor, output
    finally:
        await supervisor.aclose()


@contextlib.asynccontextmanager
async def scene(
    *, settings: SupervisorSettings = SETTINGS, zygote: ZygoteSettings | None = None, listen: bool = True
) -> AsyncIterator[Scene]:
    """One running proxy that listens."""
    with fresh_netns() as netns_fd, contextlib.closing(unix_listener()) as listener:
        async with supervised(settings=settings, zygote=zygote) as (supervisor, output):
            handler, uid = Recorder(), next(_uids)
            proxy = supervisor.proxy("shop/orders", netns_fd=netns_fd, uid=uid, handler=handler)
            await proxy.start()
            if listen:
                await proxy.listen(8443, "tcp", listener)
            try:
                yield Scene(supervisor, proxy, handler, listener, output, uid, netns_fd)
            finally:
                for sock in handler.opened:
                    sock.close()


async def until(condition: Callable[[], object], *, within: float, what: str) -> None:
    """Wait for a condition on the event loop; `within` as `tests.harness.waiting.until` has it."""
    within *= SLACK
    try:
        async with time_limit(within):
            while True:
                if condition():
                    return
                await asyncio.sleep(0.002)
    except TimeoutError as error:
        raise AssertionError(f"waited {within:g} s for {what}") from error


def port(number: int = 8443, **fields: Any) -> PortSnapshot:
    """A steered port."""
    return PortSnapshot(number, "tcp", tls="probe", http2="probe", rules=fields.pop("rules", ()), **fields)


def text_of(path: str) -> str:
    """A file of /proc."""
    return Path(path).read_text()


def netns_inode(pid: int) -> int:
    """The network namespace of a process."""
    return Path(f"/proc/{pid}/ns/net").stat().st_ino


def descriptors_of(pid: int | str) -> dict[int, str]:
    """What the descriptors of a process are."""
    found = {}
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found[int(link.name)] = os.readlink(link)
    return found


def open_descriptors() -> int:
    """How many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))


def children_of(pid: int) -> list[tuple[int, str]]:
    """(pid, state) of a process's children, zombies among them."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == pid:
                found.append((int(stat.parent.name), state))
    return found
