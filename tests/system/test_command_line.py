"""What people write wrong at the command line and in manifests, and what they read then: one line that is right."""

from __future__ import annotations

import json
import os
import signal
import subprocess

import pytest

from tests.harness import kernel, scene
from tests.harness.cli import sidestep
from tests.harness.peers import Server, http_app
from tests.harness.processes import Process
from tests.harness.waiting import until
from tests.harness.warm import SIDESTEP

pytestmark = pytest.mark.cold

ORDERS = ["intercept", "orders", "-n", "shop"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    with scene.shop(tmp_path_factory.mktemp("shop"), ipv6=False) as shop:
        options = {"netns": shop.space.pod, "address": shop.space.ip}
        with Server(http_app, port=scene.PLAIN_PORT, **options):
            yield shop


@pytest.mark.parametrize("path", ["fifo", "/dev/zero", "/dev/tty", "loop", "missing"])
@pytest.mark.parametrize("option", ["--handler-ca", "--kubeconfig"])
def test_a_path_that_leads_to_no_file_is_an_error_at_once(tmp_path, option, path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    result = sidestep(*ORDERS, "--port", "9:http", option, tmp_path / path, within=10)
    assert result.code in (1, 2)
    assert path.rpartition("/")[2] in result.error


def test_a_file_that_a_kubeconfig_names_is_looked_at_first(tmp_path):
    os.mkfifo(tmp_path / "ca.crt")
    config = tmp_path / "config"
    config.write_text("""
apiVersion: v1
kind: Config
current-context: a
clusters: [{name: a, cluster: {server: "https://127.0.0.1:1", certificate-authority: ca.crt}}]
users: [{name: a, user: {token: x}}]
contexts: [{name: a, context: {cluster: a, user: a}}]
""")
    result = sidestep("list", "--kubeconfig", config, within=10)
    assert result.code == 1
    assert "certificate-authority of kubeconfig" in result.error
    assert "is a pipe, not a file" in result.error


@pytest.mark.parametrize(
    ("port", "said"),
    [
        ("9:8080/udp", "no UDP port 8080"),
        ("9:http/udp", "no UDP port 'http'"),
        ("9:9999", "no TCP port 9999"),
        ("9:9999/udp", "no UDP port 9999"),
        ("9:metrics", "no TCP port 'metrics'"),
    ],
)
def test_a_port_that_is_not_there_is_refused_with_those_there_are(shop, port, said):
    result = sidestep(*ORDERS, "--port", port, socket=shop.node.socket, within=10)
    assert result.code == 1
    assert said in result.error
    assert "ports there are: 80 (http) of service orders" in result.error.replace("443 (https) of service orders, ", "")
    assert "8080 (http)" in result.error
    assert not kernel.steering(shop.space.pod).links


def test_a_port_that_nobody_declares_and_an_app_serves_is_one(shop):
    with Server(http_app, netns=shop.space.pod, address=shop.space.ip, port=7070):
        words = ["--port", f"{shop.plain_handler.port}:7070", "--plaintext"]
        with Process([SIDESTEP, *ORDERS, *words, "--socket", shop.node.socket], log=shop.folder / "undeclared") as cli:
            until(lambda: "active" in cli.text(), within=10, what=cli.text)
            cli.signal(signal.SIGINT)
            cli.wait(10)


def test_list_shows_an_intercept_on_its_own_port(shop):
    with shop.intercept("--name", "mine", port=scene.PLAIN_PORT, plaintext=True):
        (found,) = [
            each
            for line in sidestep("list", "-n", "shop", "-o", "json", socket=shop.node.socket).stdout.splitlines()
            if (each := json.loads(line))["name"] == "orders" and each["kind"] == "deployment"
        ]
        assert {port["number"]: port["intercepts"] for port in found["ports"]} == {8080: ["shop/mine"], 8443: []}
        lines = sidestep("list", "-n", "shop", socket=shop.node.socket).stdout.splitlines()
        assert ["intercept/mine" in line for line in lines if "/tcp" in line] == [
            "8080/tcp" in line for line in lines if "/tcp" in line
        ]


def test_a_diverted_request_proves_that_connections_are_seen(shop):
    with shop.intercept("--http-header", "x-dev=ada", port=scene.PLAIN_PORT, plaintext=True):
        assert shop.get("/", scene.DEV, port=scene.PLAIN_PORT).served_by == "handler"
        status = sidestep("status", socket=shop.node.socket).stdout
        assert "no connection seen" not in status
        assert "1 of 1" in status


@pytest.mark.parametrize(
    ("value", "said"),
    [("/etc/../tls", "must not contain '..'"), ("tls", "must be an absolute path"), ("", "is empty")],
)
def test_a_path_annotation_that_cannot_be_used_is_what_the_refusal_names(shop, value, said):
    documents = scene.documents(shop.space, shop.own_certificate)
    (pod,) = [each for each in documents if each["kind"] == "Pod"]
    pod["metadata"]["annotations"].pop(f"telepresence.io/downstream-tls-secret.{scene.TLS_PORT}")
    annotation = f"telepresence.io/downstream-tls-path.{scene.TLS_PORT}"
    pod["metadata"]["annotations"][annotation] = value
    shop.node.write("orders.yaml", *documents)
    try:
        until(lambda: annotation in shop.conditions(), within=10, what=shop.conditions)
        result = sidestep(*ORDERS, "--port", "9:8443", "--http-header", "a=b", socket=shop.node.socket)
        assert result.code == 1
        assert f"annotation {annotation} {value!r}" in result.error
        assert said in result.error
        assert "is configured" not in result.error
    finally:
        shop.node.write("orders.yaml", *scene.documents(shop.space, shop.own_certificate))
        until(lambda: annotation not in shop.conditions(), within=10, what=shop.conditions)


def test_manifests_that_are_no_files_are_reported(shop):
    folder = shop.node.manifests
    os.mkfifo(folder / "pipe.yaml")
    (folder / "loop.yaml").symlink_to(folder / "loop.yaml")
    (folder / "gone.yaml").symlink_to(folder / "nothing")
    (folder / "folder.yaml").mkdir()
    wanted = {
        "pipe.yaml: is a pipe, not a file",
        "loop.yaml: cannot be read: Too many levels of symbolic links",
        "gone.yaml: cannot be read: No such file or directory",
        "folder.yaml: is a folder, not a file",
    }
    try:
        until(lambda: all(each in shop.conditions() for each in wanted), within=10, what=shop.conditions)
    finally:
        for name in ("pipe", "loop", "gone"):
            (folder / f"{name}.yaml").unlink()
        (folder / "folder.yaml").rmdir()
    until(lambda: "ManifestInvalid" not in shop.conditions(), within=10, what=shop.conditions)


def test_a_second_daemon_on_the_same_manifests_is_refused(shop, tmp_path):
    with shop.intercept("--http-header", "x-dev=ada", port=scene.PLAIN_PORT, plaintext=True):
        alias = tmp_path / "alias"
        alias.symlink_to(shop.node.manifests)
        for folder in (shop.node.manifests, alias):
            result = sidestep("node", "--manifests", folder, socket=tmp_path / "run" / "node.sock", within=20)
            assert result.code == 1
            assert f"pid {shop.node.pid}, socket {shop.node.socket}" in result.error
        assert shop.get("/", scene.DEV, port=scene.PLAIN_PORT).served_by == "handler"
    old = shop.node.upgrade()  # on the same socket it takes over, and then the manifests are its own
    assert old.wait(60) == 0
    until(lambda: f"{shop.node.pid}" in holders(shop), within=10, what="the lock to be taken over")
    result = sidestep("node", "--manifests", shop.node.manifests, socket=tmp_path / "run" / "node.sock", within=20)
    assert f"pid {shop.node.pid}," in result.error


def holders(shop):
    inode = f":{shop.node.manifests.stat().st_ino}"
    with open("/proc/locks") as locks:
        return [line.split()[4] for line in locks if line.split()[5].endswith(inode)]


def test_a_daemon_that_cannot_start_says_so_in_one_line(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KUBERNETES_")}
    long = tmp_path / ("x" * 100) / "node.sock"
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    for words, said in (
        ([], "this is no pod of a cluster"),
        (["--manifests", tmp_path / "missing"], "missing"),
        (["--manifests", "x" * 5000], "is not a directory"),
        (["--manifests", tmp_path, "--socket", long], "is too long"),
        (["--manifests", tmp_path, "--socket", tmp_path / "open" / "node.sock"], "others may write there"),
    ):
        done = subprocess.run(
            [SIDESTEP, "node", *map(str, words)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        assert done.returncode == 1
        assert said in done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
        assert not done.stdout
