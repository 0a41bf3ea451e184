"""`--reset-existing`: clients that were connected before the intercept come back through the proxy."""

from __future__ import annotations

import pytest

from tests.harness import scene
from tests.harness.http1 import ClosedError
from tests.harness.peers import Server, http_app


@pytest.fixture
def shop(tmp_path):
    with scene.shop(tmp_path) as shop:
        yield shop


@pytest.fixture
def app(shop):
    with Server(http_app, netns=shop.space.pod, address="::", port=scene.PLAIN_PORT, dual_stack=True) as app:
        yield app


PLAIN = {"port": scene.PLAIN_PORT, "plaintext": True}


def broken(client):
    """Whether the server's end of a connection is gone."""
    try:
        client.get("/")
    except (ClosedError, OSError):
        return True
    return False


def test_without_it_existing_connections_stay_with_the_app(shop, app):
    with shop.client(port=scene.PLAIN_PORT) as client:
        assert client.get("/").header("x-served-by") == "app"
        with shop.intercept(**PLAIN):
            assert client.get("/", scene.DEV).header("x-served-by") == "app"
            assert shop.get("/", scene.DEV, port=scene.PLAIN_PORT).served_by == "handler"


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_existing_connections_are_ended(shop, app, family):
    address = shop.space.ip if family == "ipv4" else shop.space.ip6
    with shop.client(port=scene.PLAIN_PORT, address=address) as client:
        assert client.get("/").header("x-served-by") == "app"
        with shop.intercept("--http-header", "x-dev=ada", "--reset-existing", **PLAIN):
            assert broken(client)
            with shop.client(port=scene.PLAIN_PORT, address=address) as again:
                assert again.get("/", scene.DEV).header("x-served-by") == "handler"
                assert again.get("/").header("x-served-by") == "app"


def test_a_second_intercept_ends_what_is_older_and_nothing_of_the_first(shop, app):
    with shop.client(port=scene.PLAIN_PORT) as old:
        assert old.get("/").header("x-served-by") == "app"
        with shop.intercept(**PLAIN), shop.client(port=scene.PLAIN_PORT) as through:
            assert through.get("/", scene.DEV).header("x-served-by") == "handler"
            with shop.intercept("--http-header", "x-dev=grace", "--reset-existing", **PLAIN):
                assert broken(old)
                assert through.get("/", scene.DEV).header("x-served-by") == "handler"
                assert through.get("/").header("x-served-by") == "app"
                assert through.get("/", "x-dev: grace").header("x-served-by") == "handler"
