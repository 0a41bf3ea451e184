"""A daemon of a cluster and the command line as processes, with an API server that both, or one, reach by a proxy."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path

import pytest

from sidestep.config.node_options import DEFAULT_TUNNEL_PORT
from tests.harness import cluster, manifests
from tests.harness.authority import Authority
from tests.harness.cli import Intercept
from tests.harness.connect_proxy import ConnectProxy
from tests.harness.namespaces import PodNamespace, pod_namespace
from tests.harness.nginx import client_context
from tests.harness.peers import Client, Server, http_app, server_context
from tests.harness.processes import Process, descendants
from tests.harness.waiting import until
from tests.harness.warm import SIDESTEP

pytestmark = pytest.mark.timeout(600)  # others may have a daemon of a cluster first

HOST = "orders.shop.test"
PLAIN_PORT, TLS_PORT = 8080, 8443
DEV = "x-dev: ada"
TARGET = f"{cluster.NAME}:6443"
SERVICE = f"{cluster.ADDRESS}:443"
CREDENTIALS = "Basic " + base64.b64encode(b"ada:p@ss").decode()
WITHIN = 30.0


@dataclass
class Scene:
    """An API server, a proxy that leads to it by two names, and one pod with an app; no daemon yet."""

    folder: Path
    server: cluster.ApiServer
    proxy: ConnectProxy
    space: PodNamespace
    handler: Server
    authority: Authority

    def url(self, user="ada:p%40ss@"):
        """The proxy's URL, with credentials."""
        return self.proxy.url.replace("://", f"://{user}")

    def served_by(self, *, port=PLAIN_PORT):
        """Who answers a request that the intercept matches."""
        tls = client_context(self.authority.pem) if port == TLS_PORT else None
        client = Client(self.space.ip, port, netns=self.space.client, tls=tls, server_name=HOST if tls else None)
        with client:
            return client.get("/", DEV).header("x-served-by")


@pytest.fixture
def scene(tmp_path):
    authority = Authority("Shop")
    own, app = authority.issue(HOST), authority.issue(HOST)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(cluster.api_server(tmp_path / "api"))
        address = ("127.0.0.1", server.api.port)
        proxy = ConnectProxy({TARGET: address, SERVICE: address}, authorization=CREDENTIALS)
        server.do(proxy.__aenter__())
        stack.callback(lambda: server.do(proxy.__aexit__()))
        space = stack.enter_context(pod_namespace(ipv6=False))
        for port, tls in ((PLAIN_PORT, None), (TLS_PORT, server_context(app, alpn=()))):
            stack.enter_context(Server(http_app, netns=space.pod, address=space.ip, port=port, tls=tls))
        handler = stack.enter_context(Server(http_app, name="handler"))
        identity = stack.enter_context(cluster.residents({"orders-1": space.pod}))["orders-1"]
        ports = [manifests.container_port(PLAIN_PORT, "http"), manifests.container_port(TLS_PORT, "https")]
        annotations = {f"telepresence.io/downstream-tls-secret.{TLS_PORT}": "orders-tls"}
        pod = cluster.pod("orders-1", identity, space.ips, ports, annotations=annotations)
        server.put(pod, manifests.secret("orders-tls", own.secret()))
        yield Scene(tmp_path, server, proxy, space, handler, authority)


@contextlib.contextmanager
def intercepted(scene, *words, kubeconfig, port=PLAIN_PORT, **environment):
    """`sidestep intercept` of the pod, active; each variable replaces one of this process's."""
    command = [SIDESTEP, "intercept", "pod/orders-1", "--port", f"{scene.handler.port}:{port}", "--plaintext"]
    command += ["--http-header", DEV.replace(": ", "="), "--output", "json", "--kubeconfig", str(kubeconfig), *words]
    variables = {name: "" for name in os.environ if name.lower().endswith("_proxy")}
    log, output = scene.folder / "intercept.log", scene.folder / "intercept.jsonl"
    with Process(command, log=log, stdout=output, environment={**variables, **environment}, patience=20) as process:
        running = Intercept(process)
        running.wait_active(within=WITHIN)
        yield running
        assert running.stop() == 0


@pytest.mark.cold
@pytest.mark.parametrize("by", ["HTTPS_PROXY", "proxy-url"])
def test_an_intercept_as_a_command_through_a_proxy(scene, by):
    url = scene.url()
    settings = {"server": f"https://{TARGET}", **({"proxy-url": url} if by == "proxy-url" else {})}
    config = scene.server.kubeconfig(scene.folder / "config", **settings)
    environment = {"HTTPS_PROXY": url} if by == "HTTPS_PROXY" else {}
    with cluster.cluster_node(scene.folder / "node", scene.server):
        assert scene.served_by() == "app"
        with intercepted(scene, kubeconfig=config, **environment) as running:
            assert scene.served_by() == "handler"
            assert any("/portforward?" in request for request in scene.server.api.requests)
            shown = Path(f"/proc/{running.pid}/cmdline").read_bytes() + running.process.text().encode()
            assert b"p@ss" not in shown
            assert b"p%40ss" not in shown
        until(lambda: scene.served_by() == "app", within=WITHIN, what="the app again")
    assert set(scene.proxy.requests) == {f"CONNECT {TARGET} HTTP/1.1"}
    # Resource, watch, renewal and the port-forward: the developer's process has no other way to the API server.
    assert len(scene.proxy.requests) >= 2


def test_an_exec_plugin_while_a_proxy_is_set(scene):
    """The plugin runs on this machine with the variables; what it says is sent through the proxy."""
    seen = scene.folder / "seen"
    plugin = scene.folder / "plugin"
    credential = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"token": "of-the-plugin"},
    }
    plugin.write_text(f"#!/bin/sh\necho \"$HTTPS_PROXY\" >>{seen}\necho '{json.dumps(credential)}'\n")
    plugin.chmod(0o755)
    accepted = []

    def accepts(authorization):
        accepted.append(authorization)
        return authorization in {"Bearer of-the-plugin", "Bearer the daemon's"}

    scene.server.api.accepts = accepts
    user = {"exec": {"apiVersion": credential["apiVersion"], "command": str(plugin), "interactiveMode": "Never"}}
    config = scene.server.kubeconfig(scene.folder / "config", user=user, server=f"https://{TARGET}")
    with (
        cluster.cluster_node(scene.folder / "node", scene.server),
        intercepted(scene, kubeconfig=config, HTTPS_PROXY=scene.url()),
    ):
        assert scene.served_by() == "handler"
    assert set(seen.read_text().split()) == {scene.url()}
    assert set(accepted) == {"Bearer of-the-plugin", "Bearer the daemon's"}
    assert set(scene.proxy.requests) == {f"CONNECT {TARGET} HTTP/1.1"}


def test_a_daemon_behind_a_proxy_reads_secrets_through_it(scene):
    """Everything that the daemon has of the API server, keys included, which the reader's one-shot child gets."""
    config = scene.server.kubeconfig(scene.folder / "config")
    address = (cluster.ADDRESS, 443)
    with cluster.cluster_node(scene.folder / "node", scene.server, address=address, start=False) as daemon:
        daemon.environment["HTTPS_PROXY"] = scene.url()
        daemon.start()
        with intercepted(scene, kubeconfig=config, port=TLS_PORT):
            assert scene.served_by(port=TLS_PORT) == "handler"
        reading = "GET /api/v1/namespaces/shop/secrets/orders-tls"
        assert reading in scene.server.api.requests
        assert set(scene.proxy.requests) == {f"CONNECT {SERVICE} HTTP/1.1"}
        secrets = ("p@ss", "p%40ss", CREDENTIALS.split()[1])
        shown = daemon.log() + str(daemon.status())
        for pid in [daemon.pid, *descendants(daemon.pid)]:
            shown += Path(f"/proc/{pid}/cmdline").read_text() + Path(f"/proc/{pid}/comm").read_text()
        assert not [secret for secret in secrets if secret in shown]


def test_the_program_is_compiled_while_the_api_server_does_not_answer(scene):
    """The daemon needs both; neither waits for the other."""
    scene.server.do(scene.server.api.stop())
    with cluster.cluster_node(scene.folder / "node", scene.server, start=False) as daemon:
        daemon.wait_turn()
        log = scene.folder / "node.log"
        daemon.process = Process(daemon.command(), log=log, environment=daemon.environment, patience=20)

        def compiling():
            assert daemon.process.running, daemon.process.text()
            with contextlib.suppress(OSError):
                lines = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in descendants(daemon.pid)]
                return any(b"sidestep.steering.compiler_child" in line for line in lines)
            return False

        until(compiling, within=WITHIN, what="the compiler")
        scene.server.do(scene.server.api.start())
        until(lambda: daemon.status() is not None, within=WITHIN, what="the daemon to answer")


def test_a_compiler_that_fails_is_told_while_the_api_server_does_not_answer(scene):
    scene.server.do(scene.server.api.stop())
    with cluster.cluster_node(scene.folder / "node", scene.server, start=False) as daemon:
        # The compiler runs its own interpreter's path; without a bcc that can be imported it says so.
        nowhere = scene.folder / "nowhere"
        (nowhere / "bcc").mkdir(parents=True)
        (nowhere / "bcc" / "__init__.py").write_text("raise ImportError('broken')\n")
        log = scene.folder / "node.log"
        environment = {**daemon.environment, "PYTHONPATH": str(nowhere)}
        daemon.process = Process(daemon.command(), log=log, environment=environment, patience=20)
        assert daemon.process.wait(WITHIN) == 1
        last = daemon.process.text().splitlines()[-1]
        assert last.startswith("sidestep: ")
        assert "bcc" in last


def test_a_port_that_is_taken_is_told_as_such(scene):
    with cluster.cluster_node(scene.folder / "node", scene.server, start=False) as daemon:
        daemon.wait_turn()
        log = scene.folder / "node.log"
        address = f"127.0.0.1:{DEFAULT_TUNNEL_PORT}"
        with socket.create_server(("127.0.0.1", DEFAULT_TUNNEL_PORT)):
            daemon.process = Process(daemon.command(), log=log, environment=daemon.variables(), patience=20)
            assert daemon.process.wait(WITHIN) == 1
        last = daemon.process.text().splitlines()[-1]
        assert last.startswith(f"sidestep: bind while listening on {address}: Address already in use (")
        assert "is there another daemon in this network namespace?" in last
