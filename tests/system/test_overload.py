"""The overload valve: a proxy that does not keep up loses its port to the app, and gets it back."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.harness import scene
from tests.harness.peers import Server, http_app
from tests.harness.waiting import until


@pytest.fixture
def shop(tmp_path):
    with scene.shop(tmp_path) as shop:
        shop.space.pod.call(lambda: Path("/proc/sys/net/core/somaxconn").write_text("16"))
        yield shop


@pytest.mark.alone
def test_a_full_queue_gives_the_port_back_for_a_while(shop):
    with (
        Server(http_app, netns=shop.space.pod, address="::", port=scene.PLAIN_PORT, dual_stack=True),
        shop.intercept(port=scene.PLAIN_PORT, plaintext=True),
    ):
        assert shop.get("/", scene.DEV, port=scene.PLAIN_PORT).served_by == "handler"
        proxy = shop.proxy()
        os.kill(proxy, signal.SIGSTOP)
        waiting = [shop.client(port=scene.PLAIN_PORT) for _ in range(12)]
        for client in waiting:
            client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        until(lambda: "Overloaded" in shop.conditions(), within=20, what="the valve to shut")
        assert shop.get("/", scene.DEV, port=scene.PLAIN_PORT).served_by == "app"
        assert shop.proxy() == proxy  # it hangs, and is not replaced yet
        for client in waiting:
            assert client.reader.message(answers="GET").header("x-served-by") == "app"
            client.close()
        until(
            lambda: shop.get("/", scene.DEV, port=scene.PLAIN_PORT).served_by == "handler",
            within=60,
            what="the port to be steered again",
        )
        assert "Overloaded" not in shop.conditions()
