"""The listener that steered connections arrive at: who can reach it, and how full it is."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from sidestep.model.errors import KernelError
from sidestep.netns import Netns, accept_queue, queue_length, reset_waiting, tcp_listener
from sidestep.netns.listener import Queue
from tests.harness.namespaces import Netns as NamedNetns
from tests.harness.namespaces import pod_namespace
from tests.harness.waiting import until

pytestmark = pytest.mark.privileged


def connects(netns: NamedNetns, address: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with netns.call(lambda: socket.socket(family)) as client:
        client.settimeout(1)
        try:
            client.connect((address, port))
        except OSError:
            return False
        return True


def test_it_is_dual_stack_on_ipv4_loopback(netns):
    with tcp_listener(netns, backlog=16) as listener:
        assert listener.family == socket.AF_INET6
        assert listener.getsockname()[0] == "::ffff:127.0.0.1"
        assert listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 0
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0
        assert not listener.getblocking()
        assert not listener.get_inheritable()


def test_nobody_outside_the_pod_reaches_it(pod, netns):
    with tcp_listener(netns, backlog=16) as listener:
        port = listener.getsockname()[1]
        pod.client.run("ip", "route", "add", "127.1.0.0/16", "via", pod.ip)
        pod.client.run("sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1")
        for address in (*pod.ips, "127.1.0.1"):
            assert not connects(pod.client, address, port), address
        for address in (*pod.ips, "::1"):
            assert not connects(pod.pod, address, port), address
        assert connects(pod.pod, "127.0.0.1", port)


@pytest.mark.parametrize("settings", [
    ["net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1"],
    ["net.ipv6.conf.lo.disable_ipv6=1"],
    ["net.ipv6.bindv6only=1"],
])  # fmt: skip
def test_it_does_not_need_ipv6_addresses(pod, netns, settings):
    for setting in settings:
        pod.pod.run("sysctl", "-qw", setting)
    with tcp_listener(netns, backlog=16) as listener:
        assert listener.getsockname()[0] == "::ffff:127.0.0.1"
        assert connects(pod.pod, "127.0.0.1", listener.getsockname()[1])


def forbid_ipv6_sockets() -> None:
    """A seccomp filter: socket(AF_INET6, …) fails with EAFNOSUPPORT, as in a kernel without IPv6."""
    number = {"x86_64": 41, "aarch64": 198}[os.uname().machine]
    load, equal, answer = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
    code = b"".join(
        struct.pack("=HBBI", *row)
        for row in (
            (load, 0, 0, 0),
            (equal, 0, 3, number),
            (load, 0, 0, 16),
            (equal, 0, 1, socket.AF_INET6),
            (answer, 0, 0, 0x00050000 | errno.EAFNOSUPPORT),
            (answer, 0, 0, 0x7FFF0000),
        )
    )
    buffer = ctypes.create_string_buffer(code, len(code))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer)))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, program, 0, 0) == 0  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


def listen_without_ipv6(path: str) -> None:
    forbid_ipv6_sockets()
    with Netns.open(path) as netns, tcp_listener(netns, backlog=16) as listener:
        print(listener.family.name, listener.getsockname()[0])


def test_without_ipv6_in_the_kernel_it_is_an_ipv4_socket(pod):
    code = f"import sys; from {__name__} import listen_without_ipv6; listen_without_ipv6(sys.argv[1])"
    child = subprocess.run(
        [sys.executable, "-c", code, str(pod.pod.path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
        cwd=Path(__file__).parents[3],
    )
    assert child.stdout == "AF_INET 127.0.0.1\n", child.stderr


def test_without_a_loopback_interface_it_is_the_kernels_error(tmp_path):
    with pod_namespace() as pod, Netns.open(str(pod.pod.path)) as netns:
        pod.pod.run("ip", "addr", "flush", "dev", "lo")
        pod.pod.run("ip", "link", "set", "lo", "down")
        with pytest.raises(KernelError, match="bind"):
            tcp_listener(netns, backlog=16)


def test_the_queue_is_told(pod, netns):
    with tcp_listener(netns, backlog=8) as listener:
        assert accept_queue(listener) == Queue(0, 8)
        port = listener.getsockname()[1]
        clients = [pod.pod.call(socket.socket) for _ in range(5)]
        try:
            for client in clients:
                client.connect(("127.0.0.1", port))
            until(lambda: queue_length(listener) == 5, within=5, what="five connections to queue")
            accepted, _ = listener.accept()
            accepted.close()
            assert queue_length(listener) == 4
        finally:
            for client in clients:
                client.close()


def test_who_waits_can_be_reset(pod, netns):
    with tcp_listener(netns, backlog=8) as listener:
        clients = [pod.pod.call(socket.socket) for _ in range(5)]
        try:
            for client in clients:
                client.connect(("127.0.0.1", listener.getsockname()[1]))
            until(lambda: queue_length(listener) == 5, within=5, what="five connections to queue")
            assert reset_waiting(listener, most=2) == 2
            assert reset_waiting(listener, most=9) == 3
            for client in clients:
                client.settimeout(5)
                with pytest.raises(ConnectionResetError):
                    client.recv(1)
        finally:
            for client in clients:
                client.close()


def test_a_listener_that_was_ended_has_no_queue(pod, netns):
    with tcp_listener(netns, backlog=8) as listener, tcp_listener(netns, backlog=8) as other:
        pod.pod.run("ss", "-K", "-t", "-l", "sport", "=", f":{listener.getsockname()[1]}")
        assert accept_queue(listener) is None
        assert queue_length(listener) == reset_waiting(listener, most=9) == 0
        assert accept_queue(other) == Queue(0, 8)


def test_the_backlog_is_limited_by_the_namespace(pod, netns):
    pod.pod.run("sysctl", "-qw", "net.core.somaxconn=32")
    with tcp_listener(netns, backlog=4096) as listener:
        assert accept_queue(listener) == Queue(0, 32)


def test_a_closed_listener_has_no_queue(netns):
    listener = tcp_listener(netns, backlog=8)
    listener.close()
    with pytest.raises(KernelError):
        queue_length(listener)
