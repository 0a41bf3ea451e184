"""What is remembered about the apps behind a pod's ports: probes, and late requests for client certificates."""

from __future__ import annotations

import pytest

from sidestep.model.pod import Pod, PodKey
from sidestep.node.planning.plan import PortPlan
from sidestep.node.pods import late_client_auth
from sidestep.node.pods.late_client_auth import LateClientAuth
from sidestep.node.pods.probed_apps import ProbedApps
from sidestep.proxy.control.messages import Probed
from sidestep.snapshots.ports import PortSnapshot

SNAPSHOT = PortSnapshot(8443, "tcp", "probe", "probe", (), app="app=1")
PLAN = PortPlan(SNAPSHOT, needs_app=True)


def probed(tls: str, port: int = 8443) -> Probed:
    return Probed(0, port, tls, "no", "", False, b"")


@pytest.mark.parametrize(("tls", "kept"), [("yes", True), ("no", True), ("unknown", False)])
def test_only_definite_findings_are_kept(tls, kept):
    apps = ProbedApps()
    apps.learn(probed(tls), ports={8443})
    assert (apps.get(8443) is not None) is kept


def test_a_finding_about_a_port_that_is_not_served_is_ignored():
    apps = ProbedApps()
    apps.learn(probed("yes"), ports={80})
    assert apps.get(8443) is None


def test_an_indefinite_finding_takes_the_last_one_back():
    apps = ProbedApps()
    apps.learn(probed("yes"), ports={8443})
    apps.learn(probed("unknown"), ports={8443})
    assert apps.get(8443) is None


def test_an_app_that_goes_changes_the_name_of_the_next_one():
    apps = ProbedApps()
    assert apps.snapshot(PLAN) is SNAPSHOT
    assert not apps.gone(8443)
    assert not apps.outdated
    apps.learn(probed("yes"), ports={8443})
    assert apps.gone(8443)
    assert apps.outdated
    assert apps.snapshot(PLAN).app == "app=1/1"


def test_another_app_in_the_plan_forgets_the_finding_without_a_loss():
    apps = ProbedApps()
    apps.learn(probed("yes"), ports={8443})
    apps.forget(8443)
    apps.forget(8443)
    assert apps.get(8443) is None
    assert apps.snapshot(PLAN) is SNAPSHOT


def pod(name: str, uid: str = "1") -> Pod:
    return Pod(PodKey("shop", name), uid)


def test_a_port_that_asks_later_is_remembered_for_this_pod_only():
    asked = LateClientAuth()
    asked.add(pod("orders"), 8443)
    assert asked.snapshot(pod("orders"), SNAPSHOT).late_client_auth
    assert not asked.snapshot(pod("orders", uid="2"), SNAPSHOT).late_client_auth
    assert not asked.snapshot(pod("carts"), SNAPSHOT).late_client_auth


def test_the_pod_that_was_seen_longest_ago_is_forgotten_first(monkeypatch):
    monkeypatch.setattr(late_client_auth, "MAX_PODS", 2)
    asked = LateClientAuth()
    for name in ("a", "b", "a", "c"):
        asked.add(pod(name), 8443)
    assert [asked.snapshot(pod(name), SNAPSHOT).late_client_auth for name in "abc"] == [True, False, True]
