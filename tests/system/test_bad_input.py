"""Bad input: one line on stderr that says what to do, the exit codes of the interface, nothing changed."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from tests.harness import kernel, scene
from tests.harness.cli import intercept, sidestep
from tests.harness.waiting import until

GOOD = ["intercept", "orders", "-n", "shop", "--port", "9:8443"]
FILTER = ["--http-header", "x-dev=ada"]

REFUSED = {
    "an unknown workload": (["intercept", "ordres", "-n", "shop", "--port", "9:8443", *FILTER], ["ordres"]),
    "an unknown namespace": (["intercept", "orders", "-n", "nowhere", "--port", "9:8443", *FILTER], ["nowhere"]),
    "an unknown kind": (["intercept", "statefulset/orders", "-n", "shop", "--port", "9:8443", *FILTER], ["orders"]),
    "an unknown port number": (["intercept", "orders", "-n", "shop", "--port", "9:1234", *FILTER], ["1234"]),
    "an unknown port name": (["intercept", "orders", "-n", "shop", "--port", "9:grpc", *FILTER], ["grpc"]),
    "an unknown pod": ([*GOOD, *FILTER, "--pod", "orders-9"], ["orders-9"]),
    "a filter on UDP": (["intercept", "orders", "-n", "shop", "--port", "9:8443/UDP", *FILTER], ["UDP"]),
    "an intercept to leave that is none": (["leave", "nothing", "-n", "shop"], ["nothing"]),
}
USAGE = {
    "no port": ["intercept", "orders", *FILTER],
    "a port that is none": ["intercept", "orders", "--port", "http", *FILTER],
    "a local port out of range": ["intercept", "orders", "--port", "70000:8443", *FILTER],
    "an option that is none": [*GOOD, "--http-cookie", "a=b"],
    "a command that is none": ["intercpet", "orders"],
}
WRONG = {
    "a header regex": (["--http-header", "x-dev=~("], ["("]),
    "a path regex": (["--http-path-regex", "[a-"], ["[a-"]),
    "a backreference, which RE2 has not": (["--http-header", r"x=~(a)\1"], ["(a)", "escape"]),
    "an empty header name": (["--http-header", "=x"], ["=x"]),
    "a header name with a space": (["--http-header", "x dev=y"], ["x dev"]),
    "too many conditions": ([word for n in range(33) for word in ("--http-header", f"x-{n}=y")], ["32"]),
}


@pytest.fixture(autouse=True)
def unchanged(nginx_shop):
    """Whatever is refused leaves the pod as it is."""
    yield
    until(lambda: not kernel.steering(nginx_shop.space.pod).links, within=5, what="nothing to be steered")
    assert nginx_shop.get("/", scene.DEV).served_by == "app"


@pytest.mark.parametrize("name", REFUSED)
def test_refused(nginx_shop, name):
    words, mentioned = REFUSED[name]
    result = sidestep(*words, socket=nginx_shop.node.socket)
    assert result.code == 1, result
    for word in mentioned:
        assert word in result.error
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("name", USAGE)
def test_usage(nginx_shop, name):
    result = sidestep(*USAGE[name], within=10)
    assert result.code == 2, result
    assert "Traceback" not in result.stderr
    assert result.stderr.strip()


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_filter_is_an_error_never_a_literal(nginx_shop, name):
    words, mentioned = WRONG[name]
    result = sidestep(*GOOD, *words, socket=nginx_shop.node.socket)
    assert result.code in (1, 2), result
    for word in mentioned:
        assert word in result.error


def test_a_second_global_intercept_names_the_first(nginx_shop):
    words = ["--port", f"{nginx_shop.plain_handler.port}:8080", "--plaintext"]
    with intercept(nginx_shop.node, "orders", *words, "--name", "first"):
        for more in ([], FILTER):
            result = sidestep(
                "intercept", "orders", "-n", "shop", *words, *more, "--name", "second", socket=nginx_shop.node.socket
            )
            assert result.code == 1
            assert "shop/first" in result.error
        assert nginx_shop.get("/", port=scene.PLAIN_PORT).served_by == "handler"


def test_the_same_filter_twice_is_refused(nginx_shop):
    with nginx_shop.intercept("--name", "first", *FILTER):
        result = sidestep(*GOOD, *FILTER, "--name", "second", socket=nginx_shop.node.socket)
        assert result.code == 1
        assert "shop/first" in result.error


def test_the_same_name_twice_is_refused(nginx_shop):
    with nginx_shop.intercept("--name", "first", *FILTER):
        result = sidestep(*GOOD, "--http-header", "other=x", "--name", "first", socket=nginx_shop.node.socket)
        assert result.code == 1
        assert "first" in result.error


@pytest.mark.parametrize("command", [["list"], ["status"], ["leave", "x"], [*GOOD, *FILTER]])
def test_an_unreachable_daemon(tmp_path, command):
    (tmp_path / "run").mkdir(mode=0o700)
    missing = tmp_path / "run" / "node.sock"
    result = sidestep(*command, socket=missing)
    assert result.code == 1
    assert str(missing) in result.error
    stale = tmp_path / "run" / "stale.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(stale))
    result = sidestep(*command, socket=stale)
    assert result.code == 1
    assert str(stale) in result.error


def test_a_socket_in_a_folder_open_to_others_is_not_trusted(tmp_path):
    folder = tmp_path / "open"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(folder / "node.sock"))
        sock.listen()
        result = sidestep("status", socket=folder / "node.sock")
    assert result.code == 1
    assert result.error


@pytest.mark.parametrize("manifests", ["missing", "a file"])
def test_a_manifests_folder_that_is_none(tmp_path, manifests):
    path = tmp_path / "manifests"
    if manifests == "a file":
        path.write_text("")
    result = sidestep("node", "--manifests", path, socket=tmp_path / "run" / "node.sock")
    assert result.code in (1, 2)
    assert str(path) in result.error


CERTIFICATES: dict[str, tuple[Any, str]] = {
    "a key of another certificate": ({"tls.key": "other"}, "does not belong"),
    "no key": ({"tls.key": None}, "tls.key"),
    "a key that is none": ({"tls.key": "garbage"}, "private key"),
    "an expired certificate": ("expired", "expired"),
    "a secret that is none": ("absent", "orders-tls"),
}


@pytest.mark.parametrize("name", CERTIFICATES)
def test_a_bad_certificate_is_a_condition_and_the_port_is_not_opened(nginx_shop, name):
    shop = nginx_shop
    change, word = CERTIFICATES[name]
    path = shop.node.manifests / "orders.yaml"
    original = path.read_text()
    documents = scene.documents(shop.space, shop.own_certificate)
    secret: dict[str, Any] = documents[4]
    other = shop.authority.issue(scene.HOST, expired=change == "expired")
    if change == "absent":
        documents.pop()
    elif change == "expired":
        secret["data"] = other.secret()
    else:
        for key, value in change.items():
            if value is None:
                del secret["data"][key]
            else:
                secret["data"][key] = other.secret()[key] if value == "other" else "Z2FyYmFnZQ=="
    # another secret's name: this port has no last good certificate to stay with
    renamed = f"orders-tls-{abs(hash(name)) % 1000}"
    documents[2]["metadata"]["annotations"][f"telepresence.io/downstream-tls-secret.{scene.TLS_PORT}"] = renamed
    if change != "absent":
        secret["metadata"]["name"] = renamed
    with shop.intercept():  # certificates are read for ports that somebody wants
        try:
            shop.node.write("orders.yaml", *documents)
            until(
                lambda: "CertificateInvalid" in shop.conditions(),
                within=10,
                what=lambda: f"CertificateInvalid in {shop.conditions()}",
            )
            text = shop.conditions()
            assert f"telepresence.io/downstream-tls-secret.{scene.TLS_PORT}" in text
            assert (renamed if change == "absent" else word) in text
            with shop.intercept(port=scene.PLAIN_PORT, plaintext=True):  # a bad port never disables a good one
                assert shop.get("/", scene.DEV, port=scene.PLAIN_PORT).served_by == "handler"
                assert shop.get("/", scene.DEV).served_by == "app"
        finally:
            path.write_text(original)
            until(lambda: "CertificateInvalid" not in shop.conditions(), within=10, what="the condition to go")
