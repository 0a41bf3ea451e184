"""What clusters have from 1.30 on: native sidecars, user namespaces, resizing in place, pod security."""

from __future__ import annotations

import base64
import contextlib
import json

import pytest
import yaml

from tests.e2e import images, releases
from tests.e2e import product as products
from tests.e2e import shop as shops
from tests.harness.waiting import until

pytestmark = pytest.mark.since(releases.SUPPORTED)

FILTER = ("--http-header", "x-dev=ada")
FROM_FILES = {f"telepresence.io/downstream-tls-path.{shops.TLS_PORT}": "/etc/orders-tls"}
DAYS = 24 * 3600


def pod(name, annotations=None, **spec):
    metadata = {"name": name, "labels": {"app": name}}
    metadata["annotations"] = annotations or {shops.CERTIFICATE: "orders-tls"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": shops.pod_spec(**spec)}


def as_sidecar(document):
    """The pod's server as a native sidecar, which the API lists among the init containers, of one that sleeps."""
    [server] = document["spec"]["containers"]
    document["spec"]["initContainers"] = [{**server, "restartPolicy": "Always"}]
    main = {"name": "main", "image": images.APP, "imagePullPolicy": "Never", "command": ["sleep", "inf"]}
    document["spec"]["containers"] = [main]
    return document


@contextlib.contextmanager
def intercepted(cluster, product, shop, document):
    """The pod while it is intercepted; before and after the body it is seen to divert, and to stop at the end."""
    name = document["metadata"]["name"]
    cluster.apply(document, namespace=shop.namespace)
    try:
        [running] = cluster.wait_pods(shop.namespace, f"app={name}", 1)
        with (
            product.handler() as handler,
            product.intercept(f"pod/{name}", *FILTER, port=f"{handler}:https", pods=1),
        ):
            assert shop.get(running, "/", shops.DEV).served_by == "handler"
            assert shop.get(running, "/").served_by == "app"
            yield running
            assert shop.get(running, "/", shops.DEV).served_by == "handler"
        until(lambda: shop.get(running, "/", shops.DEV).served_by == "app", within=10, what="the app")
    finally:
        cluster.kubectl("delete", "pod", name, "--wait=false", "-n", shop.namespace)


@pytest.mark.parametrize("annotations", [None, FROM_FILES], ids=["secret", "files"])
def test_a_native_sidecar_serves(cluster, product, shop, annotations):
    with intercepted(cluster, product, shop, as_sidecar(pod("side", annotations))):
        pass


@pytest.mark.parametrize("annotations", [None, FROM_FILES], ids=["secret", "files"])
def test_a_pod_with_a_user_namespace(cluster, product, shop, annotations):
    with intercepted(cluster, product, shop, pod("userns", annotations, hostUsers=False)):
        pass


def test_resizing_in_place(cluster, product, shop):
    document = pod("resize")
    [server] = document["spec"]["containers"]
    server["resources"] = {"requests": {"cpu": "20m"}, "limits": {"cpu": "500m"}}
    wanted = {"requests": {"cpu": "30m"}, "limits": {"cpu": "600m"}}
    patch = json.dumps({"spec": {"containers": [{"name": server["name"], "resources": wanted}]}})

    def resized():
        [status] = cluster.get("pod", "resize", namespace=shop.namespace)["status"]["containerStatuses"]
        return status.get("resources", {}).get("limits", {}).get("cpu") == "600m" and status["restartCount"] == 0

    with intercepted(cluster, product, shop, document):
        cluster.kubectl("patch", "pod", "resize", "-n", shop.namespace, "--subresource=resize", "-p", patch)
        until(resized, within=40, every=1, what="the resize")


def test_an_ephemeral_container(cluster, product, shop):
    options = [f"--image={images.APP}", "--image-pull-policy=Never", "--profile=general"]
    with intercepted(cluster, product, shop, pod("plain")):
        cluster.kubectl("debug", "plain", "-n", shop.namespace, *options, "--", "sleep", "20")


def test_the_namespace_needs_its_label(cluster, product):
    """A namespace that enforces the baseline refuses the daemon's pods; the label of the manifest's own admits them."""
    [daemons] = [one for one in products.documents() if one["kind"] == "DaemonSet"]
    labels = {f"pod-security.kubernetes.io/{mode}": "baseline" for mode in ("enforce", "warn")}
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "strict", "labels": labels}})
    template = daemons["spec"]["template"]
    bare = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "bare", **template["metadata"]},
        "spec": {**template["spec"], "serviceAccountName": "default"},
    }
    words = ["apply", "-n", "strict", "--dry-run=server", "-f", "-"]
    refused = cluster.kubectl_result(*words, stdin=yaml.safe_dump(bare))
    assert refused.code != 0
    assert "violates PodSecurity" in refused.stderr
    own = cluster.get("namespace", products.NAMESPACE)["metadata"]["labels"]
    assert own["pod-security.kubernetes.io/enforce"] == "privileged"


def test_no_warnings_on_apply(cluster, product):
    """The API server warns of nothing in the manifest: no deprecated field, no unknown one."""
    text = yaml.safe_dump_all(products.documents())
    again = cluster.kubectl_result("apply", "-f", "-", "--dry-run=server", "--validate=strict", stdin=text)
    assert again.code == 0, again.stderr
    assert "Warning" not in again.stderr


def test_a_bound_token(cluster, product):
    """The daemon's token is bound to its pod and ends within a year, which is what API servers extend it to."""
    daemon = product.daemon()
    script = "cut -d. -f2 /var/run/secrets/kubernetes.io/serviceaccount/token"
    text = cluster.exec(daemon, "sh", "-c", script).strip()
    claims = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    assert claims["kubernetes.io"]["pod"]["name"] == daemon.name
    assert claims["exp"] - claims["iat"] < 400 * DAYS
