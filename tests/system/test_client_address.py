"""The app sees its client's own address, with cgroup v2; without, `status` says that it does not."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sidestep.steering.layout import PEERNAME_SOURCE
from tests.harness import cgroups
from tests.harness.namespaces import run
from tests.harness.peers import RESET, Server, answer
from tests.harness.processes import child
from tests.harness.scene import DEV, PLAIN_PORT, TLS_PORT, shop, shop_nginx
from tests.harness.waiting import until

pytestmark = pytest.mark.privileged

WITHIN = 30.0
"""Seconds on a busy machine: each look prints the whole map."""


@contextlib.contextmanager
def named_shop(folder):
    """The scene with nginx inside a cgroup that the pod names."""
    with (
        cgroups.cgroup() as group,
        shop(folder, annotations={"sidestep.dev/cgroup": str(group)}) as scene,
        shop_nginx(scene, cgroup=group) as app,
    ):
        yield scene, app


def last_client(app, count):
    until(lambda: len(app.requests()) >= count, within=WITHIN, what="the access log")
    return app.requests()[-1]["client"]


def test_nginx_logs_the_clients_own_address(tmp_path):
    with named_shop(tmp_path / "scene") as (scene, app):
        ip, ip6 = scene.space.client_ip, scene.space.client_ip6
        with scene.intercept(), scene.intercept(port=PLAIN_PORT, plaintext=True):
            assert scene.node.status()["pods"][0]["client_addresses"] == "on"
            count = 0
            for port in (TLS_PORT, PLAIN_PORT):
                for address, client in ((scene.space.ip, ip), (scene.space.ip6, ip6)):
                    assert scene.get(port=port, address=address).served_by == "app"
                    count += 1
                    assert last_client(app, count) == client
            assert scene.get("/", DEV).served_by == "handler"


def test_nginx_logs_it_for_http2_and_for_raw_connections_too(tmp_path):
    with (
        cgroups.cgroup() as group,
        shop(tmp_path / "scene", annotations={"sidestep.dev/cgroup": str(group)}) as scene,
        shop_nginx(scene, cgroup=group, http2=True) as app,
        scene.intercept(),
        scene.intercept(port=PLAIN_PORT, plaintext=True),
    ):
        count = 0
        for address, wanted in ((scene.space.ip, scene.space.client_ip), (scene.space.ip6, scene.space.client_ip6)):
            assert scene.get(address=address, options=["--http2"]).served_by == "app"
            count += 1
            assert last_client(app, count) == wanted
            with scene.client(port=PLAIN_PORT, address=address) as client:
                client.send(b"\r\nGET /raw HTTP/1.1\r\nHost: a\r\n\r\n")  # no proxy takes this for HTTP
                count += 1
                assert last_client(app, count) == wanted
                assert app.requests()[-1]["uri"] == "/raw"


KEY_SIZE = PEERNAME_SOURCE.maps[0].key_size


def names(scene):
    """How many connections are named now: what is in the daemon's map, but for its entry about the proxy's sources."""
    for path in Path(f"/proc/{scene.node.pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):  # descriptors come and go
            text = path.read_text()
            if f"key_size:\t{KEY_SIZE}\n" in text:  # no other map has keys of this size
                number = text.split("map_id:")[1].split()[0]
                return len(json.loads(run("bpftool", "-j", "map", "dump", "id", number))) - 1
    raise AssertionError("the daemon holds no map of names")


def test_names_end_with_their_connections(tmp_path):
    """Also with one that is over before its client's: the next one might be a stranger's."""
    closing = threading.Event()

    def once(server, connection):
        answer(server, connection, connection.reader.message())
        closing.wait(30)

    with cgroups.cgroup() as group, shop(tmp_path, annotations={"sidestep.dev/cgroup": str(group)}) as scene:
        handler = scene.plain_handler
        with (
            Server(once, netns=scene.space.pod, address=scene.space.ip6, port=PLAIN_PORT) as app,
            scene.intercept(port=PLAIN_PORT, plaintext=True),
        ):
            with scene.client(port=PLAIN_PORT, address=scene.space.ip6) as client:
                assert client.get("/").header("x-served-by") == "app"
                assert names(scene) == 1
                client.send(f"GET /hold HTTP/1.1\r\nHost: a\r\n{DEV}\r\n\r\n".encode())
                assert handler.holding.acquire(timeout=10)
                closing.set()
                until(lambda: names(scene) == 0, within=WITHIN, what="the name of the app's connection to be forgotten")
                handler.release.set()
                assert client.reader.message(answers="GET").header("x-served-by") == "handler"
                assert client.get("/").header("x-served-by") == "app"
                assert len(app.connections) == 2
            until(lambda: names(scene) == 0, within=WITHIN, what="all names to be forgotten")


LATE = """
import json, socket, sys
listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("listening", flush=True)
sys.stdin.readline()
sock, address = listener.accept()
print(json.dumps([address[0], sock.recv(100).decode()]), flush=True)
"""


def waiting(netns):
    """For each connection to the port, by a client or by the proxy, whether bytes wait in it."""
    lines = netns.run("ss", "-Htn", "state", "established", f"sport = :{PLAIN_PORT}").splitlines()
    return [int(line.split()[0]) > 0 for line in lines]


def test_a_client_that_leaves_before_the_app_accepts_does_not_pass_for_the_pod_itself(tmp_path):
    """Apps trust loopback, and what was sent before a reset is read and acted upon all the same."""
    with (
        cgroups.cgroup() as group,
        shop(tmp_path, annotations={"sidestep.dev/cgroup": str(group)}) as scene,
        child(
            cgroups.inside(group, scene.space.pod.enter([sys.executable, "-c", LATE, scene.space.ip, str(PLAIN_PORT)])),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as late,
    ):
        assert late.stdout.readline() == "listening\n"
        with scene.intercept(port=PLAIN_PORT, plaintext=True):
            with scene.client(port=PLAIN_PORT) as client:
                client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                # A connection that is reset before its handshake is complete is none that the app could accept.
                queued = "the request to have been read by the proxy and to wait for the app"
                until(lambda: sorted(waiting(scene.space.pod)) == [False, True], within=WITHIN, what=queued)
                assert names(scene) == 1
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            until(lambda: names(scene) == 0, within=WITHIN, what="the proxy to see that the client has left")
            late.stdin.write("\n")
            late.stdin.flush()
            peer, said = json.loads(late.stdout.readline())
        assert said.startswith("GET /")
        assert peer == scene.space.ip


def test_without_a_cgroup_the_app_sees_the_pods_own_address(tmp_path):
    with shop(tmp_path) as scene, shop_nginx(scene) as app, scene.intercept():
        assert scene.get().served_by == "app"
        assert last_client(app, 1) == scene.space.ip
        assert scene.node.status()["pods"][0]["client_addresses"].startswith("off: ")


def test_the_address_is_right_after_the_proxy_was_killed(tmp_path):
    with named_shop(tmp_path / "scene") as (scene, app), scene.intercept():
        before = scene.proxy()
        os.kill(before, signal.SIGKILL)
        scene.node.proxy(scene.space.pod, but=before)
        assert scene.get().served_by == "app"
        assert last_client(app, 1) == scene.space.client_ip


def paused(shop, lines):
    """Seconds that each of several connections takes, the requests one after the other; who served the last."""
    times = []
    for _ in range(6):
        began = time.monotonic()
        with shop.client(port=PLAIN_PORT) as client:
            served_by = client.get("/", *lines).header("x-served-by")
        times.append(time.monotonic() - began)
    return times, served_by


@pytest.mark.alone
@pytest.mark.parametrize("lines", [(), (DEV,)], ids=["no match", "match"])
def test_a_daemon_that_hangs_is_waited_for_once(tmp_path, lines):
    """Stopped, it names no client and opens no way to a handler: the app serves, under the pod's own address."""
    with (
        named_shop(tmp_path / "scene") as (scene, app),
        scene.intercept(port=PLAIN_PORT, plaintext=True),
    ):
        assert scene.get("/", *lines, port=PLAIN_PORT).served_by == ("handler" if lines else "app")
        os.kill(scene.node.pid, signal.SIGSTOP)
        try:
            times, served_by = paused(scene, lines)
        finally:
            os.kill(scene.node.pid, signal.SIGCONT)
        assert served_by == "app"
        assert sorted(times)[-2] < 0.6, times  # a second each without the breaker, fifteen for a match
        assert app.requests()[-1]["client"] == scene.space.ip

        def named_again():
            scene.get("/again", port=PLAIN_PORT)
            return app.requests()[-1]["client"] == scene.space.client_ip

        until(named_again, within=10, what="clients to be named again")
        if lines:
            until(lambda: scene.get("/", DEV, port=PLAIN_PORT).served_by == "handler", within=10, what="the handler")
        until(
            lambda: any(each["counters"].get("clients_unnamed", 0) >= 5 for each in scene.node.status()["pods"]),
            within=10,
            what="the connections to be counted",
        )
