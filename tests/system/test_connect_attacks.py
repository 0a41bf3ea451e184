"""Accesses of a node where a pod's proxy was taken over: what it may say of its own pod, it can say of no other."""

from __future__ import annotations

import sys
import threading

import pytest

from tests.harness import manifests
from tests.harness.hostile_proxy import ATTACKS, BASE, connections
from tests.harness.namespaces import pod_namespace
from tests.harness.peers import Server, http_app
from tests.harness.pod_world import connect, curl, orders

pytestmark = pytest.mark.long

SILENT = 9999
ATTACK = next(number for number, attack in ATTACKS.items() if attack is connections)


@pytest.fixture
def taken(tmp_path):
    """The honest pod `orders`, and the pod `evil` beside it, whose proxy is the attacker's; and their daemon."""
    with orders(tmp_path) as (space, daemon), pod_namespace(ipv6=False) as evil:
        evil.pod.run("ip", "address", "add", f"{BASE}{ATTACK}/32", "dev", "lo")
        daemon.stop()
        daemon.write("evil.yaml", manifests.pod("evil", evil, ports=[manifests.container_port(8080, "http")]))
        daemon.prefix = (sys.executable, "-m", "tests.harness.hostile_node", str(tmp_path / "port"))
        daemon.start()
        yield space, daemon


def test_a_proxy_that_was_taken_over_has_its_own_pods_connections_and_no_others(taken, tmp_path):
    space, daemon = taken
    drop = f"chain out {{ type filter hook output priority 0; policy accept; tcp dport {SILENT} drop; }}"
    space.pod.run("nft", f"table inet of_the_test {{\n{drop}\n}}")
    with (
        Server(http_app, name="db", netns=space.client, address=space.client_ip) as server,
        connect(daemon, tmp_path) as honest,
        connect(daemon, tmp_path, workload="evil") as asking,
        connect(daemon, tmp_path, workload="evil") as idle,
    ):
        url, before = f"http://{space.client_ip}:{server.port}/", idle.said
        # It says that this is connected, and the number of a connection that the honest pod's proxy still makes, too.
        assert curl(asking.urls["HTTP_PROXY"], url, "--max-time", "2")[1] != "db\n"
        answers = []
        silent = f"http://{space.client_ip}:{SILENT}/"
        waiting = threading.Thread(target=lambda: answers.append(curl(honest.urls["HTTP_PROXY"], silent)))
        waiting.start()
        try:
            for _ in range(5):
                assert curl(honest.urls["HTTP_PROXY"], url)[:2] == (0, "db\n")
            assert server.connections, "made by the honest pod"
            made = len(server.connections)
            assert idle.said == before, "who asks for nothing gets nothing"
            assert curl(idle.urls["HTTP_PROXY"], url, "--max-time", "2")[1] != "db\n"
            assert len(server.connections) == made, "and what a session asked for is its own"
        finally:
            waiting.join(60)
        [(_, body, _)] = answers
        assert f"{space.client_ip}:{SILENT} did not answer within the time" in body
        assert len(daemon.status()["pods"]) == 2
        for each in (honest, asking, idle):
            assert each.process.running
            assert "Traceback" not in each.said
