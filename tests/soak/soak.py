"""The soak: traffic all the time, a fault every few seconds, an account at the end.

First half: pod proxy, handler and command line are killed, the zygote hangs, our listeners are ended, the pod's
firewall drops what the proxy says to the app; the daemon lives, and must then be where it was: threads, descriptors,
memory. Second half: the daemon, too, is killed, stopped, replaced. A fault opens a *window* that ends once
everything is seen to work again; what overlaps no window must be flawless: nothing lost, every answer the request's
own, every match answered by the handler, every request that the inspection policy blocks refused. A request that does
not match must never reach the handler, window or not. The policy's patterns have it read every body in both directions.

With `fails` the policy has `failurePolicy: Fail`, and a blocked request must not reach the app in a window either,
unless `bypasses` finds the time counted.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.harness import kernel, scene
from tests.harness.cli import Intercept, intercept
from tests.harness.http2 import any_app
from tests.harness.inspection import FILE, is_refusal, policy, rule
from tests.harness.peers import Server
from tests.harness.processes import Process
from tests.harness.waiting import DeadlineError, until
from tests.soak.bypasses import Bypasses
from tests.soak.traffic import BLOCKED, UDP_PORT, Echo, Outcome, Traffic

CALM = 2.0
"""Seconds without a fault after each window."""
PROXY_REST = 8.0
"""Seconds between kills of the pod proxy: five within thirty are a crash loop, after which the port rests, too."""
PATIENCE = 120.0
"""Seconds that a daemon may take to start on a machine that is busy."""
RECOVERY = 75.0
"""Seconds that a window may last: what keeps a proxy from serving is tried again after a minute at most."""
WALL = 3.0
"""Seconds for which the app cannot be reached from inside the pod."""
SETTLING = 120.0
"""Seconds until levels are back: flows of UDP clients end after a minute of silence."""
SHORT = 60.0
"""Seconds of a run that does not wait for that minute: it ends the session for UDP, and with it the flows."""
MEMORY = 16 << 20
"""Bytes by which the daemon may have grown over a half."""
PORTS = (scene.TLS_PORT, scene.PLAIN_PORT, UDP_PORT)
SECRET = {"patterns": [{"regex": "soak-secret-[0-9]{8}"}], "action": "Block"}
RULES = (rule(BLOCKED), {"name": "secret", **SECRET}, {"name": "leak", "direction": "Response", **SECRET})
FAILS = {"failurePolicy": "Fail", "existingConnections": "Reset", "log": {"samplePercent": 5}}
FILTER = ("--http-header", scene.DEV.replace(": ", "="))


@dataclass(frozen=True)
class Levels:
    """What must come back to where it was."""

    threads: int
    descriptors: int
    memory: int
    objects: tuple[int, int, int]
    """eBPF links, programs and maps of the pod."""


@dataclass
class Account:
    """What came of it."""

    windows: list[tuple[float, float, str]] = field(default_factory=list)
    faults: dict[str, int] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    """Further lines for people."""
    seen: list[str] = field(default_factory=list)
    """What the kernel said while a caller made no progress."""

    def excused(self, outcome: Outcome) -> bool:
        """Whether a request overlaps a window."""
        return any(outcome.began <= end and outcome.ended >= start for start, end, _ in self.windows)

    def judge(self) -> None:
        """Find what is not excused."""
        for each in self.outcomes:
            misrouted = each.problem == "answered by 'handler'" or each.problem.startswith("another body")
            if misrouted or ((each.problem or each.fell_back) and not self.excused(each)):
                self.wrong.append(f"{each.kind} at {each.ended:.2f}: {each.problem or 'a match went to the app'}")

    def text(self) -> str:
        """For people."""
        kinds = {kind: sum(each.kind == kind for each in self.outcomes) for kind in {e.kind for e in self.outcomes}}
        shown = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        faults = ", ".join(f"{count} x {name}" for name, count in sorted(self.faults.items()))
        inside = sum(bool(each.problem) for each in self.outcomes if self.excused(each))
        slowest = max((each.ended - each.began for each in self.outcomes), default=0.0)
        lines = [f"{len(self.outcomes)} requests ({shown})", f"{faults}; {inside} requests broke within their windows"]
        lines += [f"the slowest request took {slowest:.1f} s", *self.told]
        lines += [f"{start:.2f}-{end:.2f} {name}" for start, end, name in self.windows] if self.wrong else []
        return "\n".join([*lines, *self.wrong[:50], *(self.seen if self.wrong else [])])


class Soak:
    """One run on a scene."""

    def __init__(self, shop: scene.Shop, *, chance: random.Random, fails: bool = False) -> None:
        self.shop = shop
        self.bypasses = Bypasses(shop) if fails else None
        self.account = Account()
        self._chance = chance
        self._proxy_killed = -PROXY_REST
        self._daemon_ended = 0.0
        self._handlers: dict[int, Process] = {}
        self._ports: dict[int, int] = {}
        self._intercepts: dict[int, Intercept] = {}
        self._stack = contextlib.ExitStack()
        shop.node.patience = PATIENCE
        self._certificate = shop.app_certificate.write(shop.folder / "soak-handler")

    def run(self, seconds: float) -> Account:
        """All of it. What does not come back stands in the account."""
        with self._stack:
            self._begin()
            try:
                ends = {"proxy": self._kill_proxy, "handler": self._kill_handler, "CLI": self._kill_cli}
                hindered = {"zygote": self._hang_zygote, "listener": self._end_listeners, "wall": self._wall}
                self._phase(seconds / 2, {**ends, **hindered})
                daemon = {"daemon": self._kill_daemon, "restart": self._restart, "upgrade": self._upgrade}
                self._phase(seconds / 2, {**daemon, "proxy": self._kill_proxy}, same_daemon=False)
            except DeadlineError as error:
                self.account.wrong.append(str(error))
        self.account.judge()
        if self.bypasses is not None:
            passed = self.bypasses.judge(self.account.outcomes)
            self.account.wrong += self.bypasses.wrong
            self.account.told.append(f"{passed} blocked requests reached the app; {self.bypasses.text()}")
        return self.account

    def _begin(self) -> None:
        shop = self.shop
        options = {"netns": shop.space.pod, "address": "::", "dual_stack": True, "record": False}
        tls = shop.app_tls(alpn=("h2", "http/1.1"))
        self._stack.enter_context(Server(any_app, port=scene.TLS_PORT, tls=tls, **options))  # type: ignore[arg-type]
        self._stack.enter_context(Server(any_app, port=scene.PLAIN_PORT, **options))  # type: ignore[arg-type]
        self._stack.enter_context(Echo("app", netns=shop.space.pod, port=UDP_PORT))
        self._ports[UDP_PORT] = self._stack.enter_context(Echo("handler")).port
        for port in (scene.TLS_PORT, scene.PLAIN_PORT):
            self._start_handler(port)
        for port in PORTS:
            self._start_cli(port)

    def _phase(self, seconds: float, faults: dict[str, Callable[[], None]], *, same_daemon: bool = True) -> None:
        self._settled()
        before = self._levels()
        end = time.monotonic() + seconds
        traffic = Traffic(self.shop, plain=self.bypasses is not None)
        try:
            self._wear(traffic, end, faults)
        finally:
            self.account.outcomes += traffic.outcomes
            self.account.seen += traffic.seen
        self._settled()
        if same_daemon:
            if seconds <= SHORT / 2:
                self._intercepts[UDP_PORT].process.kill()
                self._start_cli(UDP_PORT)
            until(
                lambda: not self._grown(before),
                within=SETTLING,
                what=lambda: f"levels as before: {self._grown(before)}",
            )
        else:
            until(lambda: self._levels().objects == before.objects, within=60, what="as many eBPF objects as before")

    def _wear(self, traffic: Traffic, end: float, faults: dict[str, Callable[[], None]]) -> None:
        """One fault after the other under traffic, each at least once."""
        with traffic:
            order = self._chance.sample(sorted(faults), len(faults))
            first = set(faults)
            time.sleep(CALM)  # ordinary use, not a condition
            while first or time.monotonic() < end:
                order = order or self._chance.sample(sorted(faults), len(faults))
                name = order.pop()
                self._fault(name, faults)
                first.discard(name)

    def _fault(self, name: str, faults: dict[str, Callable[[], None]]) -> None:
        if name in {"proxy", "zygote"}:
            time.sleep(max(0.0, self._proxy_killed + PROXY_REST - time.monotonic()))  # as above
        start = time.monotonic()
        faults[name]()
        self._settled()
        if self.bypasses is not None and name in {"daemon", "restart"}:
            self.bypasses.ended(self._daemon_ended)
        self.account.windows.append((start, time.monotonic(), name))
        self.account.faults[name] = self.account.faults.get(name, 0) + 1
        time.sleep(CALM * (0.5 + self._chance.random()))  # ordinary use, not a condition

    def _settled(self) -> None:
        """Everything works: matches reach the handlers on both ports, the rest the app, what is blocked nobody."""

        def works() -> bool:
            for port in (scene.TLS_PORT, scene.PLAIN_PORT):
                if self.shop.get("/", scene.DEV, port=port).served_by != "handler":
                    return False
                if self.shop.get("/", port=port).served_by != "app":
                    return False
                if not is_refusal(self.shop.get(BLOCKED, port=port)):
                    return False
            return all(each.active() for each in self._intercepts.values())

        until(works, within=RECOVERY, what=lambda: f"everything to work again; {self._told()}", every=0.1)

    def _told(self) -> str:
        """What daemon and command lines say, for a failure's text."""
        active = {port: each.active() for port, each in self._intercepts.items()}
        log = self.shop.node.log()[-6000:]
        return f"faults: {self.account.faults}; active: {active}\n{self.shop.conditions()}\n{log}"

    def _levels(self) -> Levels:
        pid = self.shop.node.pid
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
        )
        hung = kernel.steering(self.shop.space.pod)
        return Levels(
            threads=int(status["Threads"]),
            descriptors=len(list(Path(f"/proc/{pid}/fd").iterdir())),
            memory=int(status["VmRSS"].split()[0]) * 1024,
            objects=(len(hung.links), len(hung.programs), len(hung.maps)),
        )

    def _grown(self, before: Levels) -> str:
        """What is not back; empty when all is."""
        now = self._levels()
        fine = (
            now.threads <= before.threads + 2  # the executor's, made on demand up to a bound and kept
            and now.descriptors <= before.descriptors + 2
            and now.memory <= before.memory + MEMORY
            and now.objects == before.objects
        )
        return "" if fine else f"{before} -> {now}"

    # --- faults -----------------------------------------------------------------------------------------------------

    def _start_handler(self, port: int) -> None:
        words = ["--any", "--port", str(self._ports.get(port, 0))]
        if port == scene.TLS_PORT:
            words += ["--tls", str(self._certificate)]
        folder = self.shop.folder
        number = len(list(folder.glob("soak-handler-*.out")))
        log, out = folder / f"soak-handler-{number}.log", folder / f"soak-handler-{number}.out"
        process = self._stack.enter_context(
            Process([sys.executable, "-m", "tests.harness.handler", *words], log=log, stdout=out)
        )
        until(process.output, within=20, what=lambda: f"the handler to listen {process.text()}")
        self._ports[port] = int(process.output().split()[0])
        self._handlers[port] = process

    def _start_cli(self, port: int) -> None:
        words = {
            scene.TLS_PORT: ["--port", f"{self._ports[scene.TLS_PORT]}:{port}", *FILTER],
            scene.PLAIN_PORT: ["--port", f"{self._ports[scene.PLAIN_PORT]}:{port}", *FILTER, "--plaintext"],
            UDP_PORT: ["--port", f"{self._ports[UDP_PORT]}:{port}/UDP"],
        }[port]
        self._intercepts[port] = self._stack.enter_context(intercept(self.shop.node, "orders", *words, pods=None))
        self._intercepts[port].wait_active(within=20)

    def _kill_proxy(self) -> None:
        self._proxy_killed = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.shop.proxy(), signal.SIGKILL)

    def _hang_zygote(self) -> None:
        """No proxy comes until it was replaced."""
        os.kill(self.shop.node.zygote(), signal.SIGSTOP)
        self._kill_proxy()

    def _end_listeners(self) -> None:
        self.shop.space.pod.run("ss", "-K", "-H", "-l", "-t", "src", "[::ffff:127.0.0.1]")

    def _wall(self) -> None:
        pod = self.shop.space.pod
        pod.run("nft", "add table inet wall; add chain inet wall in { type filter hook input priority 0; }")
        pod.run("nft", "add rule inet wall in iif lo drop")
        time.sleep(WALL)  # how long it lasts, not a condition
        pod.run("nft", "delete table inet wall")

    def _kill_handler(self) -> None:
        port = self._chance.choice((scene.TLS_PORT, scene.PLAIN_PORT))
        self._handlers[port].kill()
        self._start_handler(port)

    def _kill_cli(self) -> None:
        port = self._chance.choice(PORTS)
        self._intercepts[port].process.kill()
        self._start_cli(port)

    def _kill_daemon(self) -> None:
        self._daemon_ended = self.shop.node.kill()
        self.shop.node.start()

    def _restart(self) -> None:
        assert self.shop.node.process is not None
        self.shop.node.family()
        self.shop.node.process.signal(signal.SIGTERM)
        self.shop.node.process.wait(60)
        self._daemon_ended = time.monotonic()
        self.shop.node.start()

    def _upgrade(self) -> None:
        self.shop.node.upgrade().wait(60)


@contextlib.contextmanager
def soaking(folder: Path, *, seed: int, fails: bool = False) -> Iterator[Soak]:
    """A soak on a scene of its own, whose remains are looked for at the end."""
    with scene.shop(folder, start=False) as shop:
        annotations = {"sidestep.dev/drain-timeout": "5s"}
        metadata = {"name": "here", "annotations": annotations}
        shop.node.write("node.yaml", {"apiVersion": "v1", "kind": "Node", "metadata": metadata})
        shop.node.write(FILE, policy(*RULES, mode="Enforce", **(FAILS if fails else {})))
        shop.node.start()
        yield Soak(shop, chance=random.Random(seed), fails=fails)
        hung, family = kernel.steering(shop.space.pod), shop.node.family()
        shop.node.stop()
        until(lambda: not hung.left(), within=10, what=lambda: f"the eBPF objects to go: {hung.left()}")
        until(lambda: not (shop.node.family() | family) & set(shop.space.pod.processes()), within=10, what="processes")
