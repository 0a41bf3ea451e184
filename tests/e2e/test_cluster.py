"""The cluster itself, without Sidestep: what the other tests rely on."""

from __future__ import annotations

from tests.e2e import shop as shops
from tests.harness.waiting import until


def test_pods_serve_tls_and_plain(shop):
    pods = shop.pods()
    assert len(pods) == 3
    assert len({pod.ip for pod in pods}) == 3
    for pod in pods:
        for port in (shops.TLS_PORT, shops.PLAIN_PORT):
            answer = shop.get(pod, "/hello?x=1", port=port)
            assert (answer.status, answer.served_by) == (200, "app"), answer.errors
            assert answer.text == f"app {pod.name} GET /hello?x=1\n"


def test_pods_reach_each_other(cluster, shop):
    here, there, _ = shop.pods()
    said = cluster.exec(here, "curl", "-sS", "--max-time", "10", f"http://{there.ip}:{shops.PLAIN_PORT}/from-a-pod")
    assert said == f"app {there.name} GET /from-a-pod\n"


def test_logs_and_exec(cluster, shop):
    pod = shop.pods()[0]
    shop.get(pod, "/logged")
    until(lambda: "/logged" in cluster.kubectl("logs", "-n", pod.namespace, pod.name), within=10, what="the log line")
    assert cluster.exec(pod, "hostname").strip() == pod.name


def test_port_forward(cluster, shop):
    with cluster.port_forward("deploy/orders", shops.PLAIN_PORT, namespace=shop.namespace) as port:
        assert cluster.curl(f"http://127.0.0.1:{port}/forwarded").served_by == "app"


def test_pods_find_the_api_server(cluster, shop):
    """The address of the `kubernetes` service is served without a kube-proxy."""
    script = "curl -sS -k --max-time 10 https://$KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT/version"
    assert f'"gitVersion": "v{cluster.release.version}"' in cluster.exec(shop.pods()[0], "sh", "-c", script)


def test_a_developer_may_nothing(cluster, shop):
    refused = cluster.kubectl_result("get", "pods", "-n", shop.namespace, user="mallory")
    assert refused.code == 1
    assert 'User "mallory" cannot list resource "pods"' in refused.stderr


def test_the_node_finds_a_pod(cluster, shop):
    """Root's view of a pod, which later tests compare: its processes, its network namespace."""
    pods = shop.pods()
    assert len({cluster.netns_inode(pod) for pod in pods}) == 3
    assert all(len(cluster.processes(pod)) >= 2 for pod in pods)
