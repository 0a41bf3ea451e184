"""The story of docs/kind.md: a handler on the laptop answers with data that only the cluster has.

The database is Debian's Redis, in another namespace. Debian's dnsmasq, behind kubeadm's Service kube-dns, stands in for
CoreDNS, whose image is not there.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from tests.e2e import images
from tests.e2e import shop as shops
from tests.e2e.cluster import namespaces
from tests.harness.processes import Process
from tests.harness.waiting import until
from tests.harness.warm import SIDESTEP

HERE = Path(__file__).resolve().parent
SPACE, DATA = "story", "data"
PASSWORD = "lamps-and-chairs"
PASSES = {"secretKeyRef": {"name": "db", "key": "password"}}


def one_pod(cluster, namespace, name, labels, *words, env=()):
    container = {
        "name": name,
        "image": images.APP,
        "imagePullPolicy": "Never",
        "command": list(words),
        "env": list(env),
    }
    spec = {"containers": [container], "terminationGracePeriodSeconds": 0}
    metadata = {"name": name, "labels": labels}
    cluster.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}, namespace=namespace)


@pytest.fixture
def world(cluster, product, tmp_path):
    """A database in one namespace, the app in another, and ada's rights there."""
    cluster.apply(*namespaces(SPACE, DATA))
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "db"}, "stringData": {"password": PASSWORD}}
    service = {"selector": {"app": "db"}, "ports": [{"port": 6379}]}
    db = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "db"}, "spec": service}
    cluster.apply(secret, db, namespace=DATA)
    cluster.apply(secret, namespace=SPACE)
    passes = {"name": "DB_PASSWORD", "valueFrom": PASSES}
    redis = ("redis-server", "--protected-mode", "no", "--save", "", "--requirepass", "$(DB_PASSWORD)")
    one_pod(cluster, DATA, "db", {"app": "db"}, *redis, env=[passes])
    address = cluster.get("service", "db", namespace=DATA)["spec"]["clusterIP"]
    names = [f"--address=/db.{DATA}.svc.cluster.local/{address}", "--local=/cluster.local/"]
    dnsmasq = ("dnsmasq", "-k", "-C", "/dev/null", "--no-resolv", "--no-hosts", "--user=root", *names)
    one_pod(cluster, "kube-system", "names", {"k8s-app": "kube-dns"}, *dnsmasq)
    container = shops.pod_spec()["containers"][0]
    # nginx writes over its variables; the shell before it does not.
    container["command"] = ["sh", "-c", "nginx -c /etc/orders/nginx.conf -g 'daemon off;'; exit"]
    container["env"] = [{"name": "DB_HOST", "value": f"db.{DATA}"}, passes]
    shop = shops.open_shop(
        cluster, tmp_path, namespace=SPACE, replicas=2, headless=False, containers=[container], dnsPolicy="ClusterFirst"
    )
    product.grant("ada", SPACE)
    role = ("rolebinding", "sidestep-pod-access-ada")
    cluster.kubectl("create", *role, "--clusterrole=sidestep-pod-access", "--user=ada", "-n", SPACE)
    cluster.wait_pods(DATA, "app=db", 1)
    cluster.wait_pods("kube-system", "k8s-app=kube-dns", 1)
    client = ("exec", "-n", DATA, "db", "--", "sh", "-c", 'redis-cli -a "$DB_PASSWORD" set lamps 12')
    until(lambda: "OK" in cluster.kubectl_result(*client).stdout, within=30, every=0.5, what="the database")
    try:
        yield shop
    finally:
        cluster.kubectl("delete", "pod", "names", "-n", "kube-system", "--wait=false")
        cluster.kubectl("delete", "namespace", SPACE, DATA, "--wait=false")


def test_a_handler_answers_with_what_only_the_cluster_has(cluster, product, world, tmp_path):
    address = cluster.get("service", "orders", namespace=SPACE)["spec"]["clusterIP"]

    def asked(*headers):
        return cluster.curl(f"http://{address}/", headers=headers).text

    words = ["intercept", "deploy/orders", "-n", SPACE, "--port", "8080:http", "--http-header", "x-dev=ada"]
    words += ["--outbound", "--env-file", str(tmp_path / "pod.env"), "--", sys.executable, str(HERE / "story/app.py")]
    with Process(cluster.command(SIDESTEP, *words, user="ada"), log=tmp_path / "story.log", patience=10) as process:
        until(
            lambda: not process.running or "12 lamps" in asked(shops.DEV),
            within=60,
            every=0.5,
            what=lambda: f"the handler: {process.text()}",
        )
        assert process.running, process.text()
        assert {asked(shops.DEV) for _ in range(10)} == {"my version: 12 lamps in stock\n"}
        assert asked().startswith("app orders-")
        assert f"DB_HOST=db.{DATA}\n" in (tmp_path / "pod.env").read_text()
        print(process.text())
        process.signal(signal.SIGINT)
        process.wait(30)
    assert "Traceback" not in process.text()
    for kind in ("intercepts", "podaccesses"):
        assert cluster.get(kind, namespace=SPACE) == []
    product.quiet(world.pods())
    assert asked(shops.DEV).startswith("app orders-")
