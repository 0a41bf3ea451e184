"""Who may what: the cluster's RBAC decides, network reach opens nothing, and some pods are nobody's to take."""

from __future__ import annotations

import re
import socket
import ssl
from typing import Any

from tests.e2e import images
from tests.e2e import product as products
from tests.e2e import shop as shops
from tests.e2e.cluster import namespaces
from tests.harness.waiting import until

FILTER = ("--http-header", "x-dev=ada")


def intercept(product, namespace, workload="orders", *, user, port="9:https"):
    """Try an intercept that should be refused."""
    return product.run("intercept", workload, "-n", namespace, "--port", port, *FILTER, user=user)


def test_without_rights(cluster, product, shop):
    """The API server's refusal names the verb and the resource, and says what an administrator can do."""
    refused = intercept(product, shop.namespace, user="mallory")
    assert refused.code == 1
    for word in ("create intercepts.sidestep.dev", "namespace shop", "kubectl create rolebinding", "mallory"):
        assert word in refused.error
    assert not cluster.get("intercepts")


def test_rights_end_at_the_namespace(cluster, product, shop):
    refused = intercept(product, "default", user="ada")
    assert refused.code == 1
    assert "namespace default" in refused.error


def test_without_the_way_to_the_daemons(cluster, product, shop):
    """Whoever may take traffic but lacks the port-forward is told so, and by what command it is given."""
    words = ["--clusterrole=sidestep-developer", "--user=eve", "-n", shop.namespace]
    cluster.kubectl("create", "rolebinding", "developer-eve", *words)
    refused = intercept(product, shop.namespace, user="eve")
    assert refused.code == 1
    for word in ("pods/portforward", f"namespace {products.NAMESPACE}", "--role=sidestep-tunnel", "--user=eve"):
        assert word in refused.error
    assert not cluster.get("intercepts")


def test_secrets_are_not_granted(cluster, product, shop):
    """Nobody lets the daemons read this namespace's Secrets: refused, and the command that allows it works."""
    cluster.apply(*namespaces("vault"))
    words = ["--clusterrole=sidestep-developer", "--user=ada", "-n", "vault"]
    cluster.kubectl("create", "rolebinding", "sidestep-ada", *words)
    config = cluster.get("configmap", "orders", namespace=shop.namespace)["data"]
    cluster.apply(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "orders"}, "data": config},
        shops.secret("orders-tls", shop.authority.issue(shops.HOST)),
        shops.deployment(replicas=1, annotations={shops.CERTIFICATE: "orders-tls"}),
        namespace="vault",
    )
    try:
        [pod] = cluster.wait_pods("vault", shops.SELECTOR, 1)
        refused = intercept(product, "vault", user="ada")
        assert refused.code == 1, refused
        command = re.search(r"kubectl (create rolebinding sidestep-secrets .* -n vault)", refused.error)
        assert command, refused.error
        cluster.kubectl(*command[1].split())
        words = ["intercept", "orders", "-n", "vault", "--port", "9:https", *FILTER, "--", "true"]
        until(lambda: product.run(*words).code == 0, within=30, every=1, what="the right to be noticed")
        with (
            product.handler() as handler,
            product.intercept("orders", *FILTER, port=f"{handler}:https", pods=1, namespace="vault"),
        ):
            assert shop.get(pod, "/", shops.DEV).served_by == "handler"
    finally:
        cluster.kubectl("delete", "namespace", "vault", "--wait=false")


def test_a_tunnel_without_a_key(cluster, product, shop):
    """Whoever has the port-forward right alone reaches a TLS port that serves nobody it does not know."""
    words = ["--role=sidestep-tunnel", "--user=mallory", "-n", products.NAMESPACE]
    cluster.kubectl("create", "rolebinding", "tunnel-mallory", *words)
    daemon = product.daemon()
    with (
        product.handler() as handler,
        product.intercept("orders", *FILTER, "--name", "adas", port=f"{handler}:https", pods=3) as session,
    ):
        entry = next(iter(cluster.get("intercept", "adas", namespace=shop.namespace)["status"]["nodes"].values()))
        port = entry["daemon"]["port"]
        target = f"pod/{daemon.name}"
        with cluster.port_forward(target, port, namespace=products.NAMESPACE, user="mallory") as local:
            heard = cluster.node.laptop.call(lambda: greet(local))
        # HTTP/2 frames of the daemon's own greeting at most: never a request of somebody's traffic, then the end.
        assert b"x-dev" not in heard
        assert b"GET" not in heard
        pod = shop.pods()[0]
        assert shop.get(pod, "/", shops.DEV).served_by == "handler"
        assert session.process.running


def greet(port):
    """Speak TLS to the tunnel's port without a proof; everything it says until it hangs up."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    heard = b""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as raw:
        try:
            with context.wrap_socket(raw, server_hostname="daemon") as sock:
                sock.sendall(b"\0\0\0\4\0\0\0\0\0")
                while data := sock.recv(65536):
                    heard += data
        except OSError:
            pass  # hanging up rudely is hanging up
    return heard


def test_the_tunnel_listens_on_loopback_only(cluster, product, shop):
    """From the pods' network it cannot be reached at all."""
    daemon = product.daemon()
    from_pod = ["curl", "-sk", "--max-time", "5", "-o", "/dev/null", "-w", "%{exitcode}", f"https://{daemon.ip}:7443/"]
    answer = cluster.kubectl_result("exec", "-n", shop.namespace, shop.pods()[0].name, "--", *from_pod)
    assert answer.stdout == "7", answer  # refused
    assert cluster.curl(f"https://{daemon.ip}:7443/", "-k").code == 7


def test_a_pod_in_the_nodes_network(cluster, product, shop):
    """It shares the node's addresses with everybody: refused, and said so."""
    spec = shops.pod_spec(hostNetwork=True)
    spec["containers"][0].pop("readinessProbe")
    pod: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "host", "labels": {"app": "host"}},
        "spec": spec,
    }
    pod["metadata"]["annotations"] = {shops.CERTIFICATE: "orders-tls"}
    cluster.apply(pod, namespace=shop.namespace)
    try:
        cluster.wait_pods(shop.namespace, "app=host", 1)
        refused = intercept(product, shop.namespace, "pod/host", user="ada")
        assert refused.code == 1, refused
        assert "host" in refused.error
        assert "network" in refused.error
    finally:
        cluster.kubectl("delete", "pod", "host", "--wait=false", "-n", shop.namespace)


def test_kube_system_is_not_steered(cluster, product, shop):
    """Also for somebody whom RBAC lets."""
    product.grant("ada", "kube-system")
    container = {"name": "web", "image": images.APP, "imagePullPolicy": "Never", "ports": [{"containerPort": 80}]}
    spec = {"containers": [container], "terminationGracePeriodSeconds": 1}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "labels": {"app": "web"}}, "spec": spec}
    cluster.apply(pod, namespace="kube-system")
    try:
        [running] = cluster.wait_pods("kube-system", "app=web", 1)
        refused = intercept(product, "kube-system", "pod/web", user="ada", port="9:80")
        assert refused.code == 1, refused
        assert "kube-system" in refused.error
        assert not product.steering(running).links
    finally:
        cluster.kubectl("delete", "pod", "web", "--wait=false", "-n", "kube-system")


def linked_pod(name, folder):
    """A pod whose folder /leak has links to the files of `folder`, which only exists on the node."""
    links = f"for name in tls.crt tls.key ca.crt; do ln -sfn {folder}/$name /leak/$name; done"
    mount = {"name": "leak", "mountPath": "/leak"}
    maker = {"name": "links", "image": images.APP, "imagePullPolicy": "Never", "command": ["sh", "-c", links]}
    spec = shops.pod_spec(initContainers=[{**maker, "volumeMounts": [mount]}])
    spec["containers"][0]["volumeMounts"].append(mount)
    spec["volumes"].append({"name": "leak", "emptyDir": {}})
    annotations = {f"telepresence.io/downstream-tls-path.{shops.TLS_PORT}": "/leak"}
    metadata = {"name": name, "labels": {"app": "links"}, "annotations": annotations}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def test_links_out_of_a_pod(cluster, product, shop):
    """A pod whose certificate folder points at the node's files gets none of them, on whatever way it tries."""
    host = shop.authority.issue(shops.HOST)
    folder = host.write(cluster.folder / "node-secrets")
    ways = (f"{folder}", f"../../../../../../..{folder}", f"/proc/1/root{folder}", f"/proc/self/root{folder}")
    cluster.apply(*namespaces("links"))
    product.grant("ada", "links")
    config = cluster.get("configmap", "orders", namespace=shop.namespace)["data"]
    cluster.apply(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "orders"}, "data": config},
        shops.secret("orders-tls", shop.authority.issue(shops.HOST)),
        *(linked_pod(f"links-{number}", way) for number, way in enumerate(ways)),
        namespace="links",
    )
    try:
        for running in cluster.wait_pods("links", "app=links", len(ways)):
            refused = intercept(product, "links", f"pod/{running.name}", user="ada")
            assert refused.code == 1, (running.name, refused)
            assert "downstream-tls-path" in refused.error, running.name
            answer = shop.get(running, "/", shops.DEV)
            assert answer.served_by == "app", (running.name, answer.errors)
        assert "PRIVATE" not in product.log()
    finally:
        cluster.kubectl("delete", "namespace", "links", "--wait=false")
