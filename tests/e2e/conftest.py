"""One cluster for all tests here; what went wrong on it is shown beside a failure."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.debian import cache
from tests.e2e import building, cgroups, machine, releases
from tests.e2e import cluster as clusters
from tests.e2e import product as products
from tests.e2e import shop as shops

NOT_HERE = pytest.StashKey[list[str]]()
WITHIN = 300.0
"""Seconds for a test, unless `--timeout` gives it more: an emulated machine is slow."""


def pytest_collection_modifyitems(config, items):
    """Mark the tests, and leave out what this Kubernetes or this machine cannot show; the summary names them."""
    version = releases.version_of_this_run()
    within = max(WITHIN, config.getoption("timeout") or 0)
    absent = {}
    for item in items:
        if "/tests/e2e/" in str(item.path):
            item.add_marker(pytest.mark.e2e)
            item.add_marker(pytest.mark.timeout(within, func_only=True))
            if any(int(version.split(".")[1]) < mark.args[0] for mark in item.iter_markers("since")):
                absent[item] = f"not on Kubernetes {version}"
            elif item.get_closest_marker("unified") and not cgroups.unified():
                absent[item] = "this machine has cgroup version 1, too"
    if absent:
        config.hook.pytest_deselected(items=list(absent))
        items[:] = [item for item in items if item not in absent]
    config.stash[NOT_HERE] = [f"{item.name} ({why})" for item, why in absent.items()]


def pytest_terminal_summary(terminalreporter, config):
    for line in config.stash.get(NOT_HERE, []):
        terminalreporter.write_line(f"left out: {line}")


@pytest.fixture(scope="session")
def cluster(request):
    """A real single-node Kubernetes. After a failure the logs of its programs are kept in the cache folder."""
    assert os.geteuid() == 0, "the e2e tests need root: sudo make e2e"
    cache.uncaptured = request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled
    folder = machine.folder_of_our_own()
    try:
        with building.required(), clusters.cluster(folder) as running:
            yield running
    finally:
        kept = cache.folder() / "logs"
        shutil.rmtree(kept, ignore_errors=True)
        if request.session.testsfailed and (folder / "node" / "logs").is_dir():
            shutil.copytree(folder / "node" / "logs", kept)
            cache.say(f"logs of the node's programs: {kept}")
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def shop(cluster, tmp_path_factory):
    """The usual app with its three replicas, shared by the tests; who scales it scales it back."""
    return shops.open_shop(cluster, tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="session")
def product(cluster, shop, tmp_path_factory):
    """Sidestep, installed; ada is a developer in the shop, which lets its Secrets be read."""
    installed = products.Product(cluster, tmp_path_factory.mktemp("product"))
    try:
        installed.install(user="ada", namespace=shop.namespace)
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
