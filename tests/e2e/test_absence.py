"""Times in which no node daemon runs: the next one says so in records, in the policy's status and in a metric."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import re
import time

import pytest

from tests.e2e import product as products
from tests.e2e import shop as shops
from tests.e2e import test_faults as faults
from tests.e2e import test_inspection as written
from tests.harness.waiting import until

LOG = "/var/log/sidestep/eve.json"
KEPT = "/var/log/sidestep/inspected.json"
METRICS = 9464
AWAY = 4.0
"""Seconds for which no daemon runs, at least."""
PATIENCE = 90.0
"""Seconds in which the next daemon runs and has found every pod."""


@pytest.fixture(scope="module", autouse=True)
def inspection(cluster, product, shop):
    with product.inspection():
        yield


@pytest.fixture(autouse=True)
def left_alone(cluster, product, shop):
    """After each test no policy is left, and nothing of ours in the pods."""
    yield
    cluster.kubectl("delete", "ipol", "--all", "-n", shop.namespace)
    product.quiet(shop.pods())


@contextlib.contextmanager
def sent_away(cluster):
    """The DaemonSet has no pod on the node for a while."""
    faults.daemons_selector(cluster, {"sidestep": "elsewhere"})
    try:
        until(
            lambda: not cluster.get("pods", namespace=products.NAMESPACE, selector=products.DAEMON),
            within=PATIENCE,
            every=0.5,
            what=lambda: f"the daemon to end\n{cluster.describe(products.NAMESPACE)}",
        )
        yield
    finally:
        faults.daemons_selector(cluster, {"sidestep": None})


def records(cluster):
    """The gaps in the node's log: (pod, gap)."""
    lines = cluster.node.run("sh", "-c", f"cat {LOG} 2>/dev/null || true").splitlines()
    found = [json.loads(line) for line in lines if '"no-daemon"' in line and line.endswith("}")]
    return [(each["kubernetes"]["pod"], each["sidestep"]) for each in found]


def is_kept(cluster):
    """Whether there is something for the next daemon."""
    return cluster.node.run("sh", "-c", f"test -e {KEPT} && echo yes || true").strip() == "yes"


def told(cluster):
    """The gaps in the policy's status."""
    nodes = written.status(cluster).get("nodes", {})
    return [gap for entry in nodes.values() for gap in entry.get("gaps", ())]


def counted(cluster, product):
    """Seconds that the daemon's metric has for each pod of the shop that stood open because there was no daemon."""
    text = cluster.curl(f"http://{product.daemon().ip}:{METRICS}/metrics").text
    line = re.compile(r"^sidestep_inspection_uninspected_seconds_total{(.*)} (\S+)$", re.MULTILINE)
    labels = [(dict(re.findall(r'(\w+)="([^"]*)"', words)), float(value)) for words, value in line.findall(text)]
    return {
        each["pod"]: seconds
        for each, seconds in labels
        if (each["reason"], each["outcome"], each["namespace"]) == ("no-daemon", "open", "shop")
    }


def moment(text):
    return dt.datetime.fromisoformat(text).timestamp()


@pytest.mark.timeout(400, func_only=True)  # a daemon ends and another starts, at the kubelet's pace
@pytest.mark.parametrize("failure", ["Ignore", "Fail"])
def test_the_gap_stands_in_records_status_and_metrics(cluster, product, shop, failure):
    pods = shop.pods()
    names = {pod.name for pod in pods}
    cluster.apply(written.policy(mode="Enforce", failurePolicy=failure), namespace=shop.namespace)
    written.wait_for(cluster, Accepted="Accepted", Programmed="Programmed")
    for pod in pods:
        until(lambda pod=pod: shop.get(pod, "/admin").status == 403, within=20, every=0.2, what="the policy")
    until(lambda: is_kept(cluster), within=20, every=0.2, what="what is kept for the next daemon")
    before = records(cluster)
    with sent_away(cluster):
        for pod in pods:  # open, whatever the policy says of failures
            reached = lambda pod=pod: shop.get(pod, "/admin").served_by == "app"  # noqa: E731
            until(reached, within=30, every=0.2, what=lambda pod=pod: f"the app in {pod.name}")
        began = time.time()
        until(lambda: time.time() > began + AWAY, within=AWAY + 5, what="some time to pass")
        assert [shop.get(pod, "/admin").served_by for pod in pods] == ["app"] * len(pods)
        ended = time.time()
    until(
        lambda: {pod for pod, _ in records(cluster)[len(before) :]} == names,
        within=PATIENCE,
        every=0.5,
        what=lambda: f"a record for each pod, not {records(cluster)[len(before) :]}\n{product.log(lines=30)}",
    )
    gaps = records(cluster)[len(before) :]
    assert len(gaps) == len(pods)
    for _, said in gaps:
        assert (said["inspected"], said["action"]) == (False, "Pass")
        assert moment(said["gap"]["start"]) <= began
        assert moment(said["gap"]["end"]) >= ended
        assert said["gap"]["seconds"] >= AWAY
        assert {shops.TLS_PORT, shops.PLAIN_PORT} <= set(said["gap"]["ports"])
    until(
        lambda: [gap["pods"] for gap in told(cluster)] == [len(pods)], within=30, every=0.5, what=lambda: told(cluster)
    )
    [gap] = told(cluster)
    assert gap["reason"] == "no-daemon"
    assert moment(gap["start"]) <= began < ended <= moment(gap["end"]) + 0.001
    # A pod has metrics once its proxy has started again, which is later than the record.
    until(lambda: set(counted(cluster, product)) == names, within=30, every=0.5, what="metrics of every pod")
    seconds = counted(cluster, product)
    ports = {pod: len(said["gap"]["ports"]) for pod, said in gaps}
    for pod, said in gaps:
        assert seconds[pod] == pytest.approx(ports[pod] * said["gap"]["seconds"], abs=0.1)
    written.wait_for(cluster, Programmed="Programmed", within=PATIENCE)
    for pod in pods:
        until(lambda pod=pod: shop.get(pod, "/admin").status == 403, within=20, every=0.2, what="the policy again")
