"""A second node daemon takes over while the first drains: nobody is refused, nothing is left of the first."""

from __future__ import annotations

import itertools
import threading

import pytest

from tests.harness import kernel, scene
from tests.harness.cli import sidestep
from tests.harness.peers import Server, http_app
from tests.harness.processes import alive
from tests.harness.waiting import until

CONNECTIONS = 2000
CALLERS = 8


@pytest.fixture
def shop(tmp_path):
    with scene.shop(tmp_path) as shop:
        yield shop


@pytest.fixture
def app(shop):
    options = {"netns": shop.space.pod, "address": "::", "dual_stack": True, "record": False}
    with Server(http_app, port=scene.PLAIN_PORT, **options) as app:
        yield app


def test_2000_short_connections_across_an_upgrade(shop, app):
    outcomes: list[tuple[bool, str]] = []
    upgraded = threading.Event()
    numbers = itertools.count()

    def calling():
        after = 0
        while len(outcomes) < CONNECTIONS or not upgraded.is_set() or after < 20:
            marked = next(numbers) % 2 == 0
            try:
                with shop.client(port=scene.PLAIN_PORT, record=False) as client:
                    outcome = client.get("/", *([scene.DEV] if marked else [])).header("x-served-by")
            except (OSError, EOFError, ConnectionError, ValueError) as error:
                outcome = repr(error)
            except Exception as error:  # noqa: BLE001 - whatever a client sees is an outcome
                outcome = repr(error)
            outcomes.append((marked, outcome))
            after += upgraded.is_set()

    with shop.intercept(port=scene.PLAIN_PORT, plaintext=True) as running:
        threads = [threading.Thread(target=calling) for _ in range(CALLERS)]
        for thread in threads:
            thread.start()
        until(lambda: len(outcomes) > CONNECTIONS // 8, within=60, what="some calls")
        old = shop.node.upgrade()
        until(lambda: len(running.of("registered")) == 2, within=5, what="the session to move")
        running.wait_active(within=5)
        assert old.wait(60) == 0
        upgraded.set()
        for thread in threads:
            thread.join(120)
        assert len(outcomes) >= CONNECTIONS
        assert {outcome for marked, outcome in outcomes if not marked} == {"app"}
        assert {outcome for marked, outcome in outcomes if marked} <= {"app", "handler"}
        assert running.process.running
        assert shop.get("/", scene.DEV, port=scene.PLAIN_PORT).served_by == "handler"
        assert len(kernel.steering(shop.space.pod).links) == 1
        assert not alive(old.pid)
        assert shop.node.stop() == 0
        assert not shop.node.socket.exists()


def test_what_runs_through_the_old_daemon_is_finished(shop, app):
    with shop.intercept(port=scene.PLAIN_PORT, plaintext=True) as running:
        with shop.client(port=scene.PLAIN_PORT) as mine, shop.client(port=scene.PLAIN_PORT) as other:
            mine.send(f"GET /hold HTTP/1.1\r\nHost: a\r\n{scene.DEV}\r\n\r\n".encode())
            assert shop.plain_handler.holding.acquire(timeout=10)
            other.send(b"GET /hold HTTP/1.1\r\nHost: a\r\n\r\n")
            assert app.holding.acquire(timeout=10)
            old = shop.node.upgrade()
            until(lambda: len(running.of("registered")) == 2, within=5, what="the session to move")
            shop.plain_handler.release.set()
            app.release.set()
            assert mine.reader.message(answers="GET").header("x-served-by") == "handler"
            assert other.reader.message(answers="GET").header("x-served-by") == "app"
        assert old.wait(40) == 0
        running.wait_active(within=5)
        assert shop.get("/", scene.DEV, port=scene.PLAIN_PORT).served_by == "handler"
        assert running.stop() == 0


def test_leave_ends_an_intercept_that_has_moved(shop, app):
    with shop.intercept("--name", "mine", port=scene.PLAIN_PORT, plaintext=True) as running:
        shop.node.upgrade()
        until(lambda: len(running.of("registered")) == 2, within=5, what="the session to move")
        left = sidestep("leave", "mine", "-n", "shop", socket=shop.node.socket)
        assert left.code == 0, left.stderr
        assert running.process.wait(10) == 0
        until(lambda: shop.get("/", scene.DEV, port=scene.PLAIN_PORT).served_by == "app", within=5, what="the app")
