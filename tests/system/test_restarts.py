"""A daemon that is restarted under many sessions, each with a pod of its own, also on a machine that is busy."""

from __future__ import annotations

import pytest

from tests.bench.crowd import computing, crowd
from tests.harness.namespaces import run

COUNT = 60
STEP = 15


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    with crowd(tmp_path_factory.mktemp("restarts"), COUNT) as scene:
        yield scene


def test_the_last_activation_costs_little_more_than_the_first(scene):
    costs = [scene.activate(first, first + STEP)[1] for first in range(0, COUNT, STEP)]
    assert costs[-1] < 2.5 * costs[0], costs


@pytest.mark.parametrize("kill", [True, False], ids=["SIGKILL", "SIGTERM"])
def test_all_sessions_come_back(scene, kill):
    with computing():
        took, _ = scene.restart(kill=kill)
    assert took < 60
    status = scene.daemon.status()
    assert len(status["pods"]) == len(status["intercepts"]) == COUNT
    assert [each for each in status["conditions"] if each["type"] == "ProxyCrashLoop"] == []
    assert sum(status["node"]["loop"]["turns"]) > 0


def test_stalls_are_a_metric(scene):
    text = run("curl", "-s", "--unix-socket", scene.daemon.socket, "http://node/metrics")
    assert 'sidestep_loop_stall_seconds_bucket{le="0.1"}' in text
    assert "sidestep_loop_stall_seconds_sum" in text
