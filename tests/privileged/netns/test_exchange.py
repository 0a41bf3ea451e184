"""Netlink questions are about the namespace of the pod that they name, whoever asks, and leave nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address

import pytest

from sidestep.model.errors import KernelError
from sidestep.model.pod import Family
from sidestep.netns import Netns, addresses, destroy, established, exchange, listening
from sidestep.netns.messages import (
    NETLINK_ROUTE,
    NETLINK_SOCK_DIAG,
    NLM_F_ACK,
    NLM_F_REQUEST,
    SS_LISTEN,
    DiagRequest,
    ListenerAnswer,
    encoded,
    ifaddrmsg,
    list_addresses,
    list_sockets,
)
from tests.harness.namespaces import pod_namespace

pytestmark = pytest.mark.privileged

IPPROTO_NONE = 253  # for experiments (RFC 3692): no kernel diagnoses its sockets
NONSENSE = encoded(DiagRequest(), 99, NLM_F_REQUEST | NLM_F_ACK)


def directly(question):
    return question()


def in_another_thread(question):
    with ThreadPoolExecutor(1) as other:
        return other.submit(question).result()


def in_a_running_loop(question):
    async def ask():
        return question()

    return asyncio.run(ask())


def after_another_pod(question):
    with pod_namespace() as space, Netns.open(str(space.pod.path)) as other:
        listening(other)
        addresses(other)
        established(other, 8080)
        return question()


WAYS = pytest.mark.parametrize("ask", [directly, in_another_thread, in_a_running_loop, after_another_pod])


@WAYS
def test_the_pods_addresses_are_listed_and_not_the_hosts(pod, netns, ask):
    found = ask(lambda: addresses(netns))
    assert {each for each in found if not each.is_loopback and not each.is_link_local} == {
        ip_address(each) for each in pod.ips
    }


@WAYS
def test_the_pods_listeners_are_listed_and_not_the_hosts(pod, netns, ask):
    with (
        socket.create_server(("", 0)) as on_the_host,
        netns.run(lambda: socket.create_server((pod.ip, 8080))),
    ):
        table = ask(lambda: listening(netns))
        assert table.listeners == {(8080, Family.IPV4, ip_address(pod.ip))}
        with Netns.open("/proc/self/ns/net") as host:
            here = ask(lambda: listening(host, [on_the_host.getsockname()[1]]))
        assert len(here.listeners) == 1


@WAYS
def test_the_pods_connections_are_listed_and_ended_and_not_the_hosts(pod, netns, ask):
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(netns.run(lambda: socket.create_server((pod.ip, 8080))))
        client = stack.enter_context(pod.client.call(lambda: socket.create_connection((pod.ip, 8080), 5)))
        stack.enter_context(server.accept()[0])
        (found,) = ask(lambda: established(netns, 8080))
        assert (str(found.client), found.client_port) == client.getsockname()
        with Netns.open("/proc/self/ns/net") as host:
            assert ask(lambda: established(host, 8080)) == ()
            assert ask(lambda: destroy(host, found)) is False
        assert ask(lambda: destroy(netns, found)) is True
        client.settimeout(5)
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_a_connection_whose_cookie_differs_is_not_ended(pod, netns):
    with (
        netns.run(lambda: socket.create_server((pod.ip, 8080))) as server,
        pod.client.call(lambda: socket.create_connection((pod.ip, 8080), 5)),
        server.accept()[0],
    ):
        (found,) = established(netns, 8080)
        sockid = found.sockid._replace(idiag_cookie=found.sockid.idiag_cookie + 1)
        other = type(found)(found.client, found.client_port, found.family, sockid, found.uid)
        assert destroy(netns, other) is False
        assert destroy(netns, found) is True


def test_questions_leave_no_descriptor_and_no_thread():
    with contextlib.ExitStack() as stack:
        spaces = [stack.enter_context(pod_namespace()) for _ in range(5)]

        def state():
            return len(os.listdir("/proc/self/fd")), threading.active_count()

        def ask():
            for space in spaces:
                with Netns.open(str(space.pod.path)) as netns:
                    for _ in range(10):
                        listening(netns)
                        addresses(netns)
                        established(netns, 8080)
                        with pytest.raises(KernelError):
                            exchange.command(netns, NETLINK_SOCK_DIAG, NONSENSE, doing="a test")

        async def ask_often():
            ask()
            before = state()
            for _ in range(5):
                ask()
            assert state() == before

        asyncio.run(ask_often())


def test_what_the_kernel_refuses_is_an_error_and_the_socket_stays(netns):
    request = list_sockets(family=Family.IPV4, protocol=IPPROTO_NONE, state=SS_LISTEN)
    kept = netns.netlink(NETLINK_SOCK_DIAG)
    with pytest.raises(KernelError) as failed:
        list(exchange.dump(netns, NETLINK_SOCK_DIAG, request, answer=ListenerAnswer, doing="a test"))
    assert failed.value.errno == errno.ENOENT
    with pytest.raises(KernelError):
        exchange.command(netns, NETLINK_SOCK_DIAG, NONSENSE, doing="a test")
    assert netns.netlink(NETLINK_SOCK_DIAG) is kept
    assert listening(netns).listeners == frozenset()


def test_a_dump_that_is_not_read_to_its_end_closes_its_socket(netns):
    kept = netns.netlink(NETLINK_ROUTE)
    answers = exchange.dump(netns, NETLINK_ROUTE, list_addresses(), answer=ifaddrmsg, doing="a test")
    next(answers)
    answers.close()
    assert kept.fileno() == -1
    assert addresses(netns)


def test_an_answer_that_does_not_come_is_an_error_and_never_waited_for(netns):
    silent, other_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with silent, other_end:
        netns._kept[NETLINK_SOCK_DIAG] = silent
        with pytest.raises(KernelError) as failed:
            listening(netns)
    assert failed.value.errno == errno.EAGAIN
    assert listening(netns).listeners == frozenset()


@pytest.mark.parametrize(
    ("datagram", "number"),
    [
        (b"\0" * 16, errno.EBADMSG),  # a length of 0
        (b"\xff" * 64, errno.EBADMSG),  # longer than the datagram
        (b"x" * 70_000, errno.EMSGSIZE),
    ],
)
def test_malformed_and_truncated_answers_are_errors(netns, datagram, number):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        netns._kept[NETLINK_SOCK_DIAG] = ours
        theirs.send(datagram)
        with pytest.raises(KernelError) as failed:
            listening(netns)
    assert failed.value.errno == number


def test_a_process_of_the_pod_cannot_answer_in_the_kernels_place(netns):
    port, _ = netns.netlink(NETLINK_SOCK_DIAG).getsockname()

    def forge():
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as forger:
            forger.sendto(b"\0" * 64, (port, 0))

    with pytest.raises(ConnectionRefusedError):
        netns.run(forge)
    assert listening(netns).listeners == frozenset()


def test_a_dump_that_changes_interrupt_is_repeated_and_loses_nothing(pod, netns, monkeypatch):
    monkeypatch.setattr(exchange, "BUFFER", 4096)  # the kernel fills no more with one read: some 40 addresses
    many = {f"10.77.{each // 250}.{each % 250 + 1}" for each in range(250)}
    pod.pod.configure("eth0", [f"{each}/32" for each in many])
    requests = []
    numbered = exchange._numbered
    monkeypatch.setattr(exchange, "_numbered", lambda *about: requests.append(about) or numbered(*about))
    answers = exchange.dump(netns, NETLINK_ROUTE, list_addresses(), answer=ifaddrmsg, doing="a test")
    found = {next(answers).get("IFA_LOCAL")}
    pod.pod.configure("eth0", ["10.78.0.1/32"])
    found.update(answer.get("IFA_LOCAL") for answer in answers)
    assert len(requests) == 2
    assert found > many | {"10.78.0.1"}


def test_a_dump_that_is_always_interrupted_ends(pod, netns, monkeypatch):
    monkeypatch.setattr(exchange, "NLM_F_DUMP_INTR", 0xFFFF)  # NLM_F_MULTI is in all of them
    found = [
        answer.get("IFA_LOCAL")
        for answer in exchange.dump(netns, NETLINK_ROUTE, list_addresses(), answer=ifaddrmsg, doing="a test")
    ]
    assert found.count(pod.ip) == exchange.ATTEMPTS


def test_too_many_answers_are_an_error_that_says_so(pod, netns, monkeypatch):
    monkeypatch.setattr(exchange, "MAX_ANSWERS", 3)
    with netns.run(lambda: socket.create_server((pod.ip, 8080))):
        with pytest.raises(KernelError, match="more than 3") as failed:
            addresses(netns)
        assert failed.value.errno == errno.E2BIG
        assert listening(netns, [8080]).serves(8080, Family.IPV4, [ip_address(pod.ip)])
