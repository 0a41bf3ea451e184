"""A proxy that lives but cannot serve: the app answers, `status` says why, and the handler comes back."""

import time

import pytest

from tests.harness import scene
from tests.harness.peers import Server, http_app
from tests.harness.waiting import until

PLAIN = {"port": scene.PLAIN_PORT, "plaintext": True}


@pytest.fixture
def app(shop):
    with Server(http_app, netns=shop.space.pod, address="::", port=scene.PLAIN_PORT, dual_stack=True) as app:
        yield app


def served_by(shop):
    """Who answers a matching request, asked again after a reset; nobody waits for long."""
    began = time.monotonic()
    with shop.client(port=scene.PLAIN_PORT) as client:
        client.sock.settimeout(6)
        try:
            found = client.get("/", scene.DEV).header("x-served-by")
        except ConnectionError:
            found = ""
    assert time.monotonic() - began < 5
    return found


def state_of(shop):
    """The state of the one pod of the one intercept, and its detail."""
    pod = shop.node.status()["intercepts"][0]["state"]["pods"][0]
    return pod["state"], pod["detail"]


def by_handler(shop):
    until(lambda: served_by(shop) == "handler", within=20, what=lambda: f"the handler; {shop.conditions()}")
    until(lambda: "ProxyNotReady" not in shop.conditions(), within=5, what="the condition to be cleared")
    until(lambda: state_of(shop)[0] == "active", within=5, what="the intercept to be active")


def test_a_listener_that_somebody_in_the_pod_ends(shop, app):
    with shop.intercept(**PLAIN):
        by_handler(shop)
        shop.space.pod.run("ss", "-K", "-H", "-l", "-t", "src", "[::ffff:127.0.0.1]")
        assert served_by(shop) == "app"
        until(lambda: "closed by somebody in the pod" in shop.node.log(), within=5, what="a line in the log")
        by_handler(shop)


def test_a_firewall_in_the_pod_that_drops_what_the_proxy_says_to_the_app(shop, app):
    with shop.intercept(**PLAIN):
        by_handler(shop)
        shop.space.pod.run("nft", "add table inet wall; add chain inet wall in { type filter hook input priority 0; }")
        shop.space.pod.run("nft", "add rule inet wall in iif lo drop")
        with shop.client(port=scene.PLAIN_PORT) as silent:  # what matches does not need the app
            silent.sock.settimeout(6)
            with pytest.raises(ConnectionError):
                silent.get("/")
        until(lambda: served_by(shop) == "app", within=2, what="the port to be left to the app")
        text = "the app cannot be reached from inside the pod over IPv4"
        assert text in shop.conditions()
        shop.space.pod.run("nft", "delete table inet wall")
        by_handler(shop)
