"""Whether an app serves a port, for every way to listen."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
from ipaddress import ip_address

import pytest

from sidestep.model.errors import KernelError
from sidestep.model.pod import Family
from sidestep.netns import Netns, exchange, listening, tcp_listener
from sidestep.netns.fingerprint import Question, fingerprint
from sidestep.netns.port_filter import MAX_RANGES
from tests.harness.growth import cpu
from tests.harness.namespaces import pod_namespace

pytestmark = pytest.mark.privileged

PORT = 8080


def bind(netns: Netns, address: str, *, port: int = PORT, v6only: bool = False, device: str = "") -> socket.socket:
    def listen() -> socket.socket:
        server = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        if ":" in address:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
        if device:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        server.bind((address, port))
        server.listen(1)
        return server

    return netns.run(listen)


@pytest.mark.parametrize(
    ("address", "options", "ipv4", "ipv6"),
    [
        ("0.0.0.0", {}, True, False),
        ("::", {}, True, True),
        ("::", {"v6only": True}, False, True),
        ("IP", {}, True, False),
        ("::ffff:IP", {}, True, False),
        ("IP6", {}, False, True),
        ("127.0.0.1", {}, False, False),
        ("127.9.9.9", {}, False, False),
        ("::1", {}, False, False),
        ("::ffff:127.0.0.1", {}, False, False),
        ("0.0.0.0", {"device": "lo"}, False, False),
        ("0.0.0.0", {"device": "eth0"}, True, False),
    ],
)
def test_who_is_served(pod, netns, address, options, ipv4, ipv6):
    address = address.replace("IP6", pod.ip6).replace("IP", pod.ip)
    ips = [ip_address(ip) for ip in pod.ips]
    with bind(netns, address, **options):
        table = listening(netns)
        assert table.serves(PORT, Family.IPV4, ips) is ipv4
        assert table.serves(PORT, Family.IPV6, ips) is ipv6
        assert not table.serves(PORT + 1, Family.IPV4, ips)
    assert not listening(netns).serves(PORT, Family.IPV4, ips)


def test_an_address_that_is_not_the_pods_does_not_count(pod, netns):
    pod.pod.run("ip", "addr", "add", "10.50.0.1/32", "dev", "eth0")
    with bind(netns, "10.50.0.1"):
        assert not listening(netns).serves(PORT, Family.IPV4, [ip_address(pod.ip)])
        assert listening(netns).serves(PORT, Family.IPV4, [ip_address(pod.ip), ip_address("10.50.0.1")])


def test_our_own_listener_does_not_count(pod, netns):
    with tcp_listener(netns, backlog=8) as listener:
        port = listener.getsockname()[1]
        table = listening(netns)
        assert not table.serves(port, Family.IPV4, [ip_address(pod.ip), ip_address("127.0.0.1")])
        assert table.listeners == frozenset()


def test_bound_and_connected_sockets_do_not_count(pod, netns):
    with bind(netns, "127.0.0.1") as server, netns.run(socket.socket) as client, netns.run(socket.socket) as bound:
        client.connect(server.getsockname())
        bound.bind((pod.ip, PORT + 1))
        assert listening(netns).listeners == frozenset()


def test_a_pod_without_ipv6(pod):
    with pod_namespace(ipv6=False) as other, Netns.open(str(other.pod.path)) as netns, bind(netns, "::"):
        assert listening(netns).serves(PORT, Family.IPV4, [ip_address(other.ip)])


def test_namespaces_do_not_see_each_other(pod, netns):
    with pod_namespace() as other, Netns.open(str(other.pod.path)) as second, bind(second, "0.0.0.0"):
        assert listening(netns).listeners == frozenset()
        assert len(listening(second).listeners) == 1


def test_thousands_of_listeners_are_listed(pod, netns):
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(2000, soft - 100)
    with contextlib.ExitStack() as stack:
        for port in range(10_000, 10_000 + count):
            stack.enter_context(bind(netns, "::", port=port))
        table = listening(netns)
        assert len(table.listeners) == 2 * count
        assert table.serves(10_000 + count - 1, Family.IPV4, [ip_address(pod.ip)])


@pytest.mark.parametrize(
    "asked",
    [
        {PORT},
        {PORT, PORT + 2},
        {PORT, PORT + 1, PORT + 2},
        {PORT - 1, PORT + 3},
        {1, PORT + 1, 65535},
        set(range(2, 9000, 2)),
    ],
    ids=["one", "two", "a range", "beside", "far", "very many"],
)
def test_only_the_ports_asked_for_are_listed(netns, asked):
    there = range(PORT, PORT + 3)
    with contextlib.ExitStack() as stack:
        for port in there:
            stack.enter_context(bind(netns, "0.0.0.0", port=port))
            stack.enter_context(bind(netns, "::", port=port, v6only=True))
        table = listening(netns, asked)
        listed = {number for number, _, _ in table.listeners}
        assert listed & asked == asked & set(there)
        assert listed == asked & set(there) or len(asked) > MAX_RANGES
        assert len(table.listeners) == 2 * len(listed)


def test_a_question_about_one_port_does_not_read_the_answers_about_thousands(pod, netns):
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(4000, soft - 100)
    ips = [ip_address(pod.ip)]
    with contextlib.ExitStack() as stack:
        for port in range(10_000, 10_000 + count):
            stack.enter_context(bind(netns, "0.0.0.0", port=port))
        assert listening(netns, [10_007]).serves(10_007, Family.IPV4, ips)
        everything, one = cpu(lambda: listening(netns)), cpu(lambda: listening(netns, [10_007]))
        assert one < everything / 5, (one, everything)
        question = Question.about((ips[0], port) for port in range(10_000, 10_010))
        assert len(fingerprint(netns, question)) < 10 * 400


def test_too_many_answers_are_an_error_and_the_next_question_is_answered(netns, monkeypatch):
    with bind(netns, "0.0.0.0"), bind(netns, "0.0.0.0", port=PORT + 1):
        with monkeypatch.context() as limited:
            limited.setattr(exchange, "MAX_ANSWERS", 1)
            with pytest.raises(KernelError):
                listening(netns)
        assert len(listening(netns).listeners) == 2


def test_periodic_questions_cost_no_thread_and_no_descriptor(netns):
    listening(netns)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(200):
        listening(netns)
    assert len(os.listdir("/proc/self/fd")) == before
