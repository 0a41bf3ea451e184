"""Outbound connections of a pod: which are sent to the proxy, what apps see, and what is left alone."""

from __future__ import annotations

import contextlib
import socket
from ipaddress import ip_address, ip_network

import msgspec
import pytest

from sidestep.model.pod import Family, Transport
from sidestep.netns import tcp_listener
from sidestep.steering import EVERYWHERE, NOT_EXTERNAL, Steering
from tests.harness.cgroups import inside
from tests.harness.namespaces import pod_namespace
from tests.harness.waiting import until
from tests.privileged.steering.answering import Answering, app, ask
from tests.privileged.steering.outbound import PORT, client, outbound, own, told

pytestmark = pytest.mark.privileged

SO_NETNS_COOKIE = 71


def tells_namespaces() -> bool:
    """Whether the kernel tells the number of a socket's namespace (Linux 5.14)."""
    with socket.socket() as sock:
        try:
            return bool(sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8))
        except OSError:
            return False


def peers(server: Answering) -> set[str]:
    return {host.removeprefix("::ffff:") for host, _ in server.remotes}


def test_connections_go_through_the_proxy_and_the_app_sees_what_it_would_see(egress_programs, pod, folder):
    with outbound(egress_programs, pod, folder) as out, app(pod.client, "::" if pod.ip6 else "0.0.0.0", PORT) as server:
        clients = [pod.client_ip, *([pod.client_ip6] if pod.client_ip6 else [])]
        for host, mine in zip(clients, pod.ips, strict=True):
            seen = out.connect(host)
            assert seen == {"peer": [host, PORT], "local": [mine, seen["local"][1]], "answer": "app"}
        assert [(str(each.address), each.port) for each in out.proxy.originals] == [(ip, PORT) for ip in clients]
        assert out.counted() == {"steered": len(clients)}
        assert peers(server) == set(pod.ips)


@pytest.mark.parametrize(
    "options",
    [
        {"nonblocking": True},
        {"only": 1},
        {"only": 0},
        {"bind": ["{own}", 0]},
        {"bind": ["{own}", 40123]},
        {"bind": ["{any}", 40124]},
        {"bind": ["{any}", 40125], "nonblocking": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("version", [4, 6])
def test_every_kind_of_socket_is_steered(egress_programs, dual_stack_pod, folder, options, version):
    pod = dual_stack_pod
    host, mine, everywhere = (pod.client_ip, pod.ip, "0.0.0.0") if version == 4 else (pod.client_ip6, pod.ip6, "::")
    if version == 4:
        options = {key: value for key, value in options.items() if key != "only"}
    if "bind" in options:
        address, port = options["bind"]
        options = {**options, "bind": [address.format(own=mine, any=everywhere), port]}
    with outbound(egress_programs, pod, folder) as out, app(pod.client, "::", PORT):
        seen = out.connect(host, **options)
        assert (seen["peer"], seen["answer"]) == ([host, PORT], "app")
        if "bind" not in options or options["bind"][0] == mine:
            assert seen["local"][0] == mine
        if options.get("nonblocking"):
            assert seen["began"] == "EINPROGRESS"
        assert out.counted() == {"steered": 1}


def test_a_mapped_address_is_an_ipv4_destination(egress_programs, dual_stack_pod, folder):
    pod = dual_stack_pod
    with outbound(egress_programs, pod, folder) as out, app(pod.client, "0.0.0.0", PORT):
        seen = out.connect(f"::ffff:{pod.client_ip}")
        assert seen["peer"] == [f"::ffff:{pod.client_ip}", PORT]
        assert seen["local"][0] == f"::ffff:{pod.ip}"
        assert seen["answer"] == "app"
        assert out.proxy.originals[0].address == ip_address(pod.client_ip)


def test_only_processes_of_the_pods_cgroup_are_steered(egress_programs, dual_stack_pod, folder):
    pod = dual_stack_pod
    with outbound(egress_programs, pod, folder) as out, app(pod.client, "::", PORT):
        assert told(pod.pod.enter(client(pod.client_ip)))["answer"] == "app"
        assert told(pod.pod.enter(client(pod.client_ip6)))["answer"] == "app"
        assert ask(pod.pod, pod.client_ip, PORT) == b"app"
        assert out.proxy.originals == []
        assert out.counted() == {}


def test_a_namespace_below_the_pods_cgroup_that_is_not_the_pods_is_left_alone(egress_programs, dual_stack_pod, folder):
    with (
        outbound(egress_programs, dual_stack_pod, folder) as out,
        pod_namespace() as other,
        app(other.client, "::", PORT),
    ):
        assert told(inside(folder, other.pod.enter(client(other.client_ip))))["answer"] == "app"
        assert told(inside(folder, other.pod.enter(client(other.client_ip6))))["answer"] == "app"
        assert out.counted() == {"unreachable" if tells_namespaces() else "failed": 2}


def test_containers_have_cgroups_below_the_pods(egress_programs, dual_stack_pod, folder):
    pod = dual_stack_pod
    (folder / "before").mkdir()
    with outbound(egress_programs, pod, folder) as out, app(pod.client, "::", PORT):
        (folder / "after").mkdir()
        for each in ("before", "after"):
            seen = told(inside(folder / each, pod.pod.enter(client(pod.client_ip))))
            assert (seen["answer"], seen["peer"]) == ("app", [pod.client_ip, PORT])
        assert out.counted() == {"steered": 2}


def test_a_socket_that_is_bound_to_a_device_is_left_alone(egress_programs, dual_stack_pod, folder):
    pod = dual_stack_pod
    with outbound(egress_programs, pod, folder) as out, app(pod.client, "::", PORT):
        assert out.connect(pod.client_ip, device="eth0")["answer"] == "app"
        assert out.connect(pod.client_ip6, device="eth0")["answer"] == "app"
        assert out.counted() == {"unreachable": 2}


def test_dials_inside_the_pod_are_left_alone(egress_programs, dual_stack_pod, folder):
    pod = dual_stack_pod
    with outbound(egress_programs, pod, folder) as out, app(pod.pod, "::", PORT, b"own"):
        for host in ("127.0.0.1", "::1", "0.0.0.0", "::", "127.200.0.1", *pod.ips):
            assert out.connect(host)["answer"] == "own", host
        assert out.proxy.originals == []
        assert out.counted() == {"loopback": 5, "unselected": 2}


def test_the_longest_prefix_and_the_port_decide(egress_programs, dual_stack_pod, folder):
    pod = dual_stack_pod
    around = ip_network(f"{pod.client_ip}/24", strict=False)
    config = msgspec.structs.replace(own(pod), passed=(*NOT_EXTERNAL, around))
    with outbound(egress_programs, pod, folder, config) as out, app(pod.client, "::", PORT):
        assert out.connect(pod.client_ip)["answer"] == "app"
        assert out.counted() == {"unselected": 1}
        steered = (*EVERYWHERE, ip_network(f"{pod.client_ip}/32"))
        for number, (ports, count) in enumerate([(None, 1), (frozenset({443}), 1), (frozenset({443, PORT}), 2)]):
            out.steering.update(msgspec.structs.replace(config, steered=steered, ports=ports))
            assert out.connect(pod.client_ip)["answer"] == "app", number
            assert out.steering.counters()["steered"] == count
        out.steering.update(msgspec.structs.replace(config, steered=()))
        assert out.connect(pod.client_ip)["answer"] == "app"
        assert out.connect(pod.client_ip6)["answer"] == "app"
        assert out.counted() == {"unselected": 4, "steered": 2}


@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.parametrize("how", ["unserved", "listener closed"])
def test_without_a_listener_connections_go_out_or_are_refused(egress_programs, dual_stack_pod, folder, fail, how):
    pod = dual_stack_pod
    config = msgspec.structs.replace(own(pod), fail=fail)
    with outbound(egress_programs, pod, folder, config) as out, app(pod.client, "::", PORT):
        if how == "unserved":
            out.steering.unserve()
            out.steering.unserve()
        else:
            out.proxy.stop()
            out.proxy.listener.close()
        for host in (pod.client_ip, pod.client_ip6):
            seen = out.connect(host)
            assert seen == {"error": "EPERM"} if fail else seen["answer"] == "app"
        assert out.counted() == {"unserved": 2, **({"closed": 2} if fail else {})}
        with tcp_listener(out.netns, backlog=8) as listener:
            out.steering.serve(listener.fileno())
            for host in (pod.client_ip, pod.client_ip6):
                assert out.connect(host, mute=True)["peer"] == [host, PORT]
        assert out.steering.counters()["steered"] == 2


def test_a_pod_without_an_ipv6_address_is_steered_over_ipv4_only(egress_programs, dual_stack_pod, folder):
    pod = dual_stack_pod
    config = msgspec.structs.replace(own(pod), own=(ip_address(pod.ip),))
    with outbound(egress_programs, pod, folder, config) as out, app(pod.client, "::", PORT):
        assert out.connect(pod.client_ip6)["answer"] == "app"
        assert out.connect(pod.client_ip)["answer"] == "app"
        assert out.counted() == {"unreachable": 1, "steered": 1}


UDP = """
import errno, json, socket, sys
host, port, connected = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "connected"
sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
try:
    if connected:
        sock.connect((host, port))
        sock.send(b"hello")
    else:
        sock.sendto(b"hello", (host, port))
    print("sent")
except OSError as error:
    print(errno.errorcode[error.errno])
"""


@pytest.mark.parametrize("block", [True, False])
def test_quic_is_refused_where_the_configuration_says_so_and_other_datagrams_never(
    egress_programs, dual_stack_pod, folder, block
):
    pod = dual_stack_pod
    config = msgspec.structs.replace(own(pod), block_quic=block)
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(outbound(egress_programs, pod, folder, config))
        receivers = []
        for port in (443, 53):
            receiver = pod.client.call(lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
            stack.enter_context(receiver)
            receiver.bind(("::", port))
            receiver.settimeout(10)
            receivers.append(receiver)
        for receiver, port in zip(receivers, (443, 53), strict=True):
            refused = block and port == 443
            for host in (pod.client_ip, pod.client_ip6):
                for how in ("connected", "unconnected"):
                    done = out.run("python3", "-c", UDP, host, str(port), how)
                    assert done.stdout.strip() == ("EPERM" if refused else "sent"), done.stderr
                    if not refused:
                        assert receiver.recv(64) == b"hello"
        assert out.run("python3", "-c", UDP, "127.0.0.1", "443", "unconnected").stdout == "sent\n"
        assert out.counted() == ({"quic_blocked": 4} if block else {})


def test_a_pod_is_steered_in_both_directions_on_one_port(program, egress_programs, dual_stack_pod, folder):
    """Over IPv6 the index of the entry is the port that is looked up: all of a small table are steered inbound, too."""
    pod, indices = dual_stack_pod, range(1, 4)
    with (
        outbound(egress_programs, pod, folder, entries=4) as out,
        app(pod.client, "::", PORT),
        Steering.attach(program, out.netns.fd) as steering,
        Answering(tcp_listener(out.netns, backlog=16), b"inbound") as inbound,
    ):
        for family in Family:
            for port in (PORT, *indices):
                steering.steer(port, Transport.TCP, family, inbound.listener.fileno())
                steering.close_port(port, Transport.TCP, family)
        assert [ask(pod.client, ip, PORT) for ip in pod.ips] == [b"inbound"] * 2
        assert [out.connect(host)["answer"] for host in (pod.client_ip, pod.client_ip6)] == ["app"] * 2
        for port in (PORT, *indices):
            for family in Family:
                steering.unsteer(port, Transport.TCP, family)
        assert [out.connect(host)["answer"] for host in (pod.client_ip, pod.client_ip6)] == ["app"] * 2
        assert out.counted() == {"steered": 4}


def test_an_entry_lives_as_long_as_the_apps_socket(egress_programs, dual_stack_pod, folder):
    pod = dual_stack_pod
    with outbound(egress_programs, pod, folder) as out, app(pod.client, "::", PORT):
        for host in (pod.client_ip, pod.client_ip6):
            assert out.connect(host)["answer"] == "app"
        until(lambda: out.proxy.table.in_use() == 0, within=5, what="the entries to be released")
        assert out.steering.open_entries() == 0
