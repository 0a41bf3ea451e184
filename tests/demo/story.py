"""The story: an unmodified nginx, a developer's handler, and everything of ours killed in between.

Each `Story.see` is one statement that is observed with a tool that knows nothing of Sidestep (curl, /proc, bpftool, ss,
nft). One that is not observed makes the demo fail, but the story goes on, so that all of them are shown.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.harness import kernel, scene, tshark
from tests.harness.curl import Answer
from tests.harness.inspection import is_refusal, policies, policy, rule
from tests.harness.nginx import Nginx
from tests.harness.processes import Process, alive, started
from tests.harness.waiting import DeadlineError, until
from tests.harness.warm import SIDESTEP

BOLD, DIM, GREEN, RED, PLAIN = "\033[1m", "\033[2m", "\033[32m", "\033[31m", "\033[0m"


class Story:
    """Prints what happens and remembers what was not observed."""

    def __init__(self) -> None:
        self.missed: list[str] = []
        self.seen = 0
        self._colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def _print(self, style: str, text: str) -> None:
        print(f"{style}{text}{PLAIN}" if self._colour else text, flush=True)

    def chapter(self, text: str) -> None:
        """Begin a part of the story."""
        self._print(BOLD, f"\n{text}")

    def tell(self, text: str) -> None:
        """Say something that needs no proof."""
        print(f"    {text}", flush=True)

    def command(self, text: str) -> None:
        """Show a command that is being run."""
        self._print(DIM, f"    $ {text}")

    def see(self, statement: str, observed: bool, detail: str = "") -> None:
        """A statement and whether it was observed."""
        if observed:
            self.seen += 1
            self._print(GREEN, f"    ✔ {statement}")
        else:
            self.missed.append(statement)
            self._print(RED, f"    ✘ {statement}{f' — {detail}' if detail else ''}")

    def end(self) -> int:
        """The last line; the exit status."""
        if self.missed:
            self.chapter(f"{len(self.missed)} of {self.seen + len(self.missed)} statements were NOT observed:")
            for statement in self.missed:
                self.tell(f"✘ {statement}")
            return 1
        self.chapter(f"All {self.seen} statements were observed, and everything is cleaned up.")
        return 0


def tell(story: Story, folder: Path) -> None:
    """Tell the whole story; everything is gone when it returns, however it returns."""
    rules, pins = kernel.rules(), kernel.pins()
    with contextlib.ExitStack() as stack:
        story.chapter("1. A pod with an unmodified TLS server")
        shop = stack.enter_context(scene.shop(folder / "shop", start=False))
        app = stack.enter_context(scene.shop_nginx(shop))
        birth = started(app.pid)
        story.tell(
            f"network namespace {shop.space.pod.name}, joined to a client's by a veth pair: {', '.join(shop.space.ips)}"
        )
        story.tell(
            f"a real nginx in it (pid {app.pid}) serves https://{scene.HOST}:{scene.TLS_PORT} under a private CA"
        )
        before = _pod(shop)
        story.see("curl is answered by nginx", _ask(story, shop).served_by == "app")

        story.chapter("2. The node daemon, and a developer's handler")
        shop.node.start()
        story.command(" ".join(map(str, ("sidestep", *shop.node.command()[1:]))))
        story.tell(f"running (pid {shop.node.pid}); the pod is known from ordinary Kubernetes manifests")
        story.see("nothing is steered without a reason", not kernel.steering(shop.space.pod).links)
        handler = stack.enter_context(_handler(shop, folder))
        story.tell(f"a process of the developer's own (pid {handler.pid}) listens on 127.0.0.1:{handler.port} with TLS")

        story.chapter("3. Take the requests with the header x-dev: ada, and only those")
        story.command(
            f"sidestep intercept orders -n shop --port {handler.port}:{scene.TLS_PORT} --http-header x-dev=ada"
        )
        began = time.monotonic()
        running = stack.enter_context(shop.intercept("--http-header", "x-dev=ada", handler_port=handler.port))
        story.tell(f"active after {time.monotonic() - began:.2f} s")
        plain, marked = _ask(story, shop), _ask(story, shop, scene.DEV)
        story.see("without the header nginx answers", plain.served_by == "app", str(plain))
        story.see("with the header the handler answers", marked.served_by == "your laptop", str(marked))
        story.see("both over HTTPS, verified against the private CA", plain.code == 0 and marked.code == 0)
        over6 = shop.get("/", scene.DEV, address=shop.space.ip6)
        story.see("the same over IPv6", over6.served_by == "your laptop", str(over6))
        same = alive(app.pid) and started(app.pid) == birth
        story.see("the pod's process is untouched: same pid, same start time", same)

        _inspect(story, shop, app)

        _capture(story, shop, folder)

        story.chapter("6. Kill the pod proxy")
        proxy, family, held = shop.proxy(), shop.node.family(), kernel.steering(shop.space.pod)
        story.command(f"kill -9 {proxy}")
        os.kill(proxy, signal.SIGKILL)
        plain, marked = _ask(story, shop), _ask(story, shop, scene.DEV)
        story.see("the next request is answered by nginx", plain.served_by == "app", str(plain))
        story.see("the next one with the header by the handler", marked.served_by == "your laptop", str(marked))
        story.tell(f"the new proxy has pid {shop.node.proxy(shop.space.pod, but=proxy)}")
        family |= shop.node.family()

        story.chapter("7. Kill the node daemon")
        story.command(f"kill -9 {shop.node.pid}")
        shop.node.kill()
        plain, marked = _ask(story, shop), _ask(story, shop, scene.DEV)
        story.see("nginx answers", plain.served_by == "app", str(plain))
        story.see("also what would have matched", marked.served_by == "app", str(marked))
        told = _soon(lambda: running.of("interrupted"))
        story.see("the command line says so, and waits for a daemon", told and running.process.running)

        story.chapter("8. Nothing is left")
        story.command("bpftool link show; bpftool prog show; bpftool map show")
        story.see("no link, program or map of ours", _soon(lambda: held.left() == []), str(held.left()))
        story.command("ls /sys/fs/bpf")
        story.see("no pin", kernel.pins() == pins)
        story.command("nft list ruleset")
        story.see(
            "no firewall rule, here or in the pod", kernel.rules() == rules and _pod(shop)["rules"] == before["rules"]
        )
        story.see("no process of ours", _soon(lambda: not any(map(alive, family)), within=35), f"{family}")
        story.command("ss -lntu")
        story.see("no listener in the pod but nginx's", _soon(lambda: _pod(shop) == before), f"{_pod(shop)}")
        same = alive(app.pid) and started(app.pid) == birth
        story.see("nginx is still the same process", same and _ask(story, shop).served_by == "app")

        story.chapter("9. Start the node daemon again")
        shop.node.start()
        began = time.monotonic()
        back = _soon(running.active)
        story.see(f"the intercept is back, {time.monotonic() - began:.1f} s after the daemon", back)
        story.see("and the handler answers", _ask(story, shop, scene.DEV).served_by == "your laptop")
        _end_the_pod(story, shop, app)


def _ask(story: Story, shop: scene.Shop, *headers: str, path: str = "/") -> Answer:
    """One curl, shown with who answered it."""
    marks = "".join(f" -H '{line}'" for line in headers)
    answer = shop.get(path, *headers)
    story.command(f"curl --cacert ca.crt{marks} https://{scene.HOST}:{scene.TLS_PORT}{path}")
    story.tell(answer.text.strip() or answer.errors.strip())
    return answer


def _inspect(story: Story, shop: scene.Shop, app: Nginx) -> None:
    """A policy blocks what it is about, for everybody, and is gone again."""
    story.chapter("4. A policy blocks /admin, for everybody")
    served = len(app.requests())
    with policies(shop, policy(rule("/admin")), alone=False):
        story.tell("an InspectionPolicy among the manifests: " + json.dumps(policy(rule("/admin"))["spec"]["rules"][0]))
        blocked, marked = _ask(story, shop, path="/admin/users"), _ask(story, shop, scene.DEV, path="/admin/users")
        story.see("the client gets a 403 that names the policy", is_refusal(blocked), str(blocked))
        story.see("also with the header: the policy comes before the intercept", is_refusal(marked), str(marked))
        story.see("nginx has seen nothing of it", len(app.requests()) == served)
        alerts = _soon(lambda: len(_alerts(shop)) == 2)
        story.see("the EVE log has an alert for each", alerts, str(shop.node.records()))
        story.tell(json.dumps({name: _alerts(shop)[0][name] for name in ("alert", "kubernetes", "sidestep")}))
        story.see("other paths are served as before", _ask(story, shop).served_by == "app")
    open_again = _soon(lambda: shop.get("/admin/users").served_by == "app")
    story.see("without the policy nginx answers", open_again)


def _capture(story: Story, shop: scene.Shop, folder: Path) -> None:
    """What clients and nginx say over TLS is read by tshark, without the secrets in it."""
    story.chapter("5. A capture is read by tshark")
    file, secret = folder / "orders.pcapng", "authorization: Bearer S3CRET"
    words = ["capture", "orders", "-n", "shop", "--port", str(scene.TLS_PORT), "-w", str(file)]
    story.command(" ".join(("sidestep", *words[:-1], file.name)))
    with Process([SIDESTEP, *words, "--socket", shop.node.socket], log=folder / "capture.log") as running:
        begun = _soon(lambda: "Capturing" in running.text(), within=10)
        story.see("the capture has begun", begun, running.text())
        _ask(story, shop, secret, path="/api/orders?token=S3CRET")
        plain = ("-d", f"tcp.port=={scene.TLS_PORT},http")
        paths = lambda: [  # noqa: E731
            row["http.request.uri"]
            for row in tshark.rows(
                tshark.so_far(file.read_bytes()), ["http.request.uri"], only="http.request", options=plain
            )
        ]
        read = begun and _soon(paths, within=10)
        running.signal(signal.SIGINT)
        running.wait(10)
    story.command(f"tshark -r {file.name} {' '.join(plain)} -Y http.request -T fields -e http.request.uri")
    story.tell(", ".join(paths()) if read else running.text())
    story.see("tshark reads the request that went over TLS", read and paths() == ["/api/orders?token=[redacted]"])
    found = file.read_bytes() if read else b""
    story.see("no secret of it is in the file", read and b"S3CRET" not in found)
    story.see("and tshark complains about nothing", read and tshark.complaints(found, *plain) == [])


def _alerts(shop: scene.Shop) -> list[dict[str, object]]:
    return [each for each in shop.node.records() if each["event_type"] == "alert"]


def _pod(shop: scene.Shop) -> dict[str, object]:
    """What must be in the pod's namespace after as before."""
    return {
        "listeners": kernel.listeners(shop.space.pod),
        "rules": kernel.rules(shop.space.pod),
        "devices": kernel.devices(shop.space.pod),
        "steering": kernel.steering(shop.space.pod),
    }


@contextlib.contextmanager
def _handler(shop: scene.Shop, folder: Path):  # type: ignore[no-untyped-def]
    """The developer's process."""
    certificate = shop.app_certificate.write(folder / "handler")
    command = [sys.executable, "-m", "tests.harness.handler", "--tls", certificate, "--name", "your laptop"]
    with Process(command, log=folder / "handler.log", stdout=folder / "handler.out") as process:
        until(process.output, within=10, what="the handler to listen")
        process.port = int(process.output().split()[0])  # type: ignore[attr-defined]
        yield process


def _end_the_pod(story: Story, shop: scene.Shop, app: Nginx) -> None:
    """The pod ends; its namespace and veth pair must go at once."""
    app.process.stop()
    shop.space.delete_pod()
    story.command(f"ip netns del {shop.space.pod.name}")
    story.see("the pod's namespace and its veth pair go at once", _soon(lambda: not shop.space.peer_exists()))


def _soon(condition: Callable[[], object], *, within: float = 3.0) -> bool:
    """Whether something comes true in time."""
    with contextlib.suppress(DeadlineError):
        return bool(until(condition, within=within, what="it"))
    return False
