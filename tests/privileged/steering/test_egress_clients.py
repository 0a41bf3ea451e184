"""Clients in a steered pod, beside the same clients in a pod that is left alone."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path

import msgspec
import pytest

from tests.harness.processes import child
from tests.harness.waiting import until
from tests.privileged.steering.answering import app
from tests.privileged.steering.outbound import PORT, Outbound, client, outbound, own, told

pytestmark = pytest.mark.privileged

MPTCP = 262
HAS_MPTCP = Path("/proc/sys/net/mptcp/enabled")


def directly(out: Outbound, host: str, port: int = PORT, **options) -> dict:
    """What a client sees that is in the pod's namespace, but in no cgroup that is steered."""
    return told(out.space.pod.enter(client(host, port, **options)))


def without_port(seen: dict) -> dict:
    """What a client saw, but for its own port, which the kernel chooses."""
    return {**seen, **({"local": seen["local"][0]} if "local" in seen else {})}


@pytest.mark.parametrize(
    "options",
    [{}, {"nonblocking": True}, {"fastopen": True}, {"protocol": MPTCP}, {"protocol": MPTCP, "only": 1}],
    ids=str,
)
def test_a_client_sees_what_it_sees_without_us(egress_programs, dual_stack_pod, folder, options):
    pod = dual_stack_pod
    with outbound(egress_programs, pod, folder) as out, app(pod.client, "::", PORT):
        for host in (pod.client_ip, pod.client_ip6):
            given = {key: value for key, value in options.items() if key != "only" or ":" in host}
            assert without_port(out.connect(host, **given)) == without_port(directly(out, host, **given))
        without_mptcp = "protocol" in options and not HAS_MPTCP.exists()  # as in Debian's 5.10
        assert out.counted() == ({} if without_mptcp else {"steered": 2})
        until(lambda: out.steering.open_entries() == 0, within=10, what="the entries to be released")


@pytest.mark.parametrize("nonblocking", [False, True])
def test_a_refused_dial_is_a_reset_at_first_and_then_what_it_is_without_us(
    egress_programs, dual_stack_pod, folder, nonblocking
):
    pod = dual_stack_pod
    with outbound(egress_programs, pod, folder) as out, app(pod.client, "::", PORT):
        for host in (pod.client_ip, pod.client_ip6):
            assert out.connect(host, PORT + 1, nonblocking=nonblocking)["error"] == "ECONNRESET"
            out.steering.unreachable(ip_address(host), PORT + 1, seconds=3600)
            seen = out.connect(host, PORT + 1, nonblocking=nonblocking)
            assert seen == directly(out, host, PORT + 1, nonblocking=nonblocking)
            assert seen["error"] == "ECONNREFUSED"
            assert out.connect(host)["answer"] == "app"
        assert out.counted() == {"steered": 4, "down": 2}


def test_a_destination_that_did_not_answer_is_steered_again_after_a_while(egress_programs, dual_stack_pod, folder):
    pod = dual_stack_pod
    with outbound(egress_programs, pod, folder) as out, app(pod.client, "::", PORT):
        out.steering.unreachable(ip_address(pod.client_ip), PORT, seconds=3600)
        assert out.connect(pod.client_ip)["answer"] == "app"
        assert out.counted() == {"down": 1}
        out.steering.unreachable(ip_address(pod.client_ip), PORT, seconds=0)

        def steered() -> bool:
            assert out.connect(pod.client_ip)["answer"] == "app"
            return out.steering.counters()["steered"] > 0

        until(steered, within=10, what="the destination to be steered again")


def test_with_fail_a_destination_that_did_not_answer_is_refused(egress_programs, dual_stack_pod, folder):
    pod = dual_stack_pod
    config = msgspec.structs.replace(own(pod), fail=True)
    with outbound(egress_programs, pod, folder, config) as out, app(pod.client, "::", PORT):
        out.steering.unreachable(ip_address(pod.client_ip), PORT, seconds=3600)
        assert out.connect(pod.client_ip) == {"error": "EPERM"}
        assert out.connect(pod.client_ip6)["answer"] == "app"
        assert out.counted() == {"down": 1, "closed": 1, "steered": 1}


SERVER = """
import http.server, socket, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = f"from {self.client_address[0]}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *words):
        pass
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
server = Server(("::", int(sys.argv[1])), Handler)
print("ready", flush=True)
server.serve_forever()
"""


@contextlib.contextmanager
def web_server(out: Outbound):
    command = out.space.client.enter([sys.executable, "-c", SERVER, str(PORT)])
    with child(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield
        finally:
            process.kill()


def fetched(out: Outbound, *words: str) -> str:
    """What curl got, and the addresses of its connection."""
    format_ = " %{remote_ip} %{remote_port} %{local_ip} %{exitcode}"
    return out.run("curl", "-s", "--max-time", "60", "-w", format_, *words).stdout


def test_curl_and_its_choice_among_several_addresses(egress_programs, dual_stack_pod, folder):
    pod = dual_stack_pod
    url, nowhere = f"http://shop.test:{PORT}/", "2001:db8::5"
    with outbound(egress_programs, pod, folder) as out, web_server(out):
        both = ["--resolve", f"shop.test:{PORT}:{pod.client_ip6},{pod.client_ip}", url]
        assert fetched(out, *both) == f"from {pod.ip6} {pod.client_ip6} {PORT} {pod.ip6} 0"
        assert fetched(out, "-4", *both) == f"from ::ffff:{pod.ip} {pod.client_ip} {PORT} {pod.ip} 0"
        one = ["--resolve", f"shop.test:{PORT}:{nowhere},{pod.client_ip}", url]
        out.steering.unreachable(ip_address(nowhere), PORT, seconds=3600)
        assert fetched(out, *one) == f"from ::ffff:{pod.ip} {pod.client_ip} {PORT} {pod.ip} 0"
        assert out.counted() == {"steered": 3, "down": 1}


EVERY = """
import random, socket, sys
hosts, ports, count = sys.argv[1].split(","), [int(each) for each in sys.argv[2].split(",")], int(sys.argv[3])
for _ in range(count):
    host, port = random.choice(hosts), random.choice(ports)
    with socket.create_connection((host, port), timeout=60) as sock:
        peer, answer = sock.getpeername()[:2], b""
        while chunk := sock.recv(64):
            answer += chunk
    assert (peer, answer) == ((host, port), str(port).encode()), (host, port, peer, answer)
print("all")
"""


def test_every_connection_reaches_its_own_destination(egress_programs, dual_stack_pod, folder):
    """More connections than entries, from several processes at once."""
    pod, ports, count = dual_stack_pod, range(PORT, PORT + 6), 150
    with contextlib.ExitStack() as stack:
        for port in ports:
            stack.enter_context(app(pod.client, "::", port, str(port).encode()))
        out = stack.enter_context(outbound(egress_programs, pod, folder, entries=128))
        words = [f"{pod.client_ip},{pod.client_ip6}", ",".join(map(str, ports)), str(count)]
        clients = [stack.enter_context(out.start(sys.executable, "-c", EVERY, *words)) for _ in range(4)]
        for each in clients:
            stack.callback(each.kill)
        for each in clients:
            output, errors = each.communicate(timeout=200)
            assert (output, each.returncode) == ("all\n", 0), errors
        assert out.counted() == {"steered": 4 * count}
        until(lambda: out.steering.open_entries() == 0, within=10, what="the entries to be released")
