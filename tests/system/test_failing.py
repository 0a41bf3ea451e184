"""What a policy's failurePolicy decides, with a real daemon: each event for Ignore and for Fail.

Clients ask for what the policy blocks, so that a byte of such a request at the app is a bypass.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from pathlib import Path

import pytest

from tests.harness import kernel, scene
from tests.harness.http1 import ClosedError
from tests.harness.inspection import FILE, policy, rule, view, wait_programmed
from tests.harness.nginx import client_context
from tests.harness.peers import Client, Server, http_app
from tests.harness.processes import alive, kill
from tests.harness.waiting import until

IGNORE, FAIL = "Ignore", "Fail"
REFUSED, RESET = "refused", "reset"


@pytest.fixture
def shop(tmp_path):
    """A scene of its own for each test, with apps on both ports; things are killed here."""
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(scene.shop(tmp_path))
        options = {"netns": made.space.pod, "address": "::", "dual_stack": True}
        made.apps = [
            stack.enter_context(Server(http_app, port=scene.PLAIN_PORT, **options)),
            stack.enter_context(Server(http_app, port=scene.TLS_PORT, tls=made.app_tls(), **options)),
        ]
        yield made


def enforce(shop, failure=FAIL, *, wait=True, **spec):
    """Have /admin blocked on both ports."""
    shop.node.write(FILE, policy(rule(), failurePolicy=failure, **spec))
    if wait:
        wait_programmed(shop)
        until(lambda: len(pod(shop)["steered"]) == 2, within=10, what=lambda: f"both ports: {shop.conditions()}")


def pod(shop):
    return shop.node.status()["pods"][0]


def outcome(shop, port, path="/admin", address=None):
    """What one new client meets: a status, REFUSED or RESET. It never waits for long."""
    try:
        with shop.client(port=port, address=address) as client:
            client.sock.settimeout(6)
            return str(client.get(path, "Connection: close").status)
    except ConnectionRefusedError:
        return REFUSED
    except TimeoutError:
        return "hangs"
    except (OSError, ClosedError):
        return RESET


def everywhere(shop, path="/admin"):
    """The outcomes on both ports, over IPv4 and IPv6."""
    return {outcome(shop, port, path, ip) for port in (scene.PLAIN_PORT, scene.TLS_PORT) for ip in shop.space.ips}


def bypasses(shop):
    """Connections that the app got from clients themselves, and blocked requests that it got from whomever."""
    clients = {shop.space.client_ip, shop.space.client_ip6, f"::ffff:{shop.space.client_ip}"}
    connections = [each for app in shop.apps for each in app.connections]
    direct = [each.peer for each in connections if each.peer[0] in clients]
    return direct + [each.peer for each in connections if b"/admin" in bytes(each.reader.received)]


def forget(shop):
    for app in shop.apps:
        app.connections.clear()


@contextlib.contextmanager
def knocking(shop):
    """Clients that ask all the time for what the policy blocks; yields the outcomes so far."""
    outcomes, end = [], threading.Event()

    def knock(port, ip):
        while not end.is_set():
            outcomes.append(outcome(shop, port, address=ip))

    ends = [(port, ip) for port in (scene.PLAIN_PORT, scene.TLS_PORT) for ip in shop.space.ips]
    threads = [threading.Thread(target=knock, args=each) for each in ends]
    for thread in threads:
        thread.start()
    try:
        until(lambda: len(outcomes) > 8, within=20, what="the clients to get going")
        yield outcomes
    finally:
        end.set()
        for thread in threads:
            thread.join(20)


@contextlib.contextmanager
def without_proxy(shop):
    """The proxy is killed, and none can be started: the zygote is stopped."""
    zygote = shop.node.zygote()
    os.kill(zygote, signal.SIGSTOP)
    try:
        kill(shop.proxy())
        until(lambda: not pod(shop)["steered"], within=5, what="the ports to be unsteered")
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(zygote, signal.SIGCONT)


# --- processes that die -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", [IGNORE, FAIL])
def test_a_pod_without_a_proxy_is_closed_or_left_to_the_app_and_the_policys_end_opens_it_at_once(shop, failure):
    enforce(shop, failure)
    assert everywhere(shop) == {"403"}
    assert bypasses(shop) == []
    with without_proxy(shop):
        if failure == FAIL:
            assert everywhere(shop) == {REFUSED}
            assert bypasses(shop) == []
            assert pod(shop)["closed"] == [f"{scene.PLAIN_PORT}/tcp", f"{scene.TLS_PORT}/tcp"]
            assert "PortClosed" in shop.conditions()
        else:
            assert everywhere(shop) == {"200"}
            assert pod(shop)["closed"] == []
        found = {(each["outcome"], each["reason"]) for each in pod(shop)["uninspected"]}
        assert ("closed" if failure == FAIL else "open", "no-proxy") in found
        (shop.node.manifests / FILE).unlink()
        until(lambda: not shop.node.status()["policies"], within=10, what="the policy to go")
        assert everywhere(shop) == {"200"}


def test_killed_proxies_never_let_a_blocked_request_through(shop):
    enforce(shop)
    with knocking(shop) as outcomes:
        proxy = shop.proxy()
        for _ in range(3):
            kill(proxy)
            proxy = shop.node.proxy(shop.space.pod, but=proxy)
            count = len(outcomes)
            until(lambda count=count: len(outcomes) > count + 12, within=20, what="further calls")
    assert set(outcomes) <= {"403", RESET, REFUSED}, set(outcomes)
    assert bypasses(shop) == []


@pytest.mark.parametrize("state", ["serving", "closed"])
def test_a_killed_daemon_leaves_every_port_open_and_nothing_behind(shop, state):
    enforce(shop)
    seen = kernel.steering(shop.space.pod)
    assert len(seen.maps) == 3
    with without_proxy(shop) if state == "closed" else contextlib.nullcontext():
        assert everywhere(shop) == ({REFUSED} if state == "closed" else {"403"})
        family = shop.node.family()
        shop.node.kill()
        until(lambda: everywhere(shop) == {"200"}, within=3, what="the app to answer everywhere")
    until(lambda: not seen.left(), within=3, what=lambda: f"{seen.left()} to go")
    until(lambda: not any(alive(pid) for pid in family), within=40, what="the orphans to be gone")
    shop.node.start()
    wait_programmed(shop)
    until(lambda: everywhere(shop) == {"403"}, within=10, what="the policy to be enforced again")


def test_a_daemon_that_stops_opens_every_port_and_leaves_nothing(shop):
    enforce(shop)
    seen = kernel.steering(shop.space.pod)
    with without_proxy(shop):
        assert everywhere(shop) == {REFUSED}
        shop.node.process.signal(signal.SIGTERM)
        until(lambda: everywhere(shop) == {"200"}, within=5, what="the app to answer everywhere")
    assert shop.node.process.wait(60) == 0
    until(lambda: not seen.left(), within=3, what=lambda: f"{seen.left()} to go")


@pytest.mark.parametrize("failure", [IGNORE, FAIL])
def test_no_client_meets_the_app_while_a_daemon_takes_over(shop, failure):
    enforce(shop, failure)
    with knocking(shop) as outcomes:
        old = shop.node.upgrade()
        assert old.wait(60) == 0
        count = len(outcomes)
        until(lambda: len(outcomes) > count + 12, within=20, what="further calls")
    assert set(outcomes) <= {"403", RESET}, set(outcomes)
    assert bypasses(shop) == []
    assert len(kernel.steering(shop.space.pod).links) == 1


def test_a_daemon_takes_over_from_one_whose_ports_are_closed(shop):
    enforce(shop)
    with without_proxy(shop), knocking(shop) as outcomes:
        assert everywhere(shop) == {REFUSED}
        old = shop.node.upgrade()
        until(lambda: everywhere(shop) == {"403"}, within=20, what="the new daemon to serve")
        assert old.wait(60) == 0
        assert everywhere(shop) == {"403"}
    assert set(outcomes) <= {"403", RESET, REFUSED}, set(outcomes)
    assert bypasses(shop) == []


# --- a proxy that lives -----------------------------------------------------------------------------------------------


@pytest.mark.alone
@pytest.mark.parametrize("failure", [IGNORE, FAIL])
def test_an_overloaded_port_is_closed_or_left_to_the_app(shop, failure):
    shop.space.pod.call(lambda: Path("/proc/sys/net/core/somaxconn").write_text("16"))
    enforce(shop, failure)
    port = scene.PLAIN_PORT
    os.kill(shop.proxy(), signal.SIGSTOP)
    with contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(shop.client(port=port)) for _ in range(12)]
        until(lambda: "Overloaded" in shop.conditions(), within=3, what="the valve to shut")
        assert outcome(shop, port) == (REFUSED if failure == FAIL else "200")
        for client in waiting:
            client.sock.settimeout(10)
            assert client.get("/").status == 200
    if failure == FAIL:
        until(lambda: everywhere(shop) == {"403"}, within=15, what="the ports to be steered again")
        assert bypasses(shop) == []


# --- what cannot be read ----------------------------------------------------------------------------------------------

TLS_HELLO = object()
"""Stands for a TLS handshake and a request."""

UNREADABLE = {
    "another protocol": (scene.PLAIN_PORT, b"SSH-2.0-client\r\n/admin", "not_http"),
    "two lengths": (
        scene.PLAIN_PORT,
        b"POST /admin HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "",
    ),
    "a bare line feed": (scene.PLAIN_PORT, b"GET /admin HTTP/1.1\nHost: a\n\n", ""),
    "clear text where TLS is spoken": (scene.TLS_PORT, b"GET /admin HTTP/1.1\r\nHost: a\r\n\r\n", "clear_on_tls_port"),
    "TLS where clear text is spoken": (scene.PLAIN_PORT, TLS_HELLO, "tls_on_clear_port"),
}
"""Port, what the client says, and the reason under which it is counted (empty: any)."""


def counted(shop, outcome, reason):
    names = [name for name in pod(shop)["counters"] if name.startswith(f"inspection_{outcome}_{reason}")]
    return sum(pod(shop)["counters"][name] for name in names)


def say(shop, port, words):
    """Say something, and read until the other side ends or is silent for a second."""
    tls = client_context(shop.authority.pem) if words is TLS_HELLO else None
    request = b"GET /admin HTTP/1.1\r\nHost: a\r\n\r\n" if words is TLS_HELLO else words
    with contextlib.suppress(OSError, ClosedError):
        name = scene.HOST if tls else None
        with Client(shop.space.ip, port, netns=shop.space.client, tls=tls, server_name=name, within=3.0) as client:
            client.send(request)
            client.reader.fill()


@pytest.mark.parametrize("failure", [IGNORE, FAIL])
def test_what_cannot_be_read_is_closed_or_passed_and_counted(shop, failure):
    enforce(shop, failure)
    for name, (port, words, reason) in UNREADABLE.items():
        forget(shop)
        arrived = "closed" if failure == FAIL else "bypassed"
        before = counted(shop, arrived, reason)
        say(shop, port, words)
        until(
            lambda arrived=arrived, reason=reason, before=before: counted(shop, arrived, reason) > before,
            within=5,
            what=lambda name=name: f"{name} to be counted: {pod(shop)['counters']}",
        )
        received = [bytes(each.reader.received) for app in shop.apps for each in app.connections]
        if failure == FAIL:
            assert not any(received), (name, received)
        else:
            assert any(each.connections for each in shop.apps), name


@pytest.mark.parametrize("failure", [IGNORE, FAIL])
def test_an_upgrade_that_cannot_be_read_is_closed_or_passed_and_counted(shop, failure):
    enforce(shop, failure)
    with shop.client(port=scene.PLAIN_PORT) as client:
        client.sock.settimeout(5)
        client.send(b"GET /shout HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: shouting\r\n\r\n/admin\n")
        if failure == FAIL:
            with pytest.raises((ClosedError, OSError)):
                client.reader.until(b"/ADMIN\n")
        else:
            client.reader.until(b"/ADMIN\n")
    assert bool(bypasses(shop)) is (failure == IGNORE)
    arrived = "closed" if failure == FAIL else "bypassed"
    until(lambda: counted(shop, arrived, "h1_upgrade"), within=5, what=lambda: f"the count: {pod(shop)['counters']}")


# --- certificates -----------------------------------------------------------------------------------------------------

CERTIFICATES = {
    "none is configured": lambda documents, shop: documents[2]["metadata"]["annotations"].pop(
        f"telepresence.io/downstream-tls-secret.{scene.TLS_PORT}"
    ),
    "its Secret is missing": lambda documents, shop: documents.pop(),
    "it is broken": lambda documents, shop: documents[-1]["data"].update({"tls.crt": "bm90IGEgY2VydGlmaWNhdGU="}),
}


@pytest.mark.parametrize("failure", [IGNORE, FAIL])
@pytest.mark.parametrize("what", CERTIFICATES)
def test_a_tls_port_that_cannot_be_opened_is_closed_or_carried_end_to_end(shop, what, failure):
    documents = scene.documents(shop.space, shop.own_certificate)
    CERTIFICATES[what](documents, shop)
    shop.node.write("orders.yaml", *documents)
    enforce(shop, failure, wait=False)
    until(lambda: outcome(shop, scene.PLAIN_PORT) == "403", within=10, what=lambda: f"{shop.conditions()}")
    forget(shop)
    arrived = "closed" if failure == FAIL else "bypassed"

    def met():
        return {outcome(shop, scene.TLS_PORT, address=ip) for ip in shop.space.ips}

    if failure == FAIL:
        until(lambda: met() <= {RESET, REFUSED}, within=10, what=lambda: f"TLS to be refused: {shop.conditions()}")
        forget(shop)
        assert met() <= {RESET, REFUSED}
        assert bypasses(shop) == []
        assert not any(bytes(each.reader.received) for each in shop.apps[1].connections)
    else:
        assert met() == {"200"}
    until(lambda: counted(shop, arrived, "tls_without_certificate") > 0, within=5, what=lambda: f"{pod(shop)}")


# --- who decides ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", [IGNORE, FAIL])
def test_a_pod_is_open_until_the_policy_is_programmed_there_and_the_time_is_counted(shop, failure):
    zygote = shop.node.zygote()
    os.kill(zygote, signal.SIGSTOP)  # no proxy starts
    try:
        enforce(shop, failure, wait=False)

        def open_seconds():
            pods = shop.node.status()["pods"]
            found = [each for one in pods for each in one["uninspected"] if each["reason"] == "not-programmed"]
            return sum(each["seconds"] for each in found if each["outcome"] == "open")

        until(open_seconds, within=10, what=lambda: f"the time to be counted: {shop.node.status()}")
        assert everywhere(shop) == {"200"}
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(zygote, signal.SIGCONT)
    wait_programmed(shop, within=30)
    until(lambda: everywhere(shop) == {"403"}, within=20, what="the policy to be enforced")
    assert open_seconds() > 0


OWNERS = {
    "no inspection": {"sidestep.dev/inspection": "false"},
    "no steering": {"sidestep.dev/enabled": "false"},
    "another namespace": {"sidestep.dev/namespaces": "bank"},
    "no pods": {"sidestep.dev/max-pods": "0"},
}


@pytest.mark.parametrize("failure", [IGNORE, FAIL])
@pytest.mark.parametrize("annotations", OWNERS.values(), ids=OWNERS)
def test_a_node_that_refuses_leaves_its_pods_open_with_a_condition(shop, annotations, failure):
    enforce(shop, failure)
    assert everywhere(shop) == {"403"}
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "here", "annotations": annotations}}
    shop.node.write("node.yaml", node)
    until(lambda: everywhere(shop) == {"200"}, within=10, what=lambda: f"the ports to open: {shop.conditions()}")
    until(lambda: "NotInspected" in shop.conditions(), within=10, what=lambda: f"the condition: {shop.conditions()}")


def test_the_nodes_owner_decides_even_over_a_port_that_is_closed(shop):
    enforce(shop)
    with without_proxy(shop):
        assert everywhere(shop) == {REFUSED}
        node = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": "here", "annotations": {"sidestep.dev/inspection": "false"}},
        }
        shop.node.write("node.yaml", node)
        until(lambda: everywhere(shop) == {"200"}, within=10, what="the ports to open")
        until(lambda: "NotInspected" in shop.conditions(), within=5, what="the condition")


@pytest.mark.parametrize("failure", [IGNORE, FAIL])
def test_a_policy_that_was_never_accepted_leaves_its_pods_open_with_a_condition(shop, failure):
    invalid = {"name": "broken", "patterns": [{"regex": "("}], "action": "Block"}
    shop.node.write(FILE, policy(rule(), invalid, failurePolicy=failure))
    until(lambda: "PolicyInvalid" in shop.conditions(), within=10, what="the policy to be refused")
    assert everywhere(shop) == {"200"}
    assert not shop.node.status()["pods"]


def test_an_invalid_edit_keeps_what_a_policy_closed(shop):
    enforce(shop)
    with without_proxy(shop):
        enforce(shop, "Sometimes", wait=False)
        until(lambda: "PolicyInvalid" in shop.conditions(), within=10, what="the policy to be refused")
        assert everywhere(shop) == {REFUSED}
        assert view(shop) is not None
