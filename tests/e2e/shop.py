"""The app of the tests: Deployment `orders` in namespace `shop`, nginx with TLS and in the clear, three replicas.

    8443  https  TLS by Secret `orders-tls`, of a private authority
    8080  http   plain

It answers `app NAME METHOD TARGET` with `X-Served-By: app` and `X-Pod: NAME`; the handler of the tests answers with
`X-Served-By: handler`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e import images
from tests.e2e.cluster import Cluster, Pod, namespaces
from tests.harness.authority import Authority, Certificate
from tests.harness.curl import Answer

HOST = "orders.shop.test"
TLS_PORT, PLAIN_PORT = 8443, 8080
LISTENERS = frozenset(f"tcp 0.0.0.0:{port}" for port in (TLS_PORT, PLAIN_PORT))
"""What listens in a pod that is left alone."""
LABELS = {"app": "orders"}
SELECTOR = "app=orders"
CERTIFICATE = f"telepresence.io/downstream-tls-secret.{TLS_PORT}"
"""The annotation that names the Secret with the certificate."""
DEV = "x-dev: ada"
"""The header line that the usual intercept matches."""

_SERVER = """
    add_header X-Served-By app always;
    add_header X-Pod $hostname always;
    location / { return 200 "app $hostname $request_method $request_uri\\n"; }
    location = /healthz { return 204; access_log off; }
"""
NGINX = f"""
worker_processes 1;
pid /tmp/nginx.pid;
events {{ worker_connections 1024; }}
http {{
  default_type text/plain;
  keepalive_requests 100000;
  access_log /dev/stdout;
  error_log /dev/stderr;
  server {{ listen {PLAIN_PORT}; {_SERVER} }}
  server {{
    listen {TLS_PORT} ssl http2;
    ssl_certificate /etc/orders-tls/tls.crt;
    ssl_certificate_key /etc/orders-tls/tls.key;
    {_SERVER}
  }}
}}
"""


def secret(name: str, certificate: Certificate) -> dict[str, Any]:
    """A kubernetes.io/tls Secret."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name},
        "type": "kubernetes.io/tls",
        "data": certificate.secret(),
    }


def pod_spec(**more: Any) -> dict[str, Any]:
    """The spec of a pod that runs the app."""
    container = {
        "name": "orders",
        "image": images.APP,
        "imagePullPolicy": "Never",
        "command": ["nginx", "-c", "/etc/orders/nginx.conf", "-g", "daemon off;"],
        "ports": [
            {"name": "https", "containerPort": TLS_PORT},
            {"name": "http", "containerPort": PLAIN_PORT},
        ],
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": "http"}, "periodSeconds": 1},
        "volumeMounts": [
            {"name": "config", "mountPath": "/etc/orders"},
            {"name": "tls", "mountPath": "/etc/orders-tls", "readOnly": True},
        ],
    }
    volumes = [
        {"name": "config", "configMap": {"name": "orders"}},
        {"name": "tls", "secret": {"secretName": "orders-tls"}},
    ]
    return {
        "automountServiceAccountToken": False,
        "dnsPolicy": "Default",
        "terminationGracePeriodSeconds": 1,
        "containers": [container],
        "volumes": volumes,
        **more,
    }


def deployment(*, replicas: int, annotations: Mapping[str, str] | None = None, **more: Any) -> dict[str, Any]:
    """The app as a Deployment; `more` is for the spec of its pods."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "orders", "annotations": dict(annotations or {})},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": LABELS},
            "template": {"metadata": {"labels": LABELS}, "spec": pod_spec(**more)},
        },
    }


def service(*, headless: bool = True) -> dict[str, Any]:
    """Its Service; headless where there is no kube-proxy."""
    ports = [
        {"name": "https", "port": 443, "targetPort": "https"},
        {"name": "http", "port": 80, "targetPort": "http"},
    ]
    spec = {"selector": LABELS, "ports": ports, **({"clusterIP": "None"} if headless else {})}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "orders"}, "spec": spec}


@dataclass
class Shop:
    """The running app."""

    cluster: Cluster
    namespace: str
    authority: Authority
    ca: Path

    def pods(self) -> list[Pod]:
        return self.cluster.pods(self.namespace, SELECTOR)

    def wait(self, replicas: int) -> list[Pod]:
        """Wait for exactly this many ready pods."""
        return self.cluster.wait_pods(self.namespace, SELECTOR, replicas)

    def get(
        self, pod: Pod, path: str = "/", *headers: str, port: int = TLS_PORT, options: tuple[str, ...] = ()
    ) -> Answer:
        """curl one pod from the laptop, by its own address."""
        scheme = "http" if port == PLAIN_PORT else "https"
        url = f"{scheme}://{HOST}:{port}{path}"
        return self.cluster.curl(url, *options, address=pod.ip, ca=self.ca, headers=headers)


def open_shop(
    cluster: Cluster, folder: Path, *, namespace: str = "shop", replicas: int = 3, headless: bool = True, **more: Any
) -> Shop:
    """Deploy the app and wait for it; `more` is for the spec of its pods."""
    authority = Authority("Shop CA")
    ca = folder / f"{namespace}-ca.pem"
    ca.write_bytes(authority.pem)
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "orders"}, "data": {"nginx.conf": NGINX}}
    cluster.apply(*namespaces(namespace))
    cluster.apply(
        config,
        secret("orders-tls", authority.issue(HOST)),
        service(headless=headless),
        deployment(replicas=replicas, annotations={CERTIFICATE: "orders-tls"}, **more),
        namespace=namespace,
    )
    shop = Shop(cluster=cluster, namespace=namespace, authority=authority, ca=ca)
    shop.wait(replicas)
    return shop
