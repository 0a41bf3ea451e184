"""Whatever is killed, the app is served: proxy, daemon, command line, handler, the pod's own namespace."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.harness import kernel, manifests, scene
from tests.harness.http1 import ClosedError
from tests.harness.peers import Server, http_app
from tests.harness.processes import Process, alive, kill, started
from tests.harness.waiting import until

DRAIN = 4.0
"""Seconds of drain timeout in these tests."""

DROPPED = (ClosedError, ConnectionResetError, BrokenPipeError)
"""What a client sees whose own request was in flight."""


@pytest.fixture
def shop(tmp_path):
    """A scene of its own for each test: things are killed here."""
    with scene.shop(tmp_path, start=False) as shop:
        shop.node.write("node.yaml", node_manifest())
        shop.node.start()
        yield shop


def node_manifest():
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "here", "annotations": {"sidestep.dev/drain-timeout": f"{DRAIN:.0f}s"}},
    }


@pytest.fixture
def app(shop):
    """The app of the scene: our own recording server on every address."""
    with Server(
        http_app, netns=shop.space.pod, address="::", port=scene.TLS_PORT, dual_stack=True, tls=shop.app_tls()
    ) as app:
        yield app


class Callers:
    """Clients that connect and ask all the time, one request per connection; what happened to each is kept."""

    def __init__(self, shop, *headers):
        self.shop, self.headers = shop, headers
        self.outcomes: list[tuple[float, str]] = []
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(4)]

    def _run(self):
        while not self._end.is_set():
            began = time.monotonic()
            try:
                with self.shop.client() as client:
                    outcome = client.get("/", *self.headers).header("x-served-by")
            except DROPPED as error:
                outcome = f"dropped {error!r}"
            except OSError as error:
                outcome = repr(error)
            self.outcomes.append((began, outcome))

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        until(lambda: len(self.outcomes) > 8, within=10, what="the callers to get going")
        return self

    def __exit__(self, *_):
        self._end.set()
        for thread in self._threads:
            thread.join(40)

    def since(self, when):
        """Outcomes of calls begun at or after a monotonic time."""
        return [outcome for began, outcome in self.outcomes if began >= when]


def test_a_killed_proxy_costs_its_own_requests_only(shop, app):
    with shop.intercept(), shop.client() as client:
        client.send(b"GET /hold HTTP/1.1\r\nHost: a\r\n\r\n")
        assert app.holding.acquire(timeout=10)
        with Callers(shop) as callers:
            proxy, killed = shop.proxy(), []
            for _ in range(3):
                killed.append(kill(proxy))
                proxy = shop.node.proxy(shop.space.pod, but=proxy)
                served = len(callers.outcomes)
                until(lambda wanted=served + 8: len(callers.outcomes) > wanted, within=10, what="further calls")
        with pytest.raises(DROPPED):
            client.reader.fill()
        outcomes = [outcome for _, outcome in callers.outcomes]
        failed = [outcome for outcome in outcomes if outcome != "app"]
        assert not any("Refused" in outcome for outcome in failed), failed
        assert len(failed) <= 4 * len(killed), failed  # at most one request in flight per caller and kill
        assert shop.get("/", scene.DEV).served_by == "handler"


def test_a_proxy_that_hangs_is_replaced(shop, app):
    """SIGSTOP: no heartbeat; connections wait in the queue that the daemon keeps and are answered by the next proxy."""
    with shop.intercept():
        assert shop.get("/").served_by == "app"
        proxy = shop.proxy()
        os.kill(proxy, signal.SIGSTOP)
        assert shop.get("/", within=12).served_by == "app"
        assert shop.get("/", scene.DEV).served_by == "handler"
        assert not alive(proxy)


def test_a_killed_daemon_leaves_the_app_alone(shop, app):
    with shop.intercept() as running:
        assert shop.get("/", scene.DEV).served_by == "handler"
        hung = kernel.steering(shop.space.pod)
        assert hung.links
        with Callers(shop) as callers:
            family = shop.node.family()
            killed = shop.node.kill()
            until(lambda: len(callers.since(killed + 1)) > 20, within=20, what="calls after the daemon's death")
        after = callers.since(killed + 1)
        assert set(after) == {"app"}
        assert shop.get("/", scene.DEV).served_by == "app"
        until(lambda: not any(alive(pid) for pid in family), within=DRAIN + 2, what="the orphans to be gone")
        assert hung.left() == []
        until(lambda: not _ours(shop, app), within=1, what="our listeners to be gone")
        assert len(running.of("interrupted")) == 1
        shop.node.start()
        running.wait_active(within=2)
        assert shop.get("/", scene.DEV).served_by == "handler"
        assert shop.get("/").served_by == "app"
        assert running.stop() == 0


def test_an_orphaned_proxy_finishes_what_it_has(shop, app):
    with shop.intercept(), shop.client() as client:
        client.send(b"GET /hold HTTP/1.1\r\nHost: a\r\n\r\n")
        assert app.holding.acquire(timeout=10)
        proxy = shop.proxy()
        shop.node.kill()
        until(lambda: shop.get("/").served_by == "app", within=2, what="the app to answer others")
        app.release.set()
        assert client.reader.message(answers="GET").header("x-served-by") == "app"
        until(lambda: not alive(proxy), within=DRAIN + 2, what="the orphan to be gone")


def test_an_orphaned_proxy_does_not_outstay_the_drain_timeout(shop, app):
    with shop.intercept(), shop.client() as client:
        client.send(b"GET /hold HTTP/1.1\r\nHost: a\r\n\r\n")
        assert app.holding.acquire(timeout=10)
        proxy = shop.proxy()
        shop.node.kill()
        until(lambda: not alive(proxy), within=DRAIN + 2, what="the orphan to be gone")


def test_the_daemon_starts_again_over_its_stale_socket(shop, app):
    with shop.intercept():
        shop.node.kill()
    assert shop.get("/", scene.DEV).served_by == "app"
    shop.node.start()
    with shop.intercept():
        assert shop.get("/", scene.DEV).served_by == "handler"
        assert shop.get("/").served_by == "app"
    assert shop.node.stop() == 0
    assert not shop.node.socket.exists()


def test_sigterm_drains_and_resets_nobody(shop, app):
    with shop.intercept(), Callers(shop) as callers:
        until(lambda: len(callers.outcomes) > 20, within=10, what="some calls")
        assert shop.node.stop() == 0
        ended = time.monotonic()
        until(lambda: len(callers.since(ended)) > 8, within=10, what="calls after the daemon's end")
    assert {outcome for _, outcome in callers.outcomes} == {"app"}


def test_the_command_line_dies_in_mid_request(shop, app):
    with shop.intercept("--name", "mine", "--http-header", "x-dev=ada") as running, shop.client() as first:
        first.send(f"GET /hold HTTP/1.1\r\nHost: a\r\n{scene.DEV}\r\n\r\n".encode())
        assert shop.handler.holding.acquire(timeout=10)
        with shop.client() as second:
            body = f"POST /hold HTTP/1.1\r\nHost: a\r\n{scene.DEV}\r\nContent-Length: 4\r\n\r\nbody".encode()
            second.send(body)
            assert shop.handler.holding.acquire(timeout=10)
            running.process.kill()
            app.release.set()
            answer = first.reader.message(answers="GET")
            assert (answer.status, answer.header("x-served-by")) == (200, "app")
            refused = second.reader.message(answers="POST")
            assert refused.status == 502
            assert refused.body.startswith(b"sidestep:")
            assert b"shop/mine" in refused.body
            assert second.get("/", scene.DEV).header("x-served-by") == "app"
        assert first.get("/", scene.DEV).header("x-served-by") == "app"


@pytest.fixture
def handler_process(tmp_path, shop):
    """A handler in a process of its own, so that it can be killed."""
    certificate = shop.app_certificate.write(tmp_path / "handler")
    command = [sys.executable, "-m", "tests.harness.handler", "--tls", certificate]
    with Process(command, log=tmp_path / "handler.log", stdout=tmp_path / "handler.out") as process:
        until(process.output, within=10, what="the handler to listen")
        process.port = int(process.output().split()[0])
        yield process


def test_the_handler_dies_in_mid_request(shop, app, handler_process):
    with shop.intercept(handler_port=handler_process.port), shop.client() as first, shop.client() as second:
        first.send(f"GET /hold HTTP/1.1\r\nHost: a\r\n{scene.DEV}\r\n\r\n".encode())
        second.send(f"GET /half HTTP/1.1\r\nHost: a\r\n{scene.DEV}\r\n\r\n".encode())
        assert second.reader.until(b"half").endswith(b"half")
        until(lambda: "hold" in handler_process.output(), within=10, what="the handler to hold the request")
        app.release.set()
        handler_process.kill()
        answer = first.reader.message(answers="GET")
        assert (answer.status, answer.header("x-served-by")) == (200, "app")
        with pytest.raises((*DROPPED, OSError)):  # a half answer never looks like a whole one
            second.reader.exactly(1000)
        # refused from now on: nothing of the body was consumed, so the app answers
        assert shop.get("/", scene.DEV).served_by == "app"
        assert shop.get("/echo", scene.DEV, options=["-d", "text"]).text == "text"


def test_the_namespace_is_deleted_under_us(shop):
    with (
        Server(http_app, netns=shop.space.pod, address=shop.space.ip, port=scene.TLS_PORT, tls=shop.app_tls()) as app,
        shop.intercept(),
    ):
        assert shop.get("/", scene.DEV).served_by == "handler"
        hung, proxy = kernel.steering(shop.space.pod), shop.proxy()
        app.stop()
        shop.space.delete_pod()
        until(lambda: not shop.space.peer_exists(), within=3, what="the veth pair to go")
        until(lambda: not alive(proxy), within=1, what="the proxy to go")
        assert hung.left() == []
        assert shop.node.status() is not None


def test_a_manifest_that_goes_away_releases_the_pod(shop, app):
    with shop.intercept(pods=1) as running:
        documents = list(Path(shop.node.manifests).glob("orders.yaml"))
        documents[0].unlink()
        running.wait_active(pods=0)
        until(lambda: not kernel.steering(shop.space.pod).links, within=5, what="the link to go")
        assert shop.get("/", scene.DEV).served_by == "app"


def test_live_reload_survives_bad_manifests(shop, app):
    (shop.node.manifests / "bad.yaml").write_text("kind: Pod\nmetadata: [\n")
    until(lambda: "bad.yaml" in shop.node.log(), within=5, what="a line about the bad file")
    with shop.intercept():
        assert shop.get("/", scene.DEV).served_by == "handler"
        broken = manifests.pod("broken", shop.space, netns="/run/netns/there-is-none")
        shop.node.write("worse.yaml", {"kind": "Pod", "metadata": {"name": 7}}, broken)
        until(lambda: "there-is-none" in shop.conditions() + shop.node.log(), within=5, what="a word about the netns")
        assert shop.get("/", scene.DEV).served_by == "handler"


def test_an_app_restarts_while_clients_are_connected(shop):
    """Our end of their connections carries the pod's address and port; it may not keep the app from binding them."""
    options = {"netns": shop.space.pod, "address": shop.space.ip, "port": scene.TLS_PORT, "tls": shop.app_tls()}
    with shop.intercept(pods=None):
        with Server(http_app, **options):
            until(lambda: shop.get("/", scene.DEV).served_by == "handler", within=10, what="the port to be steered")
            clients = [shop.client() for _ in range(3)]
            for client in clients:
                assert client.get("/").header("x-served-by") == "app"
                client.send(b"GET /hold HTTP/1.1\r\nHost: a\r\n\r\n")
        with Server(http_app, **options):
            until(lambda: shop.get("/", scene.DEV).served_by == "handler", within=10, what="the handler to be back")
            assert shop.get("/").served_by == "app"
        for client in clients:
            client.close()


def test_the_app_s_process_is_untouched(shop):
    with scene.shop_nginx(shop) as app:
        before = (app.pid, started(app.pid), kernel.descriptors(app.pid))
        with shop.intercept():
            assert shop.get("/", scene.DEV).served_by == "handler"
        assert (app.pid, started(app.pid), kernel.descriptors(app.pid)) == before


def _ours(shop, app):
    """Listeners in the pod's namespace besides the app's."""
    return [one for one in kernel.listeners(shop.space.pod) if not one.endswith(f":{app.port}")]
