"""Captures on the real cluster: who may, what tshark reads of one, what tells of it, how it ends."""

from __future__ import annotations

import contextlib
import json
import signal

import pytest

from tests.e2e import shop as shops
from tests.harness import tshark
from tests.harness.processes import Process
from tests.harness.waiting import until
from tests.harness.warm import SIDESTEP

CAPTURER = "eve"
DEVELOPER = "ada"
PLURAL = "captures.sidestep.dev"
SECRET = "S3CRETtoken"
H1 = ("-d", f"tcp.port=={shops.TLS_PORT},http")


@pytest.fixture(scope="module", autouse=True)
def resources(product, shop):
    """The definitions; eve may capture in the shop and reach the daemons, and nothing else."""
    with product.inspection(), product.session_role("sidestep-capturer", CAPTURER, shop.namespace):
        yield
        product.quiet(shop.pods())


@contextlib.contextmanager
def capturing(cluster, product, shop, name, *options, user=CAPTURER):
    """`sidestep capture` of the TLS port on the laptop, once it is active; its process and file."""
    file = product.folder / f"{name}.pcapng"
    words = [SIDESTEP, "capture", "orders", "-n", shop.namespace, "-p", "https", "-w", file, *options]
    with Process(cluster.command(*words, user=user), log=product.folder / f"{name}.log", patience=10) as process:
        told = lambda: "Capturing" in process.text() or not process.running  # noqa: E731
        until(told, within=40, every=0.2, what=lambda: f"the capture to begin: {process.text()}")
        assert process.running, process.text()
        yield process, file


def told(cluster, shop, reason):
    """What Events of this reason say of captures."""
    return [each["message"] for each in cluster.events(shop.namespace) if each["reason"] == reason]


def test_tshark_reads_what_pods_and_clients_say(cluster, product, shop):
    with capturing(cluster, product, shop, "heads", "--for", "10m") as (process, file):
        [capture] = cluster.get("captures", namespace=shop.namespace)
        assert capture["spec"]["snap"] == "Heads"
        assert capture["spec"]["duration"] == "10m"
        until(
            lambda: (
                cluster.get("captures", capture["metadata"]["name"], namespace=shop.namespace)["status"]["state"]
                == "Active"
            ),
            within=20,
            every=0.5,
            what="state Active",
        )
        columns = cluster.kubectl("get", "captures", "-n", shop.namespace)
        assert "10m" in columns
        assert "Active" in columns
        shown = product.run("status", "-n", shop.namespace, user=CAPTURER)
        assert shown.code == 0, shown.error
        assert "capture" in shown.stdout
        [started] = told(cluster, shop, "CaptureStarted")
        assert started.startswith(f"{CAPTURER} captures, for at most 10m and 1073741824 bytes from each node, heads")
        assert "of orders, port https, all pods" in started
        for pod in shop.pods():
            header = f"Authorization: Bearer {SECRET}"
            answer = shop.get(pod, f"/find?token={SECRET}", header, options=("--http1.1",))
            assert answer.served_by == "app"
        count = len(shop.pods())

        def read():
            return tshark.rows(tshark.so_far(file.read_bytes()), ["http.request.uri"], only="http.request", options=H1)

        until(lambda: len(read()) == count, within=20, every=0.5, what=lambda: f"{count} requests: {process.text()}")
        process.signal(signal.SIGINT)
        assert process.wait(20) == 0, process.text()
    data = file.read_bytes()
    assert file.stat().st_mode & 0o777 == 0o600
    assert {row["http.request.uri"] for row in read()} == {"/find?token=[redacted]"}
    assert tshark.complaints(data, *H1) == []
    names = {row["frame.interface_name"] for row in tshark.rows(data, ["frame.interface_name"])}
    assert names == {f"{shop.namespace}/{pod.name}" for pod in shop.pods()}
    assert SECRET.encode() not in data
    until(lambda: told(cluster, shop, "CaptureEnded"), within=20, every=0.5, what="the Event of the end")
    assert cluster.get("captures", namespace=shop.namespace) == []


def test_who_lacks_the_role_is_told_verb_and_role(cluster, product, shop):
    file = product.folder / "refused.pcapng"
    words = ("capture", "orders", "-n", shop.namespace, "-p", "https", "-w", file)
    refused = product.run(*words, user=DEVELOPER, within=40)
    assert refused.code == 1
    assert f"you may not create {PLURAL} in namespace {shop.namespace}" in refused.error
    assert f"--clusterrole=sidestep-capturer --user={DEVELOPER}" in refused.error
    assert not file.exists()
    assert cluster.get("captures", namespace=shop.namespace) == []


def test_who_may_what(cluster, product, shop):
    def may(user, verb, resource, *more):
        answer = cluster.kubectl_result("auth", "can-i", verb, resource, *more, "--as", user)
        return answer.stdout.strip() == "yes"

    here = ("-n", shop.namespace)
    for verb in ("create", "get", "list", "watch", "patch", "delete"):
        assert may(CAPTURER, verb, PLURAL, *here)
        assert not may(CAPTURER, verb, PLURAL, "-n", "default")
        assert not may(DEVELOPER, verb, PLURAL, *here)
    for plural in ("intercepts", "wiretaps", "inspectionpolicies"):
        assert not may(CAPTURER, "create", f"{plural}.sidestep.dev", *here)
    for user in (CAPTURER, DEVELOPER):
        assert not may(user, "patch", PLURAL, "--subresource=status", *here)
        assert not may(user, "delete", "events", *here)


def test_it_ends_after_its_time_and_by_leave(cluster, product, shop):
    with capturing(cluster, product, shop, "timed", "--for", "3s") as (process, _):
        assert process.wait(30) == 0, process.text()
        assert "Ended: the capture has lasted 3s." in process.text() or "0 packets" in process.text()
    with capturing(cluster, product, shop, "left") as (process, _):
        [capture] = cluster.get("captures", namespace=shop.namespace)
        done = product.run("leave", capture["metadata"]["name"], "-n", shop.namespace, user=CAPTURER)
        assert done.code == 0, done.error
        assert process.wait(20) == 0, process.text()
        assert "somebody deleted it" in process.text()
    product.quiet(shop.pods())


def test_a_session_that_is_killed_leaves_no_capture(cluster, product, shop):
    """The daemon ends what has lasted for its time though nobody asks for the end any more."""
    with capturing(cluster, product, shop, "killed", "--for", "5s") as (process, _):
        process.signal(signal.SIGSTOP)  # it cannot end by itself, and its tunnel stands
        try:
            until(
                lambda: not cluster.get("captures", namespace=shop.namespace),
                within=60,
                every=0.5,
                what="the capture to be deleted by the daemon",
            )
        finally:
            process.signal(signal.SIGCONT)
        product.quiet(shop.pods())


@pytest.mark.parametrize(
    "spec", [{"snap": "Everything"}, {"maxBytes": 1}, {"maxBytes": 2**41}, {"port": None}, {"session": {}}]
)
def test_the_api_server_refuses_what_it_can_judge(cluster, product, shop, spec):
    document = {
        "apiVersion": "sidestep.dev/v1alpha1",
        "kind": "Capture",
        "metadata": {"name": "bad"},
        "spec": {"workload": "orders", "port": "https", "session": {"publicKey": "A" * 43 + "="}, **spec},
    }
    words = ("create", "-f", "-", "-n", shop.namespace)
    refused = cluster.kubectl_result(*words, user=CAPTURER, stdin=json.dumps(document))
    assert refused.code != 0, refused
