"""Closed ports on real connections: who is refused, who is not, and what wins when several programs are attached."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from sidestep.model.pod import Family, Transport
from sidestep.netns import Netns, tcp_listener
from sidestep.steering import CompiledProgram, Steering, programs_attached
from tests.harness import kernel
from tests.harness.namespaces import PodNamespace
from tests.harness.waiting import until
from tests.privileged.steering.answering import REFUSED, Answering, app, ask
from tests.privileged.steering.conftest import PORT, Steered, steered

pytestmark = pytest.mark.privileged

BOTH = [(PORT, Transport.TCP, family) for family in Family]
RETRANSMISSION = 1.0
"""Seconds after which a client repeats a SYN that nobody answers (RFC 6298, 2.1)."""


def close(pair: Steered, port: int = PORT) -> None:
    for family in Family:
        pair.steering.close_port(port, Transport.TCP, family)


def reopen(pair: Steered, port: int = PORT) -> None:
    for family in Family:
        pair.steering.open_port(port, Transport.TCP, family)


@contextlib.contextmanager
def everywhere(pod: PodNamespace) -> Iterator[Answering]:
    """An app on all addresses of the pod."""
    with app(pod.pod, "::" if pod.ip6 else "0.0.0.0", PORT) as running:
        yield running


def asked(pod: PodNamespace) -> list[bytes]:
    """Who answers a client, over each of the pod's addresses."""
    return [ask(pod.client, ip, PORT) for ip in pod.ips]


def test_a_closed_port_refuses_clients_at_once_and_serves_dials_from_inside(program, pod):
    with steered(program, pod) as pair, everywhere(pod) as running:
        close(pair)
        took = []
        for _ in range(5):  # a busy machine may take its time once; a lost SYN takes it each time
            began = time.monotonic()
            assert asked(pod) == [REFUSED] * len(pod.ips)
            took.append(time.monotonic() - began)
        assert min(took) < RETRANSMISSION
        assert running.locals == []
        inside = ["127.0.0.1", *pod.ips, *(["::1"] if pod.ip6 else [])]
        assert [ask(pod.pod, ip, PORT) for ip in inside] == [b"app"] * len(inside)
        reopen(pair)
        assert asked(pod) == [b"app"] * len(pod.ips)


def test_a_closed_port_that_is_steered_is_served_and_refused_once_it_is_not(program, pod):
    with steered(program, pod) as pair, everywhere(pod):
        close(pair)
        pair.steer()
        assert asked(pod) == [b"proxy"] * len(pod.ips)
        pair.unsteer()
        assert asked(pod) == [REFUSED] * len(pod.ips)
        pair.steer()
        assert asked(pod) == [b"proxy"] * len(pod.ips)


def test_other_ports_and_datagrams_are_not_closed(program, dual_stack_pod):
    pod = dual_stack_pod

    def bound() -> socket.socket:
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        receiver.bind((pod.ip, PORT))
        receiver.settimeout(5)
        return receiver

    with (
        steered(program, pod) as pair,
        app(pod.pod, "::", PORT + 1),
        pod.pod.call(bound) as receiver,
        pod.client.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sender,
    ):
        close(pair)
        assert [ask(pod.client, ip, PORT + 1) for ip in pod.ips] == [b"app", b"app"]
        sender.sendto(b"datagram", (pod.ip, PORT))
        assert receiver.recv(64) == b"datagram"


def test_one_family_can_be_closed_alone(program, dual_stack_pod):
    with steered(program, dual_stack_pod) as pair, everywhere(dual_stack_pod):
        pair.steering.close_port(PORT, Transport.TCP, Family.IPV6)
        assert asked(dual_stack_pod) == [b"app", REFUSED]


def test_a_listener_that_ends_does_not_open_a_closed_port(program, pod):
    with steered(program, pod) as pair, everywhere(pod) as running:
        close(pair)
        pair.steer()
        pair.proxy.stop()
        pair.proxy.listener.close()
        assert asked(pod) == [REFUSED] * len(pod.ips)
        assert running.locals == []


def test_a_listener_that_has_stopped_listening_does_not_open_a_closed_port(program, pod):
    """Its entry stays in the map, and the socket is not assigned."""
    with steered(program, pod) as pair, everywhere(pod) as running:
        close(pair)
        pair.steer()
        pair.proxy.stop()
        pair.proxy.listener.shutdown(socket.SHUT_RDWR)
        assert asked(pod) == [REFUSED] * len(pod.ips)
        assert running.locals == []


def test_a_listener_that_cannot_take_the_family_does_not_open_a_closed_port(program, dual_stack_pod):
    pod = dual_stack_pod
    with (
        steered(program, pod) as pair,
        everywhere(pod) as running,
        Answering(pod.pod.call(lambda: socket.create_server(("127.0.0.1", 0))), b"ipv4") as listener,
    ):
        close(pair)
        for family in Family:
            pair.steering.steer(PORT, Transport.TCP, family, listener.listener.fileno())
        assert asked(pod) == [b"ipv4", REFUSED]
        assert running.locals == []


def test_connections_that_exist_go_on(program, pod):
    """Those that the app has accepted, and those that wait for it in its queue."""

    def listen() -> socket.socket:
        return socket.create_server((pod.ip, PORT))

    with (
        steered(program, pod) as pair,
        pod.pod.call(listen) as listener,
        pod.client.call(lambda: socket.create_connection((pod.ip, PORT), timeout=5)) as first,
        pod.client.call(lambda: socket.create_connection((pod.ip, PORT), timeout=5)) as queued,
    ):
        listener.settimeout(5)
        accepted, _ = listener.accept()
        with accepted:
            accepted.settimeout(5)
            close(pair)
            assert ask(pod.client, pod.ip, PORT) == REFUSED
            first.sendall(b"there")
            assert accepted.recv(64) == b"there"
            accepted.sendall(b"back")
            assert first.recv(64) == b"back"
        late, _ = listener.accept()
        with late:
            late.settimeout(5)
            queued.sendall(b"late")
            assert late.recv(64) == b"late"


def test_the_maps_entries_and_the_counters_are_the_kernels(program, dual_stack_pod):
    pod = dual_stack_pod
    with steered(program, pod) as pair, everywhere(pod):
        assert pair.steering.closed_ports() == frozenset()
        close(pair)
        close(pair)
        assert pair.steering.closed_ports() == frozenset(BOTH)
        assert pair.steering.entries() == frozenset()
        asked(pod)
        pair.steer()
        asked(pod)
        counters = pair.steering.counters()
        assert (counters["closed"], counters["steered"], counters["unsteered"]) == (2, 2, 0)
        reopen(pair)
        reopen(pair)
        assert pair.steering.closed_ports() == frozenset()


def test_a_port_can_be_closed_from_the_first_lookup_on(program, pod):
    with everywhere(pod), Netns.open(str(pod.pod.path)) as netns:
        assert programs_attached(netns.fd) == 0
        with Steering.attach(program, netns.fd, closed=BOTH) as steering:
            assert programs_attached(netns.fd) == 1
            assert steering.closed_ports() == frozenset(BOTH)
            assert asked(pod) == [REFUSED] * len(pod.ips)
        assert programs_attached(netns.fd) == 0
        assert asked(pod) == [b"app"] * len(pod.ips)


# --- several programs -------------------------------------------------------------------------------------------------

PASSES, CLOSED, STEERS, BOTH_OF_THEM = "passes", "closed", "steers", "steers and is closed"

OUTCOMES = {
    (PASSES, PASSES): b"app",
    (PASSES, CLOSED): REFUSED,
    (PASSES, STEERS): b"second",
    (PASSES, BOTH_OF_THEM): b"second",
    (CLOSED, PASSES): REFUSED,
    (CLOSED, CLOSED): REFUSED,
    (CLOSED, STEERS): b"second",
    (CLOSED, BOTH_OF_THEM): b"second",
    (STEERS, PASSES): b"first",
    (STEERS, CLOSED): b"first",
    (STEERS, STEERS): b"second",
    (STEERS, BOTH_OF_THEM): b"second",
    (BOTH_OF_THEM, PASSES): b"first",
    (BOTH_OF_THEM, CLOSED): b"first",
    (BOTH_OF_THEM, STEERS): b"second",
    (BOTH_OF_THEM, BOTH_OF_THEM): b"second",
}
"""What the program attached first does, what the second does, and who answers."""


@contextlib.contextmanager
def attached(program: CompiledProgram, netns: Netns, what: str, name: bytes) -> Iterator[Steering]:
    """One program that closes the port, steers it to a listener of its own, does both or neither."""
    with contextlib.ExitStack() as stack:
        steering = stack.enter_context(Steering.attach(program, netns.fd))
        if what in (CLOSED, BOTH_OF_THEM):
            for entry in BOTH:
                steering.close_port(*entry)
        if what in (STEERS, BOTH_OF_THEM):
            proxy = stack.enter_context(Answering(tcp_listener(netns, backlog=16), name))
            for entry in BOTH:
                steering.steer(*entry, proxy.listener.fileno())
        yield steering


@pytest.mark.parametrize(("first", "second"), OUTCOMES)
def test_an_assigned_socket_wins_over_a_drop_and_a_drop_over_a_pass(program, dual_stack_pod, first, second):
    pod = dual_stack_pod
    with (
        everywhere(pod) as running,
        Netns.open(str(pod.pod.path)) as netns,
        attached(program, netns, first, b"first"),
        attached(program, netns, second, b"second"),
    ):
        assert programs_attached(netns.fd) == 2
        answer = OUTCOMES[first, second]
        assert asked(pod) == [answer] * 2
        assert len(running.locals) == (2 if answer == b"app" else 0)


def test_the_first_program_goes_and_the_second_one_decides_alone(program, dual_stack_pod):
    pod = dual_stack_pod
    with (
        everywhere(pod),
        Netns.open(str(pod.pod.path)) as netns,
        attached(program, netns, CLOSED, b"first") as first,
        attached(program, netns, PASSES, b"second") as second,
    ):
        assert asked(pod) == [REFUSED] * 2
        first.close()
        assert asked(pod) == [b"app"] * 2
        for entry in BOTH:
            second.close_port(*entry)
        assert asked(pod) == [REFUSED] * 2


# --- the end of the process -------------------------------------------------------------------------------------------

HOLDER = """
import asyncio, sys, time
from sidestep.model.pod import Family, Transport
from sidestep.netns import Netns
from sidestep.steering import Steering, compile_program
netns = Netns.open(sys.argv[1])
closed = [(8080, Transport.TCP, family) for family in Family]
steering = Steering.attach(asyncio.run(compile_program()), netns.fd, closed=closed)
print("closed", flush=True)
time.sleep(600)
"""


def test_sigkill_of_the_holder_opens_the_port_and_leaves_nothing(pod):
    pins = kernel.pins()
    with everywhere(pod):
        holder = subprocess.Popen([sys.executable, "-c", HOLDER, pod.pod.path], stdout=subprocess.PIPE)
        with holder:
            try:
                assert holder.stdout.readline() == b"closed\n"
                seen = kernel.steering(pod.pod)
                assert (len(seen.links), len(seen.programs), len(seen.maps)) == (1, 1, 3)
                assert asked(pod) == [REFUSED] * len(pod.ips)
            finally:
                os.kill(holder.pid, signal.SIGKILL)
                holder.wait(10)
        assert asked(pod) == [b"app"] * len(pod.ips)
        until(lambda: not seen.left(), within=2, what=lambda: f"{seen.left()} to go")
        assert kernel.pins() == pins
