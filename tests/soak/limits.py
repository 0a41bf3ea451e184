"""A port at its limits under constant load: whatever keeps the proxy or the daemon from serving, somebody answers.

Clients ask all the time, each on a connection of its own; one that is broken off asks again, as clients do. Meanwhile,
one fault after the other: connections or blocked wires take the proxy's descriptors, it cannot dial the app, its
listener or it itself is killed (the zygote hangs, too), handlers are dead, the daemon hangs. At the end of each
everything must work again. Every client must have been answered, by the app unless its request matches; how long the
slowest took is told.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.harness import cgroups, scene
from tests.harness.cli import Intercept, intercept
from tests.harness.processes import Process, descendants
from tests.harness.taps import wiretap
from tests.harness.waiting import until

CLIENTS = 4
"""That ask at the same time."""
FILLING = 60.0
"""Seconds until a crowd has used up what the proxy may hold; a few on an idle machine."""
PAUSE = 0.01
"""Seconds between two requests of one."""
PATIENCE = 20.0
"""Seconds after which a client counts as not answered."""
RECOVERY = 90.0
"""Seconds until everything works again: pauses grow up to a minute while faults of a kind come back."""
GOAL = 2.0
"""Seconds that the slowest client may take on an idle machine."""
FILES = 1024
"""Files that the daemon, and so a proxy, may have open."""
IDLE = 600
"""Connections that fill the proxy: two descriptors each."""
STALLED = 400
"""Wires that do so when they are blocked: a pipe each, too. Not all of them block, because sockets hold megabytes;
their own descriptors alone do not fill the proxy.
"""
PORT = scene.PLAIN_PORT
WALL = (
    "add table inet wall; add chain inet wall in { type filter hook input priority 0; }; "
    "add rule inet wall in iif lo drop"
)


@dataclass(frozen=True)
class Answer:
    """One client's: when it began, what it took, how often it was broken off, and what was wrong in the end."""

    began: float
    seconds: float
    broken: int
    problem: str = ""


@dataclass
class Findings:
    """What came of it: answers, and the time and name of each fault."""

    answers: list[Answer] = field(default_factory=list)
    faults: list[tuple[float, float, str]] = field(default_factory=list)

    @property
    def wrong(self) -> list[str]:
        """What must not have happened."""
        return [f"{self._during(each)}: {each.problem}" for each in self.answers if each.problem]

    @property
    def slowest(self) -> float:
        """Seconds until the slowest client was answered."""
        return max((each.seconds for each in self.answers), default=0.0)

    def _during(self, answer: Answer) -> str:
        ended = answer.began + answer.seconds
        return next((name for start, end, name in self.faults if answer.began <= end and ended >= start), "no fault")

    def text(self) -> str:
        """For people."""
        by_fault: dict[str, list[Answer]] = {}
        for each in self.answers:
            by_fault.setdefault(self._during(each), []).append(each)
        told = f"the slowest answered after {self.slowest:.2f} s (goal on an idle machine: {GOAL:g} s)"
        lines = [f"{len(self.answers)} clients of a port at its limits, {told}"]
        for name, answers in sorted(by_fault.items()):
            slowest = max(each.seconds for each in answers)
            broken = sum(each.broken for each in answers)
            times = sum(fault == name for _, _, fault in self.faults)
            lines.append(f"  {name} ({times} x): {len(answers)} clients, slowest {slowest:.2f} s, {broken} asked again")
        return "\n".join([*lines, *self.wrong[:50]])


class Limits:
    """One run on a scene."""

    def __init__(self, shop: scene.Shop, group: Path, *, chance: random.Random, hold: float) -> None:
        self.shop = shop
        self.findings = Findings()
        self._group = group
        self._chance = chance
        self._hold = hold
        self._end = threading.Event()
        self._handler: Process | None = None
        self._handler_port = 0
        self._intercept: Intercept | None = None
        self._stack = contextlib.ExitStack()
        self.faults: dict[str, Callable[[], contextlib.AbstractContextManager[None]]] = {
            "connections": self._connections,
            "pipes": self._pipes,
            "firewall": self._firewall,
            "killed listener": self._killed_listener,
            "killed proxy, hung zygote": self._killed_proxy,
            "dead handlers": self._dead_handlers,
            "hung daemon": self._hung_daemon,
        }

    def run(self, seconds: float) -> Findings:
        """Each fault at least once, for so long. Raises DeadlineError when something does not come back."""
        with self._stack:
            self._begin()
            threads = [threading.Thread(target=self._client, name=f"client {number}") for number in range(CLIENTS)]
            for thread in threads:
                thread.start()
            try:
                self._wear(time.monotonic() + seconds)
            finally:
                self._end.set()
                for thread in threads:
                    thread.join(2 * PATIENCE)
        return self.findings

    def _wear(self, end: float) -> None:
        order: list[str] = self._chance.sample(sorted(self.faults), len(self.faults))
        while order or time.monotonic() < end:
            order = order or self._chance.sample(sorted(self.faults), len(self.faults))
            name = order.pop()
            start = time.monotonic()
            with self.faults[name]():
                time.sleep(self._hold)  # the fault lasts
            self._settled(name)
            self.findings.faults.append((start, time.monotonic(), name))

    def _begin(self) -> None:
        shop = self.shop
        words = [sys.executable, "-m", "tests.soak.app", str(PORT)]
        command = cgroups.inside(self._group, shop.space.pod.enter(words))
        app = Process(command, log=shop.folder / "limits-app.log", stdout=shop.folder / "limits-app.out")
        self._stack.enter_context(app)
        until(app.output, within=20, what=lambda: f"the app to listen {app.text()}")
        self._start_handler()
        options = ("--port", f"{self._handler_port}:{PORT}", "--http-header", scene.DEV.replace(": ", "="))
        running = intercept(shop.node, "orders", *options, "--plaintext", pods=None)
        self._intercept = self._stack.enter_context(running)
        self._intercept.wait_active(within=20)
        self._settled("the beginning")

    def _start_handler(self) -> None:
        folder = self.shop.folder
        out = folder / f"limits-handler-{len(list(folder.glob('limits-handler-*')))}.out"
        words = [sys.executable, "-m", "tests.harness.handler", "--any", "--port", str(self._handler_port)]
        process = self._stack.enter_context(Process(words, log=folder / "limits-handlers.log", stdout=out))
        until(process.output, within=20, what=lambda: f"the handler to listen {process.text()}")
        self._handler, self._handler_port = process, int(process.output().split()[0])

    def _settled(self, name: str) -> None:
        """A match reaches the handler again, anything else the app, and nothing is said about the proxy."""

        def works() -> bool:
            status = self.shop.node.status()
            try:
                return (
                    status is not None
                    and any(f"{PORT}/tcp" in pod["steered"] for pod in status["pods"])
                    and _ask(self.shop, marked=True, within=2.0) == "handler"
                    and _ask(self.shop, marked=False, within=2.0) == "app"
                )
            except OSError:
                return False

        until(
            lambda: self.shop.space.client.call(works),
            within=RECOVERY,
            what=lambda: f"everything to work after {name}\n{self.shop.conditions()}\n{self.shop.node.log()[-4000:]}",
            every=0.1,
        )

    # --- clients ----------------------------------------------------------------------------------------------------

    def _client(self) -> None:
        self.shop.space.client.call(self._ask_all_the_time)

    def _ask_all_the_time(self) -> None:
        while not self._end.is_set():
            self.findings.answers.append(self._one(marked=self._chance.random() < 0.5))
            self._end.wait(PAUSE)

    def _one(self, *, marked: bool) -> Answer:
        began = time.monotonic()
        broken = 0
        while (left := began + PATIENCE - time.monotonic()) > 0:
            try:
                served_by = _ask(self.shop, marked=marked, within=left)
            except TimeoutError:
                break
            except OSError:
                broken += 1
                self._end.wait(PAUSE)
                continue
            wrong = served_by == "handler" and not marked
            return Answer(
                began, time.monotonic() - began, broken, "a request of others at the handler" if wrong else ""
            )
        return Answer(began, time.monotonic() - began, broken, f"not answered in {PATIENCE:g} s")

    # --- faults -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _crowd(self, count: int, words: bytes) -> Iterator[None]:
        """So many connections, each of which says this again and again as long as somebody takes it."""
        address = self.shop.space.ip, PORT

        def connect() -> list[socket.socket]:
            made = [crowd.enter_context(socket.create_connection(address, PATIENCE)) for _ in range(count)]
            for sock in made:
                sock.setblocking(False)  # else a full one is waited for
            return made

        def is_full() -> bool:
            for sock in clients if words else ():
                with contextlib.suppress(BlockingIOError, ConnectionError):
                    sock.send(words)
            return "no room" in self.shop.conditions()

        with contextlib.ExitStack() as crowd:
            clients = self.shop.space.client.call(connect)
            until(is_full, within=FILLING, what="the proxy to have no room")
            yield

    def _told(self, words: str) -> None:
        """Wait until `status` says so: the limit is reached."""
        until(lambda: words in self.shop.conditions(), within=PATIENCE, what=f"the condition about {words!r}")

    def _connections(self) -> contextlib.AbstractContextManager[None]:
        return self._crowd(IDLE, b"")

    def _pipes(self) -> contextlib.AbstractContextManager[None]:
        return self._crowd(STALLED, bytes(1 << 18))

    @contextlib.contextmanager
    def _firewall(self) -> Iterator[None]:
        """The app cannot be dialled from inside the pod."""
        pod = self.shop.space.pod
        pod.run("nft", WALL)
        try:
            self._told("cannot be reached from inside the pod")
            yield
        finally:
            pod.run("nft", "delete table inet wall")

    @contextlib.contextmanager
    def _killed_listener(self) -> Iterator[None]:
        self.shop.space.pod.run("ss", "-K", "-t", "-l", "src", "=", "127.0.0.1")
        yield

    @contextlib.contextmanager
    def _killed_proxy(self) -> Iterator[None]:
        zygotes = [pid for pid in descendants(self.shop.node.pid) if "zygote" in _command(pid)]
        proxy = self.shop.proxy()
        with _stopped([pid for pid in zygotes if pid not in self.shop.node.proxies(self.shop.space.pod)]):
            os.kill(proxy, signal.SIGKILL)
            yield

    @contextlib.contextmanager
    def _dead_handlers(self) -> Iterator[None]:
        assert self._handler is not None
        self._handler.kill()
        with contextlib.ExitStack() as taps:
            for _ in range(4):
                options = ("--http-path-prefix", "/", "--plaintext")
                taps.enter_context(wiretap(self.shop.node, f"1:{PORT}", *options, pods=None))
            yield
        self._start_handler()

    @contextlib.contextmanager
    def _hung_daemon(self) -> Iterator[None]:
        with _stopped([self.shop.node.pid]):
            yield


@contextlib.contextmanager
def _stopped(pids: Sequence[int]) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def _ask(shop: scene.Shop, *, marked: bool, within: float) -> str:
    """One request on a connection of its own, inside the client's namespace: who served it, or "502"."""
    lines = ["GET / HTTP/1.1", "Host: a", *([scene.DEV] if marked else []), "", ""]
    end = time.monotonic() + within
    with socket.create_connection((shop.space.ip, PORT), within) as sock:
        sock.sendall("\r\n".join(lines).encode())
        head = b""
        while b"\r\n\r\n" not in head:
            sock.settimeout(max(0.01, end - time.monotonic()))
            data = sock.recv(4096)
            if not data:
                raise ConnectionResetError("the connection ended before an answer")
            head += data
    for line in head.decode("latin-1").lower().split("\r\n"):
        if line.startswith("x-served-by: "):
            return line.removeprefix("x-served-by: ")
    return head.split(b" ", 2)[1].decode()


@contextlib.contextmanager
def at_limits(folder: Path, *, seed: int, hold: float) -> Iterator[Limits]:
    """A scene in which the daemon is asked to name every client."""
    with (
        cgroups.cgroup() as group,
        scene.shop(folder, ipv6=False, annotations={"sidestep.dev/cgroup": str(group)}, start=False) as shop,
    ):
        shop.node.prefix = ("prlimit", f"--nofile={FILES}:{FILES}")
        shop.node.start()
        yield Limits(shop, group, chance=random.Random(seed), hold=hold)
