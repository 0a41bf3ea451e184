"""The usual scene: pod `orders-1` of deployment `orders` in namespace `shop`, its service, a node daemon, a handler.

    port 8443  https  TLS; the certificate for interception is in Secret `orders-tls`, another leaf than the app's own
    port 8080  http   plain

The app is brought by the test (nginx, or a `Server` of peers); the handler runs in this process's own namespace, as a
developer's does, once with TLS and once without.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.harness import manifests
from tests.harness.authority import Authority, Certificate
from tests.harness.cli import Intercept, intercept
from tests.harness.curl import Answer, curl, curl_in_turn
from tests.harness.namespaces import PodNamespace, pod_namespace
from tests.harness.nginx import Nginx, client_context, nginx
from tests.harness.node import Node, node
from tests.harness.peers import Client, Server, http_app, server_context

HOST = "orders.shop.test"
TLS_PORT, PLAIN_PORT = 8443, 8080
DEV = "x-dev: ada"
"""The header line that the usual intercept matches."""


@dataclass
class Shop:
    """A scene with its daemon running and its pod declared; nothing is intercepted yet."""

    folder: Path
    space: PodNamespace
    node: Node
    authority: Authority
    app_certificate: Certificate
    own_certificate: Certificate
    handler: Server
    plain_handler: Server
    ca: Path

    if TYPE_CHECKING:
        # Fixtures set what the tests of their file share: the app, its certificate, more handlers.
        def __getattr__(self, name: str) -> Any: ...

        def __setattr__(self, name: str, value: Any) -> None: ...

    def get(
        self,
        path: str = "/",
        *headers: str,
        port: int = TLS_PORT,
        address: str | None = None,
        options: Sequence[str | Path] = (),
        within: float = 15.0,
    ) -> Answer:
        """curl one path of the pod."""
        scheme = "http" if port == PLAIN_PORT else "https"
        url = f"{scheme}://{HOST}:{port}{path}"
        address = address or self.space.ip
        return curl(self.space.client, url, *options, address=address, ca=self.ca, headers=headers, within=within)

    def get_in_turn(self, requests: Sequence[Sequence[str]], *, options: Sequence[str | Path] = ()) -> list[Answer]:
        """curl paths of the pod, with header lines each, over one TLS connection."""
        urls = [(f"https://{HOST}:{TLS_PORT}{path}", headers) for path, *headers in requests]
        return curl_in_turn(self.space.client, urls, *options, address=self.space.ip, ca=self.ca)

    def client(
        self, *, port: int = TLS_PORT, address: str | None = None, alpn: Sequence[str] = (), record: bool = True
    ) -> Client:
        """A raw client connection to the pod."""
        tls = client_context(self.authority.pem, alpn=alpn) if port == TLS_PORT else None
        return Client(
            address or self.space.ip,
            port,
            netns=self.space.client,
            tls=tls,
            server_name=HOST if tls else None,
            record=record,
        )

    def app_tls(self, **options: object) -> ssl.SSLContext:
        """A server context with the app's own certificate."""
        return server_context(self.app_certificate, **options)  # type: ignore[arg-type]

    @contextlib.contextmanager
    def intercept(
        self,
        *options: str,
        port: int = TLS_PORT,
        plaintext: bool = False,
        handler_port: int | None = None,
        pods: int | None = 1,
    ) -> Iterator[Intercept]:
        """`sidestep intercept orders` to the TLS handler, or to the plain one. Without options: the usual filter."""
        if handler_port is None:
            handler_port = (self.plain_handler if plaintext else self.handler).port
        words = ["--port", f"{handler_port}:{port}", *(options or ("--http-header", DEV.replace(": ", "=")))]
        if plaintext:
            words.append("--plaintext")
        with intercept(self.node, "orders", *words, pods=pods) as running:
            yield running

    def proxy(self) -> int:
        """The pid of the pod proxy."""
        return self.node.proxy(self.space.pod)

    def conditions(self) -> str:
        """Everything `status` says, as one text to search in."""
        return str(self.node.status())


def documents(
    space: PodNamespace,
    certificate: Certificate,
    *,
    name: str = "orders-1",
    annotations: Mapping[str, str] | None = None,
) -> list[manifests.Document]:
    """The manifests of one pod of the scene, its workload, service and secret."""
    labels = {"app": "orders"}
    replica_set = {**manifests.deployment("orders-5f7", labels=labels), "kind": "ReplicaSet"}
    replica_set["metadata"]["ownerReferences"] = [
        {"apiVersion": "apps/v1", "kind": "Deployment", "name": "orders", "uid": "uid-orders", "controller": True}
    ]
    ports = [manifests.container_port(TLS_PORT, "https"), manifests.container_port(PLAIN_PORT, "http")]
    return [
        manifests.deployment("orders", labels=labels),
        replica_set,
        manifests.pod(
            name,
            space,
            ports=ports,
            labels=labels,
            owner=("ReplicaSet", "orders-5f7"),
            annotations={f"telepresence.io/downstream-tls-secret.{TLS_PORT}": "orders-tls", **(annotations or {})},
        ),
        manifests.service(
            "orders",
            {"name": "https", "port": 443, "targetPort": "https"},
            {"name": "http", "port": 80, "targetPort": "http", "appProtocol": "http"},
            selector=labels,
        ),
        manifests.secret("orders-tls", certificate.secret()),
    ]


@contextlib.contextmanager
def shop(
    folder: Path,
    *,
    ipv6: bool = True,
    kind: str = "ecdsa",
    own_authority: Authority | None = None,
    annotations: Mapping[str, str] | None = None,
    start: bool = True,
) -> Iterator[Shop]:
    """Set the scene. `own_authority` issues Sidestep's certificate (default: the app's); the pod gets `annotations`."""
    folder.mkdir(parents=True, exist_ok=True)
    authority = Authority()
    app_certificate = authority.issue(HOST, kind=kind)
    own_certificate = (own_authority or authority).issue(HOST, kind=kind)
    ca = folder / "ca.crt"
    ca.write_bytes(authority.pem)
    developer = Authority("Developer").issue("localhost", ips=["127.0.0.1"])
    with contextlib.ExitStack() as stack:
        space = stack.enter_context(pod_namespace(ipv6=ipv6))
        handler = stack.enter_context(Server(http_app, name="handler", tls=server_context(developer)))
        plain_handler = stack.enter_context(Server(http_app, name="handler"))
        daemon = stack.enter_context(node(folder, start=False))
        daemon.write("orders.yaml", *documents(space, own_certificate, annotations=annotations))
        if start:
            daemon.start()
        yield Shop(
            folder=folder,
            space=space,
            node=daemon,
            authority=authority,
            app_certificate=app_certificate,
            own_certificate=own_certificate,
            handler=handler,
            plain_handler=plain_handler,
            ca=ca,
        )


@contextlib.contextmanager
def shop_nginx(
    scene: Shop,
    *,
    protocols: str = "TLSv1.2 TLSv1.3",
    verify_clients: bytes | None = None,
    cgroup: Path | None = None,
    http2: bool = False,
) -> Iterator[Nginx]:
    """nginx as the app of the scene: TLS on 8443 over every address of the pod."""
    hosts = [scene.space.ip] if scene.space.ip6 is None else [scene.space.ip, f"[{scene.space.ip6}]"]
    with nginx(
        scene.space.pod,
        scene.folder / "nginx",
        listen=[f"{host}:{TLS_PORT}" for host in hosts],
        plain=[f"{host}:{PLAIN_PORT}" for host in hosts],
        certificate=scene.app_certificate,
        protocols=protocols,
        verify_clients=verify_clients,
        cgroup=cgroup,
        http2=http2,
    ) as app:
        yield app
