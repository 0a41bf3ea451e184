"""Scenes that the tests of one file share; each test starts its own intercepts and ends them."""

from __future__ import annotations

import os

import pytest

from tests.harness import scene
from tests.harness.node import Node


def pytest_collection_modifyitems(items):
    """Everything here makes namespaces: privileged. Without root that is a failure, not a skip."""
    for item in items:
        if "/tests/system/" in str(item.path):
            item.add_marker(pytest.mark.privileged)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """A daemon that is measured compiles for itself."""
    Node.compiles = item.get_closest_marker("alone") is not None


@pytest.fixture(scope="session", autouse=True)
def _root():
    assert os.geteuid() == 0, "the system tests need root: sudo make test"


@pytest.fixture(scope="session", autouse=True)
def _compiled(tmp_path_factory):
    """The folder in which the daemons of this run share what the first of them compiles."""
    base = tmp_path_factory.getbasetemp()
    # Each process of pytest-xdist has a folder of its own in that of the run.
    Node.compiled = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "compiled"
    Node.compiled.mkdir(exist_ok=True)
    yield
    Node.compiled = None


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
