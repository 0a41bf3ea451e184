"""Attachments to one namespace never share a loopback network, whoever made them."""

from __future__ import annotations

import contextlib
import subprocess
import sys

import pytest

from sidestep.model.errors import RefusedError
from sidestep.netns import Netns
from sidestep.steering import EgressSteering, egress_networks
from sidestep.steering.egress_networks import NETWORKS
from tests.harness.namespaces import pod_namespace
from tests.privileged.steering.outbound import outbound, own

pytestmark = pytest.mark.privileged


@pytest.fixture
def netns(dual_stack_pod):
    with Netns.open(str(dual_stack_pod.pod.path)) as opened:
        yield opened


@pytest.fixture
def attaching(egress_programs, dual_stack_pod, netns, folder):
    """Makes attachments to the pod, which end with the test."""
    with contextlib.ExitStack() as stack:

        def attach():
            made = EgressSteering.attach(egress_programs, str(folder), netns.fd, own(dual_stack_pod), entries=64)
            return stack.enter_context(made)

        yield attach


def test_who_draws_alike_gets_different_networks(attaching, monkeypatch):
    monkeypatch.setattr("sidestep.steering.egress_networks.random.choice", lambda free: free[0])
    made = [attaching() for _ in range(4)]
    assert [each.network for each in made] == [*NETWORKS[:4]]
    made[1].retire()  # it answers for its connections still
    assert attaching().network == NETWORKS[4]
    made[2].close()
    assert attaching().network == NETWORKS[2]


def test_who_attaches_at_the_same_moment_chooses_anew(attaching, netns, monkeypatch):
    first = attaching()
    drawn = iter([first.network, first.network])
    real = egress_networks.free_network
    monkeypatch.setattr("sidestep.steering.egress.free_network", lambda fd: next(drawn, None) or real(fd))
    second = attaching()
    assert second.network != first.network
    taken = egress_networks._taken(netns.fd)
    assert sorted(taken.values()) == sorted((first.network, second.network)), "the kernel was told of the new one"


def test_another_process_sees_them(attaching, dual_stack_pod):
    made = {attaching().network for _ in range(2)}
    code = (
        "import sys; from sidestep.netns import Netns; from sidestep.steering import egress_networks as e\n"
        "with Netns.open(sys.argv[1]) as netns: print(*sorted(map(str, e._taken(netns.fd).values())))"
    )
    words = [sys.executable, "-c", code, str(dual_stack_pod.pod.path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == sorted(map(str, made))


def test_when_all_are_taken_it_is_refused(attaching, monkeypatch):
    monkeypatch.setattr(egress_networks, "NETWORKS", NETWORKS[:1])
    attaching()
    with pytest.raises(RefusedError, match="already"):
        attaching()


def test_other_namespaces_take_nothing(attaching, egress_programs, folder, monkeypatch):
    monkeypatch.setattr(egress_networks, "NETWORKS", NETWORKS[:1])
    attaching()
    with pod_namespace() as other, outbound(egress_programs, other, folder, entries=64) as out:
        assert out.steering.network == NETWORKS[0]
