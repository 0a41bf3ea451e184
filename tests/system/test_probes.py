"""The kubelet's probes judge the app, not somebody's handler."""

from __future__ import annotations

import contextlib
import json
import socket

import pytest
import yaml

from tests.harness import scene
from tests.harness.http1 import Message
from tests.harness.inspection import is_refusal, policies, policy
from tests.harness.namespaces import run
from tests.harness.peers import Server, http_app

PLAIN = {"port": scene.PLAIN_PORT, "plaintext": True}
PROBE = "User-Agent: kube-probe/1.28"
PROBED = {"httpGet": {"port": "http", "path": "/healthz"}}


def node_address():
    """An address of the machine that the daemon runs on."""
    for device in json.loads(run("ip", "-json", "-4", "addr", "show", "scope", "global")):
        for address in device.get("addr_info", ()):
            if "local" in address:
                return address["local"]
    raise AssertionError("this machine has no address")


@pytest.fixture
def shop(tmp_path):
    """The scene, with a readiness probe on the plain port; its client also has an address of the node."""
    with scene.shop(tmp_path, start=False) as shop:
        path = shop.node.manifests / "orders.yaml"
        documents = list(yaml.safe_load_all(path.read_text()))
        for document in documents:
            if document["kind"] == "Pod":
                document["spec"]["containers"][0]["readinessProbe"] = PROBED
        shop.node.write("orders.yaml", *documents)
        shop.space.client.run("ip", "addr", "add", f"{node_address()}/32", "dev", "lo")
        shop.space.pod.run("ip", "route", "add", f"{node_address()}/32", "via", shop.space.client_ip)
        shop.node.start()
        with Server(http_app, netns=shop.space.pod, address="::", port=scene.PLAIN_PORT, dual_stack=True):
            yield shop


def from_the_node(shop, path="/"):
    """Who answers a connection from the node's own address: its name, or else the status of the answer."""

    source = node_address(), 0

    def connect():
        return socket.create_connection((shop.space.ip, scene.PLAIN_PORT), 10, source_address=source)

    with contextlib.closing(shop.space.client.call(connect)) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        data = b""
        while more := sock.recv(65536):
            data += more
    answer = Message(data.partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
    return answer.header("x-served-by") or answer.status


def test_requests_of_probes_are_never_diverted(shop):
    with shop.intercept("--http-path-prefix", "/", **PLAIN):
        assert shop.get("/", port=scene.PLAIN_PORT).served_by == "handler"
        assert shop.get("/", PROBE, port=scene.PLAIN_PORT).served_by == "app"
        with shop.client(port=scene.PLAIN_PORT) as client:
            assert client.get("/").header("x-served-by") == "handler"
            assert client.get("/", PROBE).header("x-served-by") == "app"
            assert client.get("/").header("x-served-by") == "handler"
        assert from_the_node(shop) == "handler"  # it is judged by what it says
        assert "ProbesPassed" not in shop.conditions()


def test_requests_of_probes_are_diverted_on_demand(shop):
    with shop.intercept("--http-path-prefix", "/", "--divert-probes", **PLAIN):
        assert shop.get("/", PROBE, port=scene.PLAIN_PORT).served_by == "handler"


def everything(shop, *options):
    return shop.intercept("--plaintext", *options, port=scene.PLAIN_PORT, handler_port=shop.plain_handler.port)


def test_a_global_intercept_leaves_the_node_s_own_connections_to_the_app(shop):
    with everything(shop) as running:
        assert shop.get("/", port=scene.PLAIN_PORT).served_by == "handler"
        assert from_the_node(shop) == "app"
        text = shop.conditions()
        assert "ProbesPassed" in text
        assert node_address() in text
        assert "source was translated" in text
        assert "ProbesPassed" in str(running.of("state")[-1])
    with everything(shop, "--divert-probes"):
        assert from_the_node(shop) == "handler"
        assert "ProbesPassed" not in shop.conditions()


def test_policies_exempt_probes_by_the_node_s_address_and_the_declared_request(shop):
    with policies(shop, policy({"name": "all", "action": "Block"})):
        assert from_the_node(shop, "/healthz") == "app"
        assert from_the_node(shop, "/healthz?a") == 403
        assert from_the_node(shop, "/") == 403
        for path in ("/healthz", "/"):
            assert is_refusal(shop.get(path, PROBE, port=scene.PLAIN_PORT))
