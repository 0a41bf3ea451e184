"""Inspection policies among the manifests of a real daemon: nginx behind TLS, curl, h2load, raw clients."""

from __future__ import annotations

import contextlib
import re
import subprocess
import threading

import pytest

from tests.harness import kernel, scene
from tests.harness.cli import sidestep
from tests.harness.http1 import ClosedError
from tests.harness.inspection import cluster_policy, is_refusal, policies, policy, rule, view, wait_programmed
from tests.harness.manifests import Document, write
from tests.harness.peers import Server, http_app
from tests.harness.waiting import until

RAW = 9000
"""A port that no container declares."""
HTTP = [pytest.param("--http1.1", id="h1"), pytest.param("--http2", id="h2")]
NO_ADMIN = policy(rule())
SECRET = {"name": "secret", "patterns": [{"regex": "top-secret-[0-9]{4}"}], "action": "Block"}


@pytest.fixture(scope="module")
def nginx_shop(tmp_path_factory):
    """The scene with nginx, which speaks HTTP/2, as the app."""
    with scene.shop(tmp_path_factory.mktemp("shop")) as shop, scene.shop_nginx(shop, http2=True) as app:
        shop.nginx = app
        yield shop


@contextlib.contextmanager
def raw_app(shop):
    """An app that keeps every byte it receives."""
    with Server(http_app, netns=shop.space.pod, address=shop.space.ip, port=RAW) as app:
        yield app


def received(app):
    """All bytes that an app got."""
    return b"".join(connection.received for connection in app.connections)


def counted(shop, kind, name, *, least=1, policy_name="orders"):
    """Wait until something is counted."""
    until(
        lambda: view(shop, policy_name)[kind].get(name, 0) >= least,
        within=5,
        what=lambda: f"{least} {name} in {kind}: {view(shop, policy_name)}",
    )


# --- requests -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", HTTP)
def test_a_policy_blocks_without_any_intercept(nginx_shop, version):
    shop = nginx_shop
    assert shop.get("/admin", options=[version]).status == 200
    with policies(shop, NO_ADMIN):
        before = len(shop.nginx.requests())
        for address in shop.space.ips:
            assert is_refusal(shop.get("/admin/users", options=[version], address=address))
            assert is_refusal(shop.get("/x/%2e%2e/admin", options=[version, "--path-as-is"], address=address))
        assert is_refusal(shop.get("/admin", port=scene.PLAIN_PORT))
        assert len(shop.nginx.requests()) == before
        allowed = shop.get("/orders", options=[version])
        assert (allowed.status, allowed.served_by) == (200, "app")
        counted(shop, "hits", "blocked", least=2 * len(shop.space.ips) + 1)
    assert shop.get("/admin", options=[version]).status == 200
    assert not kernel.steering(shop.space.pod).links


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_a_refusal_is_read_by_a_client_that_is_still_sending(nginx_shop, version):
    """curl 7.88 loses an answer over HTTP/2 that a reset of its stream follows at once."""
    large = nginx_shop.folder / "large"
    large.write_bytes(b"x" * 300_000)
    with policies(nginx_shop, policy(rule())):
        for _ in range(3):
            assert is_refusal(nginx_shop.get("/admin/users", options=[version, "--data-binary", f"@{large}"]))


def test_a_blocked_request_leaves_no_byte_at_the_app(nginx_shop):
    shop = nginx_shop
    with raw_app(shop) as app, policies(shop, policy(rule(), SECRET, ports=[RAW])):
        with shop.client(port=RAW) as client:
            assert client.get("/a").header("x-served-by") == "app"
            assert client.get("/admin").status == 403
            assert client.get("/b").header("x-served-by") == "app"
        with shop.client(port=RAW) as client:
            body = b"x=" + b"y" * 5000 + b"top-secret-1234"
            client.send(b"POST /c HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body))
            for at in range(0, len(body), 997):
                client.send(body[at : at + 997])
            assert client.reader.message(answers="POST").status == 403
        heads = re.findall(rb"(?:GET|POST) (\S+)", received(app))
        assert heads == [b"/a", b"/b"]
        assert b"yyy" not in received(app)


def test_detect_changes_no_byte_and_counts(nginx_shop):
    shop = nginx_shop
    talk = [
        b"GET /admin HTTP/1.1\r\nhOsT: a\r\nX-Odd:b\r\nx-odd: c\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\n0\r\nT: 1\r\n\r\n",
    ]
    with raw_app(shop) as app:
        with shop.client(port=RAW) as client:
            for each in talk:
                client.request(each)
            plain = bytes(client.reader.received)
        with policies(shop, policy(rule(), SECRET, mode="Detect", ports=[RAW])):
            with shop.client(port=RAW) as client:
                for each in talk:
                    client.request(each)
                assert bytes(client.reader.received) == plain
            assert app.connections[-1].received == b"".join(talk)
            counted(shop, "hits", "would_block")
            assert view(shop)["hits"].get("blocked", 0) == 0


@pytest.mark.parametrize("failure_policy", ["Ignore", "Fail"])
def test_what_cannot_be_read_is_counted_or_closed(nginx_shop, failure_policy):
    shop = nginx_shop
    with raw_app(shop) as app, policies(shop, policy(rule(), ports=[RAW], failurePolicy=failure_policy)):
        with shop.client(port=RAW) as client:
            client.send(b"\x00\x01\x02 this is no HTTP\r\n\r\n")
            if failure_policy == "Fail":
                with pytest.raises((ClosedError, ConnectionError)):
                    client.reader.fill()
                counted(shop, "closed", "not_http")
                assert received(app) == b""
            else:
                until(lambda: b"no HTTP" in received(app), within=5, what="the bytes at the app")
                counted(shop, "bypassed", "not_http")
        with shop.client(port=RAW) as client:
            client.send(
                b"GET /a HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            )
            with contextlib.suppress(ClosedError, ConnectionError):
                client.reader.fill()
        assert (b"Transfer-Encoding" in received(app)) is (failure_policy == "Ignore")


# --- responses and intercepts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", HTTP)
def test_answers_are_inspected_too(nginx_shop, version):
    shop = nginx_shop
    (shop.nginx.root / "card.txt").write_text("order 7: paid with 4111 1111 1111 1111, thanks\n" * 3)
    (shop.nginx.root / "none.txt").write_text("order 7: paid with 4111 1111 1111 1112, thanks\n")
    cards = {"name": "cards", "direction": "Response", "patterns": [{"builtin": "CardNumber"}], "action": "Block"}
    with policies(shop, policy(cards)):
        answer = shop.get("/files/card.txt", options=[version])
        assert is_refusal(answer)
        assert b"4111" not in answer.body
        assert shop.get("/files/none.txt", options=[version]).body.startswith(b"order 7")


def test_a_policy_and_an_intercept_share_a_port(nginx_shop):
    shop = nginx_shop
    with shop.intercept() as running, policies(shop, NO_ADMIN, alone=False):
        assert shop.get("/orders", scene.DEV).served_by == "handler"
        assert shop.get("/orders").served_by == "app"
        before = len(running.of("request"))
        assert is_refusal(shop.get("/admin", scene.DEV))
        assert is_refusal(shop.get("/admin"))
        assert shop.get("/last", scene.DEV).served_by == "handler"
        until(lambda: len(running.of("request")) == before + 1, within=5, what="the line of the last request")
    until(lambda: not shop.node.status()["pods"], within=40, what="the pod to be released")


def test_a_global_intercept_is_refused_and_the_policy_is_named(nginx_shop):
    shop = nginx_shop
    words = ("intercept", "orders", "-n", "shop", "--port", f"{shop.handler.port}:{scene.TLS_PORT}")
    with policies(shop, NO_ADMIN):
        refused = sidestep(*words, socket=shop.node.socket)
        assert refused.code != 0
        assert "inspection policy shop/orders enforces on port 8443" in refused.error
    with shop.intercept("--plaintext", port=scene.PLAIN_PORT, handler_port=shop.plain_handler.port) as running:
        assert shop.get("/admin", port=scene.PLAIN_PORT).served_by == "handler"
        with policies(shop, NO_ADMIN, alone=False):
            assert is_refusal(shop.get("/admin", port=scene.PLAIN_PORT))
            assert shop.get("/", port=scene.PLAIN_PORT).served_by == "app"
            until(lambda: "enforces on port 8080" in str(running.of("state")[-1]), within=5, what="the reason")
            assert "PolicyEnforced" in shop.conditions()
        until(lambda: shop.get("/admin", port=scene.PLAIN_PORT).served_by == "handler", within=10, what="the intercept")


# --- life of a policy -----------------------------------------------------------------------------------------------


def test_a_policy_that_goes_leaves_no_trace_and_connections_go_on(tmp_path):
    with scene.shop(tmp_path) as shop, raw_app(shop):
        space = shop.space

        def world():
            return kernel.listeners(space.pod), kernel.rules(space.pod), kernel.pins(), kernel.steering(space.pod)

        before = world()
        path = shop.node.write("policies.yaml", policy(rule(), ports=[RAW]))
        wait_programmed(shop)
        held = kernel.steering(space.pod)
        with shop.client(port=RAW) as client:
            assert client.get("/admin").status == 403
            path.unlink()
            until(lambda: not shop.node.status()["pods"], within=10, what="the pod to be released")
            assert client.get("/admin").header("x-served-by") == "app"
        until(lambda: held.left() == [], within=10, what=lambda: f"{held.left()} to go")
        until(lambda: not shop.node.proxies(space.pod), within=40, what="the proxy to go")
        until(lambda: world() == before, within=10, what=lambda: f"{world()} to be {before}")


class Traffic:
    """Requests one after the other, each on a connection of its own, until told to stop."""

    def __init__(self, shop, path):
        self.shop, self.path = shop, path
        self.outcomes = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        while not self._stop.is_set():
            answer = self.shop.get(self.path)
            self.outcomes.append((answer.code, answer.status))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._stop.set()
        self._thread.join()


def test_a_policy_is_edited_while_traffic_runs(nginx_shop):
    shop = nginx_shop
    with policies(shop, NO_ADMIN), Traffic(shop, "/orders") as allowed, Traffic(shop, "/admin") as refused:
        for number in range(4):
            shop.node.write("policies.yaml", policy(rule(), rule(f"/other-{number}", name="other")))
            until(lambda n=number: is_refusal(shop.get(f"/other-{n}")), within=10, what="the edited policy")
        shop.node.write("policies.yaml", NO_ADMIN)
        until(lambda: shop.get("/other-3").status == 200, within=10, what="the first policy again")
    assert set(allowed.outcomes) == {(0, 200)}
    assert set(refused.outcomes) == {(0, 403)}


def test_an_edit_reaches_connections_that_are_kept_alive(nginx_shop):
    shop = nginx_shop
    with raw_app(shop), policies(shop, policy(rule(), ports=[RAW])), shop.client(port=RAW) as client:
        assert [client.get(path).status for path in ("/admin", "/other", "/other")] == [403, 200, 200]
        shop.node.write("policies.yaml", policy(rule("/other"), ports=[RAW]))
        until(lambda: client.get("/other").status == 403, within=10, what="the edited policy")
        assert client.get("/admin").status == 200


def test_an_invalid_edit_keeps_the_last_good_version(nginx_shop):
    shop = nginx_shop
    with policies(shop, NO_ADMIN):
        slow = {**SECRET, "patterns": [{"regex": "[ab]*a[ab]{400}c"}]}
        for broken in (policy(rule("admin")), policy(rule(), slow), policy(rule(), mode="Strict")):
            shop.node.write("policies.yaml", broken)
            until(lambda: "PolicyInvalid" in shop.conditions(), within=10, what="the condition")
            assert "last good version stays" in shop.conditions()
            assert is_refusal(shop.get("/admin"))
            shop.node.write("policies.yaml", NO_ADMIN)
            until(lambda: "PolicyInvalid" not in shop.conditions(), within=10, what="the condition to go")
        (shop.node.manifests / "policies.yaml").write_text("kind: [InspectionPolicy\n")
        until(lambda: "ManifestInvalid" in shop.conditions(), within=10, what="the error")
        assert is_refusal(shop.get("/admin"))
    assert shop.get("/admin").status == 200


def test_a_successor_has_the_policies_before_it_takes_over(nginx_shop):
    shop = nginx_shop
    with policies(shop, NO_ADMIN), Traffic(shop, "/admin") as refused:
        old = shop.node.upgrade()
        old.wait(60)
        wait_programmed(shop)
        assert is_refusal(shop.get("/admin"))
    assert set(refused.outcomes) == {(0, 403)}


def test_manifests_in_a_mounted_config_map(tmp_path):
    """As the kubelet mounts one: names are links into a folder that is exchanged whole."""
    with scene.shop(tmp_path, start=False) as shop, scene.shop_nginx(shop):
        folder = shop.node.manifests
        for number, document in enumerate((policy(rule()), policy(rule("/other")))):
            (folder / f"..{number}").mkdir()
            write(folder / f"..{number}", "policy.yaml", document)
        (folder / "..data").symlink_to("..0")
        (folder / "policy.yaml").symlink_to("..data/policy.yaml")
        shop.node.start()
        wait_programmed(shop)
        assert is_refusal(shop.get("/admin"))
        (folder / "..new").symlink_to("..1")
        (folder / "..new").rename(folder / "..data")
        until(lambda: is_refusal(shop.get("/other")), within=10, what="the other policy")
        assert shop.get("/admin").status == 200


# --- who refuses, who is exempt -------------------------------------------------------------------------------------


def namespace(**labels) -> Document:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": labels}}


def test_a_policy_of_the_cluster_selects_namespaces_and_none_weakens_it(nginx_shop):
    shop = nginx_shop
    base = cluster_policy(rule(), namespaceSelector={"matchLabels": {"team": "a"}})
    mine = policy(rule("/mine", name="mine"), mode="Detect")
    shop.node.write("namespace.yaml", namespace(team="b"))
    with policies(shop, mine):
        shop.node.write("policies.yaml", base, mine)
        until(lambda: view(shop, "base") is not None and view(shop, "base")["accepted"], within=10, what="the policy")
        assert shop.get("/admin").status == 200
        shop.node.write("namespace.yaml", namespace(team="a"))
        wait_programmed(shop, "base")
        assert is_refusal(shop.get("/admin"), "base")
        assert shop.get("/mine").status == 200
        (shop.node.manifests / "namespace.yaml").unlink()
        until(lambda: shop.get("/admin").status == 200, within=10, what="the namespace to be deselected")


def test_a_node_may_switch_inspection_off(nginx_shop):
    shop = nginx_shop
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}}
    node["metadata"]["annotations"] = {"sidestep.dev/inspection": "false"}
    with policies(shop, policy(rule(), failurePolicy="Fail")):
        assert is_refusal(shop.get("/admin"))
        path = shop.node.write("node.yaml", node)
        until(lambda: "NotInspected" in shop.conditions(), within=10, what="the condition")
        until(lambda: shop.get("/admin").status == 200, within=10, what="the pod to be open")
        [failing] = view(shop)["failing"]
        assert "sidestep.dev/inspection" in failing["detail"]
        path.unlink()
        wait_programmed(shop)
        assert is_refusal(shop.get("/admin"))


@pytest.mark.parametrize("existing", ["Keep", "Reset"])
def test_connections_that_are_older_than_the_policy(nginx_shop, existing):
    shop = nginx_shop
    blocking = policy(rule(), ports=[RAW], existingConnections=existing)
    with raw_app(shop), contextlib.ExitStack() as stack:
        direct = stack.enter_context(shop.client(port=RAW))
        assert direct.get("/admin").header("x-served-by") == "app"
        stack.enter_context(policies(shop, policy(rule("/x"), name="first", mode="Detect", ports=[RAW])))
        relayed = stack.enter_context(shop.client(port=RAW))
        assert relayed.get("/admin").header("x-served-by") == "app"
        first = policy(rule("/x"), name="first", mode="Detect", ports=[RAW])
        shop.node.write("policies.yaml", first, blocking)
        wait_programmed(shop)
        for client in (direct, relayed):
            if existing == "Keep":
                assert client.get("/admin").header("x-served-by") == "app"
            else:
                with pytest.raises((ClosedError, OSError)):
                    client.get("/admin")
        with shop.client(port=RAW) as new:
            assert new.get("/admin").status == 403


# --- load -----------------------------------------------------------------------------------------------------------


def h2load(shop, path, requests, *options):
    """The requests that were answered, by class of their status."""
    command = ["h2load", f"--connect-to={shop.space.ip}:{scene.TLS_PORT}", "-n", str(requests), *options]
    command += [f"https://{scene.HOST}:{scene.TLS_PORT}{path}"]
    done = subprocess.run(shop.space.client.enter(command), capture_output=True, text=True, timeout=100, check=False)
    found = re.search(r"status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", done.stdout)
    assert found, done.stdout + done.stderr
    return {name: int(found[at]) for at, name in ((1, "2xx"), (3, "4xx"))}


@pytest.mark.parametrize("options", [("-c", "4", "-m", "50"), ("-c", "4", "--h1")], ids=["h2", "h1"])
def test_many_requests_none_lost(nginx_shop, options):
    shop = nginx_shop
    rules = [rule(f"/none-{number}", name=f"r{number}") for number in range(11)]
    with policies(shop, policy(*rules, rule())):
        assert h2load(shop, "/orders", 3000, *options) == {"2xx": 3000, "4xx": 0}
        before = len(shop.nginx.requests())
        assert h2load(shop, "/admin", 1000, *options) == {"2xx": 0, "4xx": 1000}
        assert len(shop.nginx.requests()) == before
        counted(shop, "hits", "blocked", least=1000)
