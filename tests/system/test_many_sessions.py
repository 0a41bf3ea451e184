"""Many developers on one port: each gets what is theirs, and nobody waits for anybody."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import pytest

from tests.harness import scene
from tests.harness.cli import intercept, sidestep
from tests.harness.peers import Server, http_app
from tests.harness.waiting import until

SESSIONS = 50
PORT = scene.PLAIN_PORT


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    with scene.shop(tmp_path_factory.mktemp("many")) as shop:
        yield shop


@pytest.fixture(scope="module")
def app(shop):
    with Server(http_app, netns=shop.space.pod, address="::", port=PORT, dual_stack=True) as app:
        yield app


def started(shop, stack, value, handler, *options):
    """A session for `x-dev: value` that nobody waits for yet."""
    words = ["--port", f"{handler.port}:{PORT}", "--plaintext", "--http-header", f"x-dev={value}", *options]
    return stack.enter_context(intercept(shop.node, "orders", *words, pods=None))


@pytest.mark.alone
def test_fifty_sessions_on_one_port(shop, app):
    with contextlib.ExitStack() as stack:
        handlers = [stack.enter_context(Server(http_app, name=f"handler-{n}")) for n in range(SESSIONS)]
        running = [started(shop, stack, f"dev-{n}", handler) for n, handler in enumerate(handlers)]
        for each in running:
            each.wait_active(within=90)
        with shop.client(port=PORT) as client:
            for n in [*range(SESSIONS), *reversed(range(SESSIONS))]:
                assert client.get("/", f"x-dev: dev-{n}").header("x-served-by") == f"handler-{n}"
                assert client.get("/", f"x-dev: dev-{n}0").header("x-served-by") in {"app", f"handler-{n}0"}
            assert client.get("/").header("x-served-by") == "app"
        assert len(shop.node.status()["intercepts"]) == SESSIONS

        # One that hangs holds up its own requests only.
        with shop.client(port=PORT) as stalled, shop.client(port=PORT) as client:
            os.kill(running[7].pid, signal.SIGSTOP)
            try:
                stalled.send(b"GET / HTTP/1.1\r\nHost: a\r\nx-dev: dev-7\r\n\r\n")
                worst = 0.0
                for n in range(100):
                    lines = [] if n % 2 else [f"x-dev: dev-{8 + n % 40}"]
                    began = time.monotonic()
                    answer = client.get("/", *lines).header("x-served-by")
                    worst = max(worst, time.monotonic() - began)
                    assert answer == ("app" if n % 2 else f"handler-{8 + n % 40}")
                assert worst < 1, worst
            finally:
                os.kill(running[7].pid, signal.SIGCONT)
            assert stalled.reader.message(answers="GET").header("x-served-by") in {"handler-7", "app"}

        # Those that end do not touch the others.
        for each in running[: SESSIONS // 2]:
            each.process.signal(signal.SIGINT)
        until(lambda: len(shop.node.status()["intercepts"]) == SESSIONS // 2, within=30, what="half of them to end")
        with shop.client(port=PORT) as client:
            assert client.get("/", "x-dev: dev-3").header("x-served-by") == "app"
            assert client.get("/", "x-dev: dev-40").header("x-served-by") == "handler-40"
        for each in running[SESSIONS // 2 :]:
            each.process.signal(signal.SIGINT)
        for each in running:
            assert each.process.wait(30) == 0


def test_the_oldest_that_matches_wins(shop, app):
    with (
        Server(http_app, name="first") as first,
        Server(http_app, name="second") as second,
        contextlib.ExitStack() as stack,
    ):
        older = started(shop, stack, "~^a", first)
        older.wait_active()
        younger = started(shop, stack, "ada", second)
        younger.wait_active()
        assert shop.get("/", scene.DEV, port=PORT).served_by == "first"
        assert older.stop() == 0
        until(
            lambda: shop.get("/", scene.DEV, port=PORT).served_by == "second",
            within=5,
            what="the younger one's turn",
        )


def refusal(shop, *options):
    """The line that says why an intercept is refused."""
    done = sidestep(
        "intercept", "orders", "-n", "shop", "--port", f"9:{PORT}", "--plaintext", *options, socket=shop.node.socket
    )
    assert done.code == 1, done
    return done.error


def test_what_excludes_each_other(shop, app):
    with contextlib.ExitStack() as stack:
        started(shop, stack, "ada", shop.plain_handler, "--name", "mine").wait_active()
        assert "shop/mine" in refusal(shop, "--http-header", "x-dev=ada")
        assert "shop/mine" in refusal(shop)
    until(lambda: not shop.node.status()["intercepts"], within=5, what="the intercept to end")
    with shop.intercept("--plaintext", "--name", "all", port=PORT, handler_port=shop.plain_handler.port):
        assert "shop/all" in refusal(shop, "--http-header", "x-dev=ada")
        assert "shop/all" in refusal(shop)
