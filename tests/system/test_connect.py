"""Connections that a pod makes for a developer, with the real daemon, a real proxy in the pod, and real peers."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from pathlib import Path

import dns.message
import pytest

from tests.harness.peers import Server, http_app
from tests.harness.pod_world import connect, curl, orders
from tests.harness.waiting import until
from tests.harness.warm import SIDESTEP, run


@pytest.fixture
def pod(tmp_path):
    with orders(tmp_path) as found:
        yield found


def test_a_command_reaches_by_name_what_only_the_pod_reaches(pod):
    space, daemon = pod
    with Server(http_app, name="database", netns=space.client, address=space.client_ip) as server:
        words = ["connect", "orders", "-n", "shop", "--socket", daemon.socket, "--"]
        for url in (
            f"http://db:{server.port}/",
            f"http://db.shop:{server.port}/",
            f"http://{space.client_ip}:{server.port}/",
        ):
            command = ["curl", "-sS", "--max-time", "30", url]
            done = run([SIDESTEP, *words, *command], within=60)
            assert (done.returncode, done.stdout) == (0, "database\n"), done.stderr
        assert {each.peer[0] for each in server.connections} == {space.ip}
    assert daemon.status()["intercepts"] == []


INTERCEPT = ("intercept", "--port", "9999:http", "--plaintext", "--http-header", "x-dev=ada", "--outbound")


@pytest.mark.parametrize("made", [("connect",), INTERCEPT], ids=["connect", "intercept"])
def test_a_command_without_proxy_settings_connects_through_the_pod(pod, made):
    """A real curl that looks at no variable, and is the child of a shell."""
    space, daemon = pod
    with (
        Server(http_app, name="database", netns=space.client, address=space.client_ip) as server,
        Server(http_app, name="app", netns=space.pod, address="0.0.0.0", port=8080),
    ):
        words = [SIDESTEP, *made, "orders", "-n", "shop", "--socket", daemon.socket, "--transparent", "--"]
        script = f"""
            stat -c "%a %u" "$PROXYCHAINS_CONF_FILE" >&3
            echo "$PROXYCHAINS_CONF_FILE" >&3
            for host in db {space.client_ip}; do
                curl -sS --noproxy "*" --max-time 30 http://$host:{server.port}/ >&3
            done
            exit 7
        """
        said = Path(daemon.folder / "said")
        done = run([*words, "bash", "-c", f"exec 3>{said}\n{script}"], within=90)
        assert done.returncode == 7, done.stderr + done.stdout
        mode, conf, *bodies = said.read_text().splitlines()
        assert (mode, bodies) == (f"600 {os.getuid()}", ["database", "database"]), done.stderr
        assert not Path(conf).parent.exists()
        assert {each.peer[0] for each in server.connections} == {space.ip}
        done = run([*words, "curl", "-sS", "--noproxy", "*", f"http://nobody:{server.port}/"], within=90)
        assert done.returncode not in {0, 1}  # curl's own
        assert "No connection to nobody" in done.stderr
    assert daemon.status()["intercepts"] == []


def test_socks_and_http_on_one_port(pod, tmp_path):
    space, daemon = pod
    with Server(http_app, name="database", netns=space.client, address=space.client_ip) as server:
        with connect(daemon, tmp_path) as connection:
            there, urls = f"db:{server.port}", connection.urls
            for proxy, options in (
                (urls["ALL_PROXY"], ()),
                (urls["HTTP_PROXY"], ()),
                (urls["HTTP_PROXY"], ("--proxytunnel",)),
                (f"socks5h://127.0.0.1:{connection.port}", ()),
            ):
                assert curl(proxy, f"http://{there}/", *options)[:2] == (0, "database\n")
            body = curl(urls["HTTP_PROXY"], f"http://{there}/echo", "--data", "a=1")
            assert body[:2] == (0, "a=1")
        assert connection.process.running is False
    assert "Traceback" not in connection.said


def deny(daemon, networks):
    """What the Node says."""
    daemon.write("node.yaml", {
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": socket.gethostname(), "annotations": {"sidestep.dev/outbound-deny": networks}},
        "status": {"addresses": [{"type": "ExternalIP", "address": "198.51.100.77"}]},
    })  # fmt: skip


def test_destinations_that_are_denied(pod, tmp_path):
    space, daemon = pod
    deny(daemon, "203.0.113.0/24")
    with Server(http_app, name="own", netns=space.pod, address="0.0.0.0") as own, connect(daemon, tmp_path) as one:
        for host, reason in (
            ("169.254.169.254", "link-local"),
            ("[::ffff:169.254.169.254]", "link-local"),
            ("127.0.0.1", "the pod's own"),
            ("localhost", "the pod's own"),
            ("0.0.0.0", "of no host"),
            (space.ip, "the pod's own"),
            ("orders-1", "the pod's own"),
            ("100.100.100.200", "metadata"),
            ("203.0.113.7", "outbound-deny"),
            ("198.51.100.77", "the node's own"),
            ("239.1.1.1", "multicast"),
        ):
            code, body, said = curl(one.urls["HTTP_PROXY"], f"http://{host}:{own.port}/")
            assert code == 0, said
            assert "is refused" in body, (host, body)
            assert reason in body, (host, body)
        assert own.connections == []
        assert "is refused" in one.said
    with (
        Server(http_app, name="own", netns=space.pod, address="0.0.0.0") as own,
        connect(daemon, tmp_path, "--allow-loopback") as one,
    ):
        for host in ("localhost", space.ip):
            assert curl(one.urls["ALL_PROXY"], f"http://{host}:{own.port}/")[:2] == (0, "own\n")
        assert "link-local" in curl(one.urls["HTTP_PROXY"], "http://169.254.169.254/")[1]
        with (
            Server(http_app, name="database", netns=space.client, address=space.client_ip) as server,
            socket.create_connection(("127.0.0.1", one.port), timeout=30) as open_one,
        ):
            open_one.sendall(f"CONNECT db:{server.port} HTTP/1.1\r\nHost: db\r\n\r\n".encode())
            assert open_one.recv(100).startswith(b"HTTP/1.1 200 ")
            deny(daemon, f"{space.client_ip}/32")
            with pytest.raises(ConnectionResetError):
                open_one.recv(1)
            place = f"db:{server.port} ({space.client_ip})"
            reason = f"the node has ended the connection to {place}: the node denies it"
            until(lambda: reason in one.said, within=20, what=lambda: one.said)


def test_the_node_itself_is_denied(pod, tmp_path):
    _, daemon = pod
    found = subprocess.run(["hostname", "-I"], capture_output=True, text=True, timeout=10, check=True).stdout.split()
    with connect(daemon, tmp_path) as one:
        for address in found[:4]:
            host = f"[{address}]" if ":" in address else address
            body = curl(one.urls["HTTP_PROXY"], f"http://{host}:10250/")[1]
            assert "it is the node's own" in body or "link-local" in body


def test_failures_are_told_in_words(pod, tmp_path):
    space, daemon = pod
    with connect(daemon, tmp_path) as one:
        proxy = one.urls["HTTP_PROXY"]
        body = curl(proxy, "http://nowhere.pay/")[1]
        assert "the pod knows no host nowhere.pay (asked for nowhere.pay.shop.svc.cluster.test" in body
        assert f"{space.client_ip}:9 refused the connection" in curl(proxy, f"http://{space.client_ip}:9/")[1]
        socks = curl(f"socks5h://127.0.0.1:{one.port}", "http://nowhere.pay/")
        assert socks[0] == 97
        assert "nowhere.pay" in one.said


def test_datagrams_reach_the_name_server_that_the_pod_reaches(pod, tmp_path):
    """A real client of DNS over UDP through SOCKS5, and a real server in another network namespace."""
    space, daemon = pod
    with connect(daemon, tmp_path) as one, socket.create_connection(("127.0.0.1", one.port), timeout=30) as control:
        control.sendall(b"\x05\x01\x00\x05\x03\x00\x01\0\0\0\0\0\0")
        reply = b""
        while len(reply) < 12:
            reply += control.recv(12 - len(reply))
        assert reply[:6] == b"\x05\0\x05\0\0\x01"
        question = dns.message.make_query("db.shop.svc.cluster.test", "A")
        there = b"\0\0\0\x01" + socket.inet_aton(space.client_ip) + b"\0\x35"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(5)
            answer = b""
            for _ in range(5):
                sock.sendto(
                    there + question.to_wire(), (socket.inet_ntoa(reply[6:10]), int.from_bytes(reply[10:], "big"))
                )
                with contextlib.suppress(TimeoutError):
                    answer = sock.recv(4096)
                    break
        assert answer[:10] == there
        [record] = dns.message.from_wire(answer[10:]).answer
        assert [each.address for each in record] == [space.client_ip]
