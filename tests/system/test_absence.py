"""The time for which no node daemon runs: the next one says for how long a policy's pods had nobody."""

from __future__ import annotations

import datetime as dt
import time

import pytest

from tests.harness import kernel, scene
from tests.harness.cli import sidestep
from tests.harness.inspection import FILE, POD, is_refusal, policy, rule, wait_programmed
from tests.harness.waiting import until

FAIL = {"failurePolicy": "Fail"}
AWAY = 3.0
"""Seconds for which no daemon runs, at least."""


@pytest.fixture
def shop(tmp_path):
    with scene.shop(tmp_path) as shop, scene.shop_nginx(shop):
        yield shop


def enforce(shop, **spec):
    shop.node.write(FILE, policy(rule(), **spec))
    wait_programmed(shop)
    until(lambda: is_refusal(shop.get("/admin")), within=10, what="the policy to be enforced")


def gaps(shop):
    return [each for each in shop.node.records() if each.get("sidestep", {}).get("reason") == "no-daemon"]


def missed(shop):
    """The seconds that status counts."""
    found = [each for pod in shop.node.status()["pods"] for each in pod["uninspected"] if each["reason"] == "no-daemon"]
    assert all(each["outcome"] == "open" for each in found)
    return sum(each["seconds"] for each in found)


def kept(shop):
    return shop.node.socket.with_suffix(".inspected")


def away(shop, end):
    """No daemon runs for a while; between which times that is at least (seconds since 1970)."""
    seen = kernel.steering(shop.space.pod)
    end()
    until(lambda: shop.get("/admin").status != 403, within=5, what="the app to be reached without the policy")
    began = time.time()
    until(lambda: not seen.left(), within=5, what=lambda: f"nothing of the steering to be left: {seen.left()}")
    until(lambda: time.time() > began + AWAY, within=AWAY + 1, what="some time to pass")
    ended = time.time()
    shop.node.start()
    wait_programmed(shop)
    until(lambda: is_refusal(shop.get("/admin")), within=10, what="the policy to be enforced again")
    return began, ended


@pytest.mark.parametrize("ending", ["SIGKILL", "SIGTERM"])
@pytest.mark.parametrize("spec", [{}, FAIL], ids=["Ignore", "Fail"])
def test_the_gap_stands_in_record_status_and_metrics(shop, ending, spec):
    enforce(shop, **spec)
    until(kept(shop).exists, within=5, what="what is kept for the next daemon")
    assert kept(shop).stat().st_mode & 0o777 == 0o600
    began, ended = away(shop, shop.node.kill if ending == "SIGKILL" else shop.node.stop)
    [gap] = until(lambda: gaps(shop), within=10, what="the record")
    assert gap["event_type"] == "anomaly"
    assert gap["kubernetes"]["namespace"] + "/" + gap["kubernetes"]["pod"] == POD
    told = gap["sidestep"]["gap"]
    assert dt.datetime.fromisoformat(told["start"]).timestamp() <= began
    assert dt.datetime.fromisoformat(told["end"]).timestamp() >= ended
    assert told["ports"] == [scene.PLAIN_PORT, scene.TLS_PORT]
    assert told["seconds"] >= AWAY
    assert missed(shop) == pytest.approx(2 * told["seconds"], abs=0.01)
    [view] = shop.node.status()["policies"]
    assert [(each["reason"], each["pods"]) for each in view["gaps"]] == [("no-daemon", 1)]
    assert view["gaps"][0]["start"] <= began <= ended <= view["gaps"][0]["end"]
    assert "shop/orders: not inspected on 1 pod from 2" in sidestep("status", socket=shop.node.socket).stdout
    assert "no-daemon" in shop.node.log() or "no daemon ran" in shop.node.log()


def test_a_daemon_that_takes_over_leaves_no_gap(shop):
    enforce(shop)
    until(kept(shop).exists, within=5, what="what is kept for the next daemon")
    first = kept(shop).stat().st_ino
    shop.node.upgrade().wait(60)
    until(lambda: kept(shop).stat().st_ino != first, within=10, what="the new daemon to keep its own")
    assert gaps(shop) == []
    assert missed(shop) == 0


def test_without_a_policy_nothing_is_kept(shop):
    enforce(shop)
    until(kept(shop).exists, within=5, what="what is kept for the next daemon")
    (shop.node.manifests / FILE).unlink()
    until(lambda: not kept(shop).exists(), within=40, what="the file to go")


@pytest.mark.parametrize(
    "content", [b"", b"[" * 500_000, b"\xff\0", b'[{"namespace":"../..","name":"%s","uid":"","ports":[]}]']
)
def test_a_daemon_starts_whatever_is_kept_for_it(shop, content):
    enforce(shop)
    until(kept(shop).exists, within=5, what="what is kept for the next daemon")
    shop.node.kill()
    kept(shop).write_bytes(content)
    shop.node.start()
    wait_programmed(shop)
    assert is_refusal(shop.get("/admin"))
    assert gaps(shop) == []
