"""`sidestep inspect` on the real cluster: who may, what it shows of policies and of ports without one, how it ends."""

from __future__ import annotations

import contextlib
import json
import signal

import pytest
import yaml

from tests.e2e import test_inspection as written
from tests.harness.processes import Process
from tests.harness.waiting import until
from tests.harness.warm import SIDESTEP

AUDITOR = "eve"
DEVELOPER = "ada"
PLURAL = "inspections.sidestep.dev"
SECRET = "S3CRETtoken"


@pytest.fixture(scope="module", autouse=True)
def resources(product, shop):
    """The definitions; eve may inspect in the shop and reach the daemons, and nothing else."""
    with product.inspection(), product.session_role("sidestep-auditor", AUDITOR, shop.namespace):
        yield
        product.quiet(shop.pods())


@contextlib.contextmanager
def inspecting(cluster, product, shop, name, *options):
    """`sidestep inspect` of the TLS port on the laptop, once it is active."""
    log = product.folder / f"inspect-{name}.log"
    words = [SIDESTEP, "inspect", "orders", "-n", shop.namespace, "-p", "https", "-o", "json", *options]
    command = cluster.command(*words, user=AUDITOR)
    with Process(command, log=log, stdout=log.with_suffix(".jsonl"), patience=10) as process:
        told = lambda: "Ctrl-C" in process.output() or not process.running  # noqa: E731
        until(told, within=40, every=0.2, what=lambda: f"the inspection to begin: {process.text()}")
        assert process.running, process.text()
        yield process


@contextlib.contextmanager
def a_policy(cluster, shop):
    """A policy that blocks /admin."""
    cluster.apply(written.policy(mode="Enforce"), namespace=shop.namespace)
    try:
        written.wait_for(cluster, Accepted="Accepted", Programmed="Programmed")
        yield
    finally:
        cluster.kubectl("delete", "inspectionpolicy", "orders", "-n", shop.namespace)


def records(process, kind):
    """What was printed of a type of records."""
    lines = [json.loads(line) for line in process.output().splitlines() if line.endswith("}")]
    return [each for each in lines if each.get("event_type") == kind]


def test_requests_and_alerts_of_all_pods_are_told_without_secrets(cluster, product, shop):
    with inspecting(cluster, product, shop, "all") as process:
        [found] = cluster.get("inspections", namespace=shop.namespace)
        assert found["spec"]["owner"] == AUDITOR
        columns = cluster.kubectl("get", "inspections", "-n", shop.namespace)
        assert "All" in columns
        for pod in shop.pods():
            header = f"Authorization: Bearer {SECRET}"
            answer = shop.get(pod, f"/find?token={SECRET}", header, options=("--http1.1",))
            assert answer.served_by == "app"
        count = len(shop.pods())
        until(
            lambda: len(records(process, "http")) == count, within=20, every=0.2, what=lambda: process.output()[-3000:]
        )
        told = records(process, "http")
        assert {each["http"]["url"] for each in told} == {"/find?token=[redacted]"}
        assert {each["http"]["status"] for each in told} == {200}
        assert {each["kubernetes"]["pod"] for each in told} == {pod.name for pod in shop.pods()}
        with a_policy(cluster, shop):
            assert shop.get(shop.pods()[0], "/admin", options=("--http1.1",)).status == 403
            until(lambda: records(process, "alert"), within=20, every=0.2, what=lambda: process.output()[-3000:])
            [alert] = records(process, "alert")
            assert (alert["alert"]["action"], alert["sidestep"]["rule"]) == ("blocked", "no-admin")
        process.signal(signal.SIGINT)
        assert process.wait(20) == 0, process.text()
        assert SECRET not in process.output()
    assert cluster.get("inspections", namespace=shop.namespace) == []


def test_the_exception_from_an_alert_is_found_by_its_id_alone(cluster, product, shop):
    with a_policy(cluster, shop):
        words = ("-n", shop.namespace)
        for pod in shop.pods():
            refused = shop.get(pod, f"/admin/users?token={SECRET}", options=("--http1.1",))
            assert refused.status == 403
            done = product.run("policy", "except", refused.text.strip(), *words, user=AUDITOR, within=60)
            assert done.code == 0, done
            assert "shop/orders: no-admin" in done.stdout
            assert SECRET not in done.stdout
            [change] = yaml.safe_load_all(done.stdout)
            [rule] = change["spec"]["rules"]
            assert rule["except"]["paths"] == [{"match": "Equal", "value": "/admin/users"}]
        absent = product.run("policy", "except", "00000000-1", *words, user=AUDITOR, within=60)
        assert absent.code == 1
        assert "none of the last alerts of the workloads with policies" in absent.stderr
        denied = product.run("policy", "except", refused.text.strip(), *words, user=DEVELOPER, within=60)
        assert denied.code == 1
        assert SECRET not in denied.stdout + denied.stderr
        assert "no-admin" not in denied.stdout
    assert cluster.get("inspections", namespace=shop.namespace) == []
    product.quiet(shop.pods())


def test_who_lacks_the_role_is_told_verb_and_role(cluster, product, shop):
    refused = product.run("inspect", "orders", "-n", shop.namespace, "-p", "https", user=DEVELOPER, within=40)
    assert refused.code == 1
    assert f"you may not create {PLURAL} in namespace {shop.namespace}" in refused.error
    assert f"--clusterrole=sidestep-auditor --user={DEVELOPER}" in refused.error


def test_who_may_what(cluster, shop):
    def may(user, verb, resource, *more):
        answer = cluster.kubectl_result("auth", "can-i", verb, resource, *more, "--as", user)
        return answer.stdout.strip() == "yes"

    here = ("-n", shop.namespace)
    for verb in ("create", "get", "list", "watch", "patch", "delete"):
        assert may(AUDITOR, verb, PLURAL, *here)
        assert not may(AUDITOR, verb, PLURAL, "-n", "default")
        assert not may(DEVELOPER, verb, PLURAL, *here)
    for plural in ("intercepts", "wiretaps", "captures", "inspectionpolicies"):
        assert not may(AUDITOR, "create", f"{plural}.sidestep.dev", *here)
    assert may(AUDITOR, "list", "inspectionpolicies.sidestep.dev", *here)
    for user in (AUDITOR, DEVELOPER):
        assert not may(user, "patch", PLURAL, "--subresource=status", *here)


def test_it_ends_by_leave(cluster, product, shop):
    with inspecting(cluster, product, shop, "left", "--alerts") as process:
        [found] = cluster.get("inspections", namespace=shop.namespace)
        assert found["spec"]["records"] == "Alerts"
        done = product.run("leave", found["metadata"]["name"], "-n", shop.namespace, user=AUDITOR)
        assert done.code == 0, done.error
        assert process.wait(20) == 0, process.text()
        assert "somebody deleted it" in process.output()
    product.quiet(shop.pods())


@pytest.mark.parametrize("spec", [{"records": "Bodies"}, {"alert": "last"}, {"port": None}, {"session": {}}])
def test_the_api_server_refuses_what_it_can_judge(cluster, shop, spec):
    document = {
        "apiVersion": "sidestep.dev/v1alpha1",
        "kind": "Inspection",
        "metadata": {"name": "bad"},
        "spec": {"workload": "orders", "port": "https", "session": {"publicKey": "A" * 43 + "="}, **spec},
    }
    words = ("create", "-f", "-", "-n", shop.namespace)
    refused = cluster.kubectl_result(*words, user=AUDITOR, stdin=json.dumps(document))
    assert refused.code != 0, refused
