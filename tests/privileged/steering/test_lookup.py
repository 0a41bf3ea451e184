"""Who answers whom: the verdicts of the program on real connections."""

from __future__ import annotations

import contextlib
import socket
from ipaddress import ip_address

import pytest

from sidestep.model.pod import Family, Transport
from sidestep.netns import Netns, tcp_listener
from sidestep.netns.fingerprint import Question, fingerprint
from sidestep.steering import Steering
from tests.privileged.steering.answering import REFUSED, Answering, app, ask
from tests.privileged.steering.conftest import PORT, steered

pytestmark = pytest.mark.privileged


@pytest.mark.parametrize("where", ["wildcard", "pod IP", "IPv4 wildcard"])
def test_clients_outside_meet_the_proxy_and_dials_inside_meet_the_app(program, pod, where):
    address = {"wildcard": "::" if pod.ip6 else "0.0.0.0", "pod IP": pod.ip, "IPv4 wildcard": "0.0.0.0"}[where]
    served = pod.ips if address == "::" else [pod.ip]
    inside = {"wildcard": ["127.0.0.1", *pod.ips], "pod IP": [pod.ip], "IPv4 wildcard": ["127.0.0.1", pod.ip]}[where]
    if address == "::":
        inside.append("::1")
    with steered(program, pod) as pair, app(pod.pod, address, PORT):
        assert [ask(pod.client, ip, PORT) for ip in served] == [b"app"] * len(served)
        pair.steer()
        assert [ask(pod.client, ip, PORT) for ip in pod.ips] == [b"proxy"] * len(pod.ips)
        assert [ask(pod.pod, ip, PORT) for ip in inside] == [b"app"] * len(inside)
        pair.unsteer()
        assert [ask(pod.client, ip, PORT) for ip in served] == [b"app"] * len(served)


def test_an_app_on_loopback_stays_reachable_inside_and_hidden_outside(program, pod):
    with steered(program, pod) as pair, app(pod.pod, "127.0.0.1", PORT):
        pair.steer()
        assert ask(pod.pod, "127.0.0.1", PORT) == b"app"
        assert ask(pod.client, pod.ip, PORT) == b"proxy"
        pair.unsteer()
        assert ask(pod.client, pod.ip, PORT) == REFUSED
        assert ask(pod.pod, "127.0.0.1", PORT) == b"app"


def test_a_dial_from_any_loopback_source_reaches_the_app(program, dual_stack_pod):
    pod = dual_stack_pod
    with steered(program, pod) as pair, app(pod.pod, "0.0.0.0", PORT):
        pair.steer()
        for source in ("127.0.0.1", "127.1.2.3", "127.255.255.254", pod.ip):
            with pod.pod.call(socket.socket) as client:
                client.settimeout(5)
                client.bind((source, 0))
                client.connect(("127.0.0.1" if source.startswith("127.") else pod.ip, PORT))
                assert client.recv(64) == b"app", source


def test_the_original_destination_is_the_accepted_sockets_name(program, dual_stack_pod):
    pod = dual_stack_pod
    with steered(program, pod) as pair:
        pair.steer()
        pair.steer(9090)
        assert ask(pod.client, pod.ip, PORT) == b"proxy"
        assert ask(pod.client, pod.ip6, 9090) == b"proxy"
        assert pair.proxy.locals == [(f"::ffff:{pod.ip}", PORT), (pod.ip6, 9090)]


def test_other_ports_are_left_alone(program, pod):
    with steered(program, pod) as pair, app(pod.pod, "0.0.0.0", PORT + 1):
        pair.steer()
        assert ask(pod.client, pod.ip, PORT + 1) == b"app"
        assert ask(pod.client, pod.ip, PORT + 2) == REFUSED


def test_one_family_can_be_steered_alone(program, dual_stack_pod):
    pod = dual_stack_pod
    with steered(program, pod) as pair, app(pod.pod, "::", PORT):
        pair.steering.steer(PORT, Transport.TCP, Family.IPV6, pair.proxy.listener.fileno())
        assert ask(pod.client, pod.ip6, PORT) == b"proxy"
        assert ask(pod.client, pod.ip, PORT) == b"app"


def test_a_listener_that_cannot_take_the_family_fails_to_the_app(program, dual_stack_pod):
    pod = dual_stack_pod

    def ipv4_listener() -> socket.socket:
        return socket.create_server(("127.0.0.1", 0))

    with (
        steered(program, pod) as pair,
        app(pod.pod, "::", PORT),
        Answering(pod.pod.call(ipv4_listener), b"ipv4") as listener,
    ):
        for family in Family:
            pair.steering.steer(PORT, Transport.TCP, family, listener.listener.fileno())
        assert ask(pod.client, pod.ip, PORT) == b"ipv4"
        assert ask(pod.client, pod.ip6, PORT) == b"app"
        assert pair.steering.counters()["failed"] == 1


def test_closing_the_listener_falls_back_at_once(program, pod):
    with steered(program, pod) as pair, app(pod.pod, "0.0.0.0", PORT):
        pair.steer()
        assert ask(pod.client, pod.ip, PORT) == b"proxy"
        assert len(pair.steering.entries()) == 2
        pair.proxy.stop()
        pair.proxy.listener.close()
        assert ask(pod.client, pod.ip, PORT) == b"app"
        assert pair.steering.entries() == frozenset()


def test_a_listener_that_has_stopped_listening_falls_back_at_once(program, pod):
    """Whatever the kernel keeps in the map, and whatever it would assign."""
    with steered(program, pod) as pair, app(pod.pod, "0.0.0.0", PORT):
        pair.steer()
        assert ask(pod.client, pod.ip, PORT) == b"proxy"
        pair.proxy.stop()
        pair.proxy.listener.shutdown(socket.SHUT_RDWR)
        assert ask(pod.client, pod.ip, PORT) == b"app"


def test_closing_the_steering_falls_back_at_once(program, pod):
    with steered(program, pod) as pair, app(pod.pod, "0.0.0.0", PORT):
        pair.steer()
        assert ask(pod.client, pod.ip, PORT) == b"proxy"
        pair.steering.close()
        assert ask(pod.client, pod.ip, PORT) == b"app"


def test_the_last_attached_program_wins_and_the_first_takes_over_again(program, pod):
    with contextlib.ExitStack() as stack:
        old = stack.enter_context(steered(program, pod))
        stack.enter_context(app(pod.pod, "0.0.0.0", PORT))
        old.steer()
        netns = stack.enter_context(Netns.open(str(pod.pod.path)))
        new = stack.enter_context(Steering.attach(program, netns.fd))
        assert ask(pod.client, pod.ip, PORT) == b"proxy"
        second = stack.enter_context(Answering(tcp_listener(netns, backlog=16), b"second"))
        new.steer(PORT, Transport.TCP, Family.IPV4, second.listener.fileno())
        assert ask(pod.client, pod.ip, PORT) == b"second"
        new.close()
        assert ask(pod.client, pod.ip, PORT) == b"proxy"
        old.steering.close()
        assert ask(pod.client, pod.ip, PORT) == b"app"


def test_every_verdict_is_counted(program, dual_stack_pod):
    pod = dual_stack_pod
    with steered(program, pod) as pair, app(pod.pod, "::", PORT), app(pod.pod, "::", PORT + 1):
        pair.steer()
        for ip in pod.ips:
            ask(pod.client, ip, PORT)
            ask(pod.client, ip, PORT + 1)
            ask(pod.pod, ip, PORT)
        for ip in ("127.0.0.1", "::1", "127.0.0.1"):
            ask(pod.pod, ip, PORT)
        assert pair.steering.counters() == {
            "steered": 2,
            "unsteered": 2,
            "loopback": 3,
            "own": 2,
            "failed": 0,
            "closed": 0,
        }


def test_datagrams_are_steered_by_the_same_map(program, dual_stack_pod):
    pod = dual_stack_pod

    def bound(address: str, port: int) -> socket.socket:
        receiver = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        receiver.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        receiver.bind((address, port))
        receiver.settimeout(5)
        return receiver

    with (
        steered(program, pod) as pair,
        pod.pod.call(lambda: bound("::", PORT)) as application,
        pod.pod.call(lambda: bound("::ffff:127.0.0.1", 0)) as ours,
        pod.client.call(lambda: bound("::", 0)) as client,
    ):
        for family in Family:
            pair.steering.steer(PORT, Transport.UDP, family, ours.fileno())
        for ip in (f"::ffff:{pod.ip}", pod.ip6):
            client.sendto(b"steered", (ip, PORT))
            assert ours.recv(64) == b"steered"
        for family in Family:
            pair.steering.unsteer(PORT, Transport.UDP, family)
        for ip in (f"::ffff:{pod.ip}", pod.ip6):
            client.sendto(b"not steered", (ip, PORT))
            assert application.recv(64) == b"not steered"


def test_transports_do_not_mix(program, dual_stack_pod):
    pod = dual_stack_pod
    with steered(program, pod) as pair, app(pod.pod, "::", PORT):
        pair.steering.steer(PORT, Transport.UDP, Family.IPV4, pair.proxy.listener.fileno())
        assert ask(pod.client, pod.ip, PORT) == b"app"


def test_a_question_about_the_app_s_sockets_is_not_answered_with_ours(program, pod):
    """The kernel asks the program then as it does for a connection."""
    question = Question.about((ip_address(ip), PORT) for ip in pod.ips)
    with steered(program, pod) as pair:
        pair.steer()
        nobody = fingerprint(pair.netns, question)
        with app(pod.pod, "::" if pod.ip6 else "0.0.0.0", PORT):
            there = fingerprint(pair.netns, question)
        assert there != nobody
        assert fingerprint(pair.netns, question) == nobody
        pair.unsteer()
        assert fingerprint(pair.netns, question) == nobody
