"""The main job: matching requests go to the handler, all others to the app, whatever the app looks like."""

from __future__ import annotations

import time

import pytest

from tests.harness import kernel, scene
from tests.harness.authority import Authority
from tests.harness.cli import intercept, sidestep
from tests.harness.namespaces import pod_namespace
from tests.harness.nginx import nginx
from tests.harness.peers import Server, http_app
from tests.harness.waiting import until

ON_EACH_KERNEL = pytest.mark.kernels


@pytest.mark.parametrize(
    ("kind", "protocol"),
    [
        pytest.param("rsa", "TLSv1.2", marks=ON_EACH_KERNEL),
        ("ecdsa", "TLSv1.2"),
        ("rsa", "TLSv1.3"),
        pytest.param("ecdsa", "TLSv1.3", marks=ON_EACH_KERNEL),
    ],
)
def test_nginx_of_one_tls_version(tmp_path, kind, protocol):
    with scene.shop(tmp_path, kind=kind) as shop, scene.shop_nginx(shop, protocols=protocol) as app, shop.intercept():
        pid = app.pid
        for address in shop.space.ips:
            for headers, side in (((), "app"), ((scene.DEV,), "handler"), (("x-dev: eve",), "app")):
                answer = shop.get("/", *headers, address=address)
                assert (answer.code, answer.status, answer.served_by) == (0, 200, side), answer.errors
        assert until(app.requests, within=5, what="the access log")[0]["tls"] == protocol
        assert app.requests()[0]["sni"] == scene.HOST
        assert app.pid == pid


@pytest.mark.parametrize(
    ("filters", "matching", "other"),
    [
        pytest.param(
            ["--http-header", "X-Dev=ada"],
            [["x-dev: ada"], ["X-DEV: eve", "X-Dev: ada"]],
            [["x-dev: ada2"], []],
            marks=ON_EACH_KERNEL,
        ),
        (["--http-header", "x-dev=~^a.a$"], [["x-dev: ada"], ["x-dev: ava"]], [["x-dev: nada"]]),
        (["--http-header", "x-dev"], [["x-dev: anything"]], [["x-developer: ada"]]),
        (["--http-header", f"host={scene.HOST}:8443"], [[]], [["host: other.test"]]),
        (
            ["--http-header", "x-dev=ada", "--http-header", "x-team=~red|blue"],
            [["x-dev: ada", "x-team: dark red"]],
            [["x-dev: ada"], ["x-team: red"]],
        ),
    ],
)
def test_header_filters(nginx_shop, filters, matching, other):
    with nginx_shop.intercept(*filters):
        for headers in matching:
            assert nginx_shop.get("/", *headers).served_by == "handler", headers
        for headers in other:
            assert nginx_shop.get("/", *headers).served_by == "app", headers


@pytest.mark.parametrize(
    ("filters", "matching", "other"),
    [
        (["--http-path-equal", "/a"], ["/a", "/a?q=1"], ["/a/", "/A", "/"]),
        (["--http-path-prefix", "/api/"], ["/api/", "/api/x?y"], ["/api", "/v1/api/"]),
        (["--http-path-regex", "^/v[0-9]+/"], ["/v1/", "/v22/x"], ["/va/", "/x/v1/"]),
        pytest.param(
            ["--http-path-equal", "/a", "--http-path-prefix", "/b"], ["/a", "/bc"], ["/c"], marks=ON_EACH_KERNEL
        ),
    ],
)
def test_path_filters(nginx_shop, filters, matching, other):
    with nginx_shop.intercept(*filters):
        for path in matching:
            assert nginx_shop.get(path).served_by == "handler", path
        for path in other:
            assert nginx_shop.get(path).served_by == "app", path


def test_method_and_header_filters_are_both_required(nginx_shop):
    with nginx_shop.intercept("--http-method", "POST", "--http-header", "x-dev=ada"):
        post = ["-d", "body"]
        assert nginx_shop.get("/", scene.DEV, options=post).served_by == "handler"
        assert nginx_shop.get("/", options=post).served_by == "app"
        assert nginx_shop.get("/", scene.DEV).served_by == "app"


@ON_EACH_KERNEL
def test_plain_http_on_both_sides(nginx_shop):
    with nginx_shop.intercept(port=scene.PLAIN_PORT, plaintext=True):
        for address in nginx_shop.space.ips:
            assert nginx_shop.get("/", port=scene.PLAIN_PORT, address=address).served_by == "app"
            assert nginx_shop.get("/", scene.DEV, port=scene.PLAIN_PORT, address=address).served_by == "handler"


def test_a_plain_handler_for_a_tls_port(nginx_shop):
    with nginx_shop.intercept(plaintext=True):
        assert nginx_shop.get("/", scene.DEV).served_by == "handler"
        assert nginx_shop.get("/").served_by == "app"


def test_a_port_by_the_name_or_number_of_the_service(nginx_shop):
    for port in ("https", "443"):
        with nginx_shop.intercept("--http-header", "x-dev=ada", port=port):
            assert nginx_shop.get("/", scene.DEV).served_by == "handler"


@ON_EACH_KERNEL
def test_http2_as_curl_speaks_it(tmp_path):
    with (
        scene.shop(tmp_path) as shop,
        nginx(
            shop.space.pod,
            tmp_path / "nginx",
            listen=[f"{shop.space.ip}:{scene.TLS_PORT}"],
            certificate=shop.app_certificate,
            http2=True,
        ),
        shop.intercept(),
    ):
        for headers, side in (((), "app"), ((scene.DEV,), "handler")):
            answer = shop.get("/", *headers, options=["--http2"])
            assert (answer.served_by, answer.info["http_version"]) == (side, "2"), answer.errors


def test_the_kubelet_s_probes_stay_with_the_app(nginx_shop):
    with nginx_shop.intercept():
        assert nginx_shop.get("/", scene.DEV, "User-Agent: kube-probe/1.30").served_by == "app"


@ON_EACH_KERNEL
def test_a_global_intercept_takes_the_whole_port(nginx_shop):
    """Whatever arrives reaches the handler unparsed; TLS is the client's own with the handler."""
    with nginx_shop.intercept("--plaintext", port=scene.PLAIN_PORT, handler_port=nginx_shop.plain_handler.port):
        assert nginx_shop.get("/", port=scene.PLAIN_PORT).served_by == "handler"
    until(lambda: nginx_shop.get("/", port=scene.PLAIN_PORT).served_by == "app", within=5, what="the app to be back")


def test_without_an_intercept_nothing_is_steered(nginx_shop):
    until(lambda: not kernel.steering(nginx_shop.space.pod).links, within=5, what="no link on the pod's namespace")
    assert nginx_shop.get("/", scene.DEV).served_by == "app"


@ON_EACH_KERNEL
def test_an_app_on_loopback_only_is_refused_as_without_us(shop):
    with Server(http_app, netns=shop.space.pod, address="127.0.0.1", port=scene.TLS_PORT, tls=shop.app_tls()):
        assert shop.get("/").code == 7
        with shop.intercept(pods=None):
            until(lambda: _mentions(shop, "NoApp"), within=10, what=lambda: f"NoApp in {shop.conditions()}")
            end = time.monotonic() + 1.5
            while time.monotonic() < end:
                for address in shop.space.ips:
                    assert shop.get("/", scene.DEV, address=address).code == 7


@ON_EACH_KERNEL
@pytest.mark.parametrize("where", ["ipv4", "ipv6", "dual stack"])
def test_an_app_on_some_addresses(shop, where):
    addresses = {"ipv4": shop.space.ip, "ipv6": shop.space.ip6, "dual stack": "::"}
    reached = {"ipv4": [shop.space.ip], "ipv6": [shop.space.ip6], "dual stack": shop.space.ips}[where]
    with (
        Server(
            http_app,
            netns=shop.space.pod,
            address=addresses[where],
            port=scene.TLS_PORT,
            dual_stack=True,
            tls=shop.app_tls(),
        ),
        shop.intercept(),
    ):
        for address in shop.space.ips:
            if address in reached:
                assert shop.get("/", address=address).served_by == "app"
                assert shop.get("/", scene.DEV, address=address).served_by == "handler"
            else:
                assert shop.get("/", scene.DEV, address=address).code == 7


@ON_EACH_KERNEL
def test_a_pod_without_ipv6(tmp_path):
    with scene.shop(tmp_path, ipv6=False) as shop, scene.shop_nginx(shop), shop.intercept():
        assert shop.get("/").served_by == "app"
        assert shop.get("/", scene.DEV).served_by == "handler"


@ON_EACH_KERNEL
def test_an_app_that_starts_after_the_intercept(shop):
    with shop.intercept(pods=None):
        assert shop.get("/", scene.DEV).code == 7
        with Server(http_app, netns=shop.space.pod, address="0.0.0.0", port=scene.TLS_PORT, tls=shop.app_tls()):
            until(lambda: shop.get("/", scene.DEV).served_by == "handler", within=10, what="the handler to answer")
            assert shop.get("/").served_by == "app"


def test_all_pods_of_a_workload_and_those_created_later(tmp_path):
    with (
        scene.shop(tmp_path) as shop,
        pod_namespace() as second,
        Server(http_app, netns=shop.space.pod, address="::", port=scene.TLS_PORT, dual_stack=True, tls=shop.app_tls()),
        Server(http_app, netns=second.pod, address="::", port=scene.TLS_PORT, dual_stack=True, tls=shop.app_tls()),
        shop.intercept() as running,
    ):
        pod = scene.documents(second, shop.own_certificate, name="orders-2")[2]
        path = shop.node.write("second.yaml", pod)
        running.wait_active(pods=2)
        first = shop.space
        for space in (first, second):
            shop.space = space
            assert shop.get("/", scene.DEV).served_by == "handler"
            assert shop.get("/").served_by == "app"
        path.unlink()
        running.wait_active(pods=1)
        shop.space = second
        assert shop.get("/", scene.DEV).served_by == "app"
        shop.space = first


def test_two_intercepts_with_different_filters(nginx_shop):
    other = Server(http_app, name="second", tls=nginx_shop.app_tls())
    with (
        other,
        nginx_shop.intercept("--http-header", "x-dev=ada"),
        nginx_shop.intercept("--http-header", "x-dev=~ad", handler_port=other.port),
    ):
        assert nginx_shop.get("/", "x-dev: ada").served_by == "handler"  # both match: the older wins
        assert nginx_shop.get("/", "x-dev: adam").served_by == "second"
        assert nginx_shop.get("/").served_by == "app"


def test_certificate_by_path_under_the_root_annotation(tmp_path):
    authority = Authority()
    root = tmp_path / "root"
    authority.issue(scene.HOST).write(root / "etc/tls")
    with scene.shop(tmp_path / "shop", start=False) as shop:
        shop.own_certificate.write(root / "etc/tls")
        documents = scene.documents(shop.space, shop.own_certificate)
        notes = documents[2]["metadata"]["annotations"]
        del notes[f"telepresence.io/downstream-tls-secret.{scene.TLS_PORT}"]
        notes[f"telepresence.io/downstream-tls-path.{scene.TLS_PORT}"] = "/etc/tls"
        notes["sidestep.dev/root"] = str(root)
        shop.node.write("orders.yaml", *documents)
        shop.node.start()
        with scene.shop_nginx(shop), shop.intercept():
            assert shop.get("/", scene.DEV).served_by == "handler"
            assert shop.get("/").served_by == "app"


def test_leave_and_list(nginx_shop):
    socket = nginx_shop.node.socket
    words = ("orders", "--name", "mine", "--port", f"{nginx_shop.handler.port}:8443", "--http-header", "x-dev=ada")
    with intercept(nginx_shop.node, *words) as running:
        listed = sidestep("list", "--output", "json", socket=socket)
        assert listed.code == 0
        assert "orders" in listed.stdout
        assert "mine" in listed.stdout
        assert sidestep("status", socket=socket).code == 0
        left = sidestep("leave", "mine", "-n", "shop", socket=socket)
        assert left.code == 0, left.stderr
        running.process.wait(10)
    assert nginx_shop.get("/", scene.DEV).served_by == "app"


def _mentions(shop, text):
    return text in shop.conditions()
