"""Scenes that the tests of one file share; each test starts its own intercepts and ends them."""

from __future__ import annotations

import os

import pytest

from tests.harness import scene


def pytest_collection_modifyitems(items):
    """Everything here makes namespaces: privileged. Without root that is a failure, not a skip."""
    for item in items:
        if "/tests/system/" in str(item.path):
            item.add_marker(pytest.mark.privileged)


@pytest.fixture(scope="session", autouse=True)
def _root():
    assert os.geteuid() == 0, "the system tests need root: sudo make test"


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """The usual scene without an app; the test brings one."""
    with scene.shop(tmp_path_factory.mktemp("shop")) as shop:
        yield shop


@pytest.fixture(scope="module")
def nginx_shop(tmp_path_factory):
    """The usual scene with nginx as the app."""
    with scene.shop(tmp_path_factory.mktemp("shop")) as shop, scene.shop_nginx(shop) as app:
        shop.nginx = app
        yield shop
