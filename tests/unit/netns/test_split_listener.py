"""Connections from preferred addresses reach the first listener, all others the second; real sockets on loopback."""

from __future__ import annotations

import contextlib
import select
import socket
from ipaddress import ip_address

import pytest

from sidestep.model.errors import KernelError
from sidestep.netns.split_listener import MAX_ADDRESSES, prefer, program, split_listener

INSTRUCTION = 8
"""Bytes of a struct sock_filter."""


@pytest.fixture
def listeners():
    first, second = split_listener(0, backlogs=(4, 4))
    with first, second:
        yield first, second


def reached(listeners, source, target="127.0.0.1"):
    """Which of the two listeners a connection from `source` arrives at."""
    port = listeners[0].getsockname()[1]
    with socket.create_connection((target, port), timeout=5, source_address=(source, 0)):
        ready, _, _ = select.select(listeners, [], [], 5)
        [listener] = ready
        listener.accept()[0].close()
    return listeners.index(listener)


def test_both_listen_on_one_port(listeners):
    first, second = listeners
    assert first.getsockname()[1] == second.getsockname()[1]


def test_everything_goes_to_the_second_at_first(listeners):
    assert reached(listeners, "127.0.0.1") == 1


def test_preferred_addresses_go_to_the_first_until_the_list_changes(listeners):
    prefer(listeners[0], [ip_address("127.0.0.2"), ip_address("127.0.0.4")])
    assert [reached(listeners, f"127.0.0.{last}") for last in (1, 2, 3, 4)] == [1, 0, 1, 0]
    prefer(listeners[0], [ip_address("127.0.0.3")])
    assert [reached(listeners, f"127.0.0.{last}") for last in (2, 3)] == [1, 0]


def test_addresses_of_ipv6_are_compared_whole(listeners):
    if not socket.has_dualstack_ipv6():
        assert listeners[0].family is socket.AF_INET
        return
    prefer(listeners[0], [ip_address("fe80::1"), ip_address("::1")])
    assert reached(listeners, "::1", target="::1") == 0
    prefer(listeners[0], [ip_address("1::1"), ip_address("::2")])
    assert reached(listeners, "::1", target="::1") == 1


def test_more_addresses_than_a_program_holds_leave_the_others_to_the_second(listeners):
    many = [ip_address((127 << 24) + number) for number in range(1, 2 * MAX_ADDRESSES)]
    assert len(program(many)) == len(program(many[:MAX_ADDRESSES]))
    prefer(listeners[0], many)
    assert reached(listeners, "127.0.0.1") == 0
    assert reached(listeners, str(many[MAX_ADDRESSES])) == 1


def test_a_program_of_the_largest_list_is_within_the_kernels_limit(listeners):
    many = [ip_address((1 << 100) + number) for number in range(MAX_ADDRESSES)]
    assert len(program(many)) // INSTRUCTION <= 4096
    prefer(listeners[0], many)


def test_a_port_that_is_taken_is_an_error_that_leaves_nothing_open():
    with contextlib.ExitStack() as stack:
        taken = stack.enter_context(socket.create_server(("", 0)))
        with pytest.raises(KernelError, match="listening on port"):
            split_listener(taken.getsockname()[1], backlogs=(1, 1))
