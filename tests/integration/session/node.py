"""A node without pods: the real socket, sessions and tunnels around a `NodeView` of the test's own.

It runs an event loop in a thread, so that tests read top to bottom and command lines run as real processes.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sidestep.model.errors import ConfigurationError, RefusedError
from sidestep.model.intercept import Intercept
from sidestep.model.pod import PodKey
from sidestep.node.api.local_api import LocalApi
from sidestep.node.sessions.registry import SessionRegistry
from sidestep.proxy.control.messages import LoggedRequest, Open
from sidestep.tunnel.messages import PodState, State
from sidestep.tunnel.views import (
    CertificateView,
    ConditionView,
    InterceptView,
    NodeStatus,
    PodView,
    PortView,
    StatusView,
    WorkloadView,
)
from tests.harness import warm
from tests.harness.waiting import until
from tests.harness.warm import SIDESTEP

T = TypeVar("T")
POD = PodKey("shop", "orders-1")


class View:
    """A `NodeView`: one workload with one pod; port 1 conflicts, port 2 cannot be used."""

    def __init__(self) -> None:
        self.sessions: SessionRegistry | None = None
        self.checked: list[Intercept] = []
        self.refusal = ""
        self.states = State((PodState(str(POD), "active"),))

    def status(self) -> StatusView:
        assert self.sessions is not None
        views: tuple[InterceptView, ...] = self.sessions.views()
        return StatusView(
            node=NodeStatus("n1", "0.1.0", 1, 3661.0, {"steered": 1, "none": 0}),
            pods=(PodView("shop", "orders-1", "running", 77, ("8443/tcp",), {"diverted": 3}),),
            intercepts=views,
            conditions=(ConditionView("NoApp", "pod shop/orders-1 port 8443", "nothing listens"),),
        )

    def workloads(self) -> tuple[WorkloadView, ...]:
        assert self.sessions is not None
        certificate = CertificateView(("orders.shop",), "2030-01-01T00:00:00Z", "0a", "secret shop/orders-tls")
        https = PortView(
            8443, "tcp", "https", "always", "probe", "port name https", "https", ("orders:443",), certificate
        )
        return (
            WorkloadView(
                "shop",
                "deployment",
                "orders",
                (str(POD),),
                (https, PortView(9000, "tcp", "tcp?", "probe", "probe", "not known yet")),
                tuple(each.display for each in self.sessions.intercepts()),
                (ConditionView("AnnotationInvalid", "pod shop/orders-1", "bad \x1b[31mvalue"),),
            ),
            WorkloadView("other", "pod", "idle", (), ()),
        )

    async def prepare(self, _intercept):
        pass

    def check(self, intercept: Intercept) -> None:
        if self.refusal:
            raise RefusedError(self.refusal)
        if intercept.port == "1":
            raise RefusedError("intercept shop/first of ada takes the whole port already")
        if intercept.port == "2":
            raise ConfigurationError("no such port", subject="--port", value="2")
        self.checked.append(intercept)

    def state(self, intercept_uid: str) -> State:
        return self.states


class FakeNode:
    """The daemon's side. Methods without `async_` may be called from the test's thread."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "run" / "node.sock"
        self.view = View()
        self.changes = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fake-node", daemon=True)
        self._thread.start()
        self.crashes: list[dict[str, Any]] = []
        self._loop.set_exception_handler(lambda _loop, context: self.crashes.append(context))
        self.run(self._start())

    async def _start(self) -> None:
        self.sessions = SessionRegistry(view=self.view, node="n1")
        self.view.sessions = self.sessions
        self.sessions.on_change = self._changed
        self.api = LocalApi(path=self.path, view=self.view, sessions=self.sessions)
        await self.api.start()

    def _changed(self) -> None:
        self.changes += 1

    def run(self, coroutine: Coroutine[Any, Any, T], *, within: float = 30.0) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(within)

    def call(self, function: Callable[[], T]) -> T:
        async def calling() -> T:
            return function()

        return self.run(calling())

    def stop(self) -> None:
        async def stopping() -> None:
            await self.sessions.close("the node daemon stops")
            await self.api.aclose()

        self.run(stopping())
        left = self.run(self._left())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        assert not self.crashes, self.crashes
        assert not left, left

    def cut(self) -> None:
        """Break every tunnel without a word."""
        self.call(lambda: [each.connection.close() for each in self.sessions._sessions.values()])

    def restart(self, *, refuse: str = "", back: bool = True) -> None:
        """End the daemon's side as SIGTERM does; another one begins, unless it is not to come `back`."""

        async def restarting() -> None:
            await self.sessions.close("the node daemon stops")
            await self.api.aclose()
            if refuse:
                self.view.refusal = refuse
            if back:
                await self._start()

        self.run(restarting())

    def hand_over(self) -> Callable[[], Coroutine[Any, Any, None]]:
        """Another daemon takes the socket over while the first drains; returns what ends the first."""
        sessions, api = self.sessions, self.api

        async def drained() -> None:
            await sessions.close("the node daemon stops")
            await api.aclose()

        async def taking_over() -> None:
            api.path.unlink()
            await self._start()
            sessions.move("another node daemon takes over")

        self.run(taking_over())
        return drained

    async def _left(self) -> list[asyncio.Task[Any]]:
        return [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]

    def intercepts(self) -> tuple[Intercept, ...]:
        return self.call(self.sessions.intercepts)

    def only(self) -> Intercept:
        (intercept,) = self.intercepts()
        return intercept

    def open(self, **words: Any) -> socket.socket:
        """The pod proxy's end of a new diverted connection, with a timeout of 20 s; words as for `begin_to_open`."""
        return self.begin_to_open(**words).result(30)

    def begin_to_open(
        self,
        *,
        tls: bool = False,
        protocol: str = "http/1.1",
        uid: str | None = None,
        server_name: str = "orders.shop",
        proxy: int = 1,
        pod: PodKey = POD,
    ) -> concurrent.futures.Future[socket.socket]:
        """Ask for a connection, and do not wait for it."""
        message = Open(
            seq=1,
            stream=1,
            uid=uid or self.only().uid,
            port=8443,
            protocol=protocol,
            tls=tls,
            server_name=server_name if tls else "",
            client="10.0.0.7",
            client_port=53012,
        )

        async def opening() -> socket.socket:
            sock = await self.sessions.open_stream(message, pod=pod, proxy=proxy)
            sock.settimeout(20)
            return sock

        return asyncio.run_coroutine_threadsafe(opening(), self._loop)

    def record(self, *paths: str) -> None:
        uid = self.only().uid
        requests = [LoggedRequest(uid, 8443, "10.0.0.7", 53012, "GET", path, "orders.shop", False) for path in paths]
        self.call(lambda: self.sessions.record(requests, pod=POD))


class Cli:
    """A running `sidestep intercept`."""

    def __init__(self, node: FakeNode, *words: str, output: str = "json", stdout: Any = None) -> None:
        self._out = node.path.parent / f"{id(self)}.out"
        self._err = node.path.parent / f"{id(self)}.err"
        command = [SIDESTEP, "intercept", *words[:1], "--socket", str(node.path), "--output", output, *words[1:]]
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = warm.spawn(command, stdout=stdout or out, stderr=err)

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def events(self, kind: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.out.splitlines() if line.endswith("}")]
        return [event for event in lines if event["event"] == kind]

    def wait_for(self, text: str) -> None:
        until(lambda: text in self.out, within=15, what=lambda: f"{text!r} in {self.out!r} {self.err!r}")

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(15)


@contextlib.contextmanager
def intercepting(node: FakeNode, *words: str, output: str = "json") -> Iterator[Cli]:
    """A session that is active."""
    cli = Cli(node, *words, output=output)
    try:
        cli.wait_for('"state":"active"' if output == "json" else "is active on")
        yield cli
    finally:
        if cli.process.poll() is None:
            cli.process.kill()
        cli.process.wait(10)


def sidestep(*words: str, node: FakeNode | None = None) -> subprocess.CompletedProcess[str]:
    """A command run to its end."""
    extra: Sequence[str] = [] if node is None else ["--socket", str(node.path)]
    first, rest = words[:1], words[1:]
    return warm.run([SIDESTEP, *first, *extra, *rest], within=20)
