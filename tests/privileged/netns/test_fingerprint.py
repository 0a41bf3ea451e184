"""Whatever changes the listening sockets that were asked about changes the fingerprint."""

from __future__ import annotations

import contextlib
import socket
from ipaddress import ip_address

import pytest

from sidestep.netns import Netns
from sidestep.netns.fingerprint import MANY, Question, fingerprint
from tests.harness.namespaces import pod_namespace

pytestmark = pytest.mark.privileged

V4, V6 = socket.AF_INET, socket.AF_INET6


def questions(space, port=8080):
    """One that looks the sockets up, and one that lists them all."""
    addresses = [ip_address(each) for each in space.ips]
    few = [(each, port) for each in addresses]
    return {
        "exact": Question.about(few),
        "list": Question.about((addresses[0], port + each) for each in range(MANY + 1)),
    }


@pytest.mark.parametrize("how", ["exact", "list"])
@pytest.mark.parametrize(("family", "address"), [(V4, ""), (V6, ""), (V4, "ip"), (V6, "ip6")])
def test_a_listener_changes_it(family, address, how):
    with pod_namespace() as space, Netns.open(str(space.pod.path)) as netns:
        question = questions(space)[how]
        assert bool(question.answers) is (how == "exact")
        empty = fingerprint(netns, question)
        assert empty
        assert fingerprint(netns, question) == empty

        def listen():
            server = socket.socket(family)
            server.bind((getattr(space, address, address), 8080))
            server.listen(4)
            return server

        with contextlib.closing(netns.run(listen)) as server:
            one = fingerprint(netns, question)
            assert one != empty
            assert fingerprint(netns, question) == one
            target = space.ip6 if address == "ip6" else space.ip
            with contextlib.closing(netns.run(lambda: socket.create_connection((target, 8080), 5))):
                assert fingerprint(netns, question) != one  # the length of the queue is part of it
            server.accept()[0].close()
        assert fingerprint(netns, question) == empty


@pytest.mark.parametrize("how", ["exact", "list"])
def test_established_connections_do_not_change_it(how):
    with (
        pod_namespace() as space,
        Netns.open(str(space.pod.path)) as netns,
        contextlib.closing(netns.run(lambda: socket.create_server((space.ip, 8080)))) as server,
    ):
        question = questions(space)[how]
        before = fingerprint(netns, question)
        client = netns.run(lambda: socket.create_connection((space.ip, 8080), 5))
        with contextlib.closing(client), contextlib.closing(server.accept()[0]):
            assert fingerprint(netns, question) == before


def test_another_process_on_the_same_port_changes_it():
    with pod_namespace() as space, Netns.open(str(space.pod.path)) as netns:
        question = questions(space)["exact"]
        seen = set()
        for _ in range(2):
            with contextlib.closing(netns.run(lambda: socket.create_server(("", 8080)))):
                seen.add(fingerprint(netns, question))
        assert len(seen) == 2


def test_no_answer_is_empty_and_the_next_question_is_answered():
    with pod_namespace() as space, Netns.open(str(space.pod.path)) as netns:
        assert fingerprint(netns, Question(b"nonsense", 1)) == b""
        assert fingerprint(netns, questions(space)["exact"])
