"""The app sees its client's own address, with cgroup v2; without, `status` says that it does not."""

import contextlib
import os
import signal

import pytest

from tests.harness import cgroups
from tests.harness.peers import Server, http_app
from tests.harness.scene import DEV, PLAIN_PORT, TLS_PORT, shop, shop_nginx
from tests.harness.waiting import until

pytestmark = pytest.mark.privileged


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
    until(lambda: len(app.requests()) >= count, within=5, what="the access log")
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


def test_ports_are_the_clients_own_and_end_with_the_connection(tmp_path):
    with cgroups.cgroup() as group, shop(tmp_path, annotations={"sidestep.dev/cgroup": str(group)}) as scene:
        seen = []

        def script(server, connection):
            seen.append(connection.peer)
            http_app(server, connection)

        with Server(script, name="app", netns=scene.space.pod, address=scene.space.ip, port=PLAIN_PORT) as app:
            del app
            with scene.intercept(port=PLAIN_PORT, plaintext=True), scene.client(port=PLAIN_PORT) as client:
                assert client.get().status == 200
            # This process is not in the pod's cgroup: what it sees is the proxy, from a random loopback address.
            assert seen[0][0].startswith("127.")


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
