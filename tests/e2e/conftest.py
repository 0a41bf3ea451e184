"""One cluster for all tests here; what went wrong on it is shown beside a failure."""

from __future__ import annotations

import os

import pytest

from tests.e2e import cluster as clusters
from tests.e2e import product as products
from tests.e2e import shop as shops


def pytest_collection_modifyitems(items):
    for item in items:
        if "/tests/e2e/" in str(item.path):
            item.add_marker(pytest.mark.e2e)
            item.add_marker(pytest.mark.timeout(180, func_only=True))


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """A real single-node Kubernetes."""
    assert os.geteuid() == 0, "the e2e tests need root: sudo make e2e"
    with clusters.cluster(tmp_path_factory.mktemp("e2e")) as running:
        yield running


@pytest.fixture(scope="session")
def shop(cluster, tmp_path_factory):
    """The usual app with its three replicas, shared by the tests; who scales it scales it back."""
    return shops.open_shop(cluster, tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="session")
def product(cluster, shop, tmp_path_factory):
    """Sidestep, installed; ada is a developer in the shop, which lets its Secrets be read."""
    installed = products.Product(cluster, tmp_path_factory.mktemp("product"))
    try:
        installed.install()
        installed.grant("ada", shop.namespace)
    except AssertionError as error:
        error.add_note(installed.log())
        raise
    return installed


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Show what the cluster and the daemon say beside a failure."""
    report = yield
    funcargs = getattr(item, "funcargs", {})
    if report.failed and "product" in funcargs:
        report.sections.append(("node daemon", funcargs["product"].log(lines=60)))
    if report.failed and "shop" in funcargs:
        shop = funcargs["shop"]
        report.sections.append(("shop", shop.cluster.describe(shop.namespace)))
    return report
