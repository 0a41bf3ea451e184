"""A pod in a real namespace, an app in it, and a listener that stands for the pod proxy."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sidestep.model.pod import Family, Transport
from sidestep.netns import Netns, tcp_listener
from sidestep.steering import CompiledProgram, EgressPrograms, Steering, compile_egress, compile_program
from tests.harness.cgroups import cgroup
from tests.harness.namespaces import PodNamespace, pod_namespace
from tests.privileged.steering.answering import Answering

PORT = 8080


@pytest.fixture(scope="session", autouse=True)
def root() -> None:
    assert os.geteuid() == 0, "these tests need root: network namespaces and eBPF are the subject"


@pytest.fixture(scope="session")
def program() -> CompiledProgram:
    return asyncio.run(compile_program())


@pytest.fixture(params=["dual stack", "without IPv6"])
def pod(request: pytest.FixtureRequest) -> Iterator[PodNamespace]:
    with pod_namespace(ipv6=request.param == "dual stack") as space:
        yield space


@pytest.fixture
def dual_stack_pod() -> Iterator[PodNamespace]:
    with pod_namespace() as space:
        yield space


@dataclass
class Steered:
    """A pod with the program attached and a listener ready; nothing is steered yet."""

    space: PodNamespace
    netns: Netns
    steering: Steering
    proxy: Answering

    def steer(self, port: int = PORT) -> None:
        for family in Family:
            self.steering.steer(port, Transport.TCP, family, self.proxy.listener.fileno())

    def unsteer(self, port: int = PORT) -> None:
        for family in Family:
            self.steering.unsteer(port, Transport.TCP, family)


@contextlib.contextmanager
def steered(program: CompiledProgram, space: PodNamespace) -> Iterator[Steered]:
    with (
        Netns.open(str(space.pod.path)) as netns,
        Steering.attach(program, netns.fd) as steering,
        Answering(tcp_listener(netns, backlog=128), b"proxy") as proxy,
    ):
        yield Steered(space=space, netns=netns, steering=steering, proxy=proxy)


@pytest.fixture(scope="session")
def egress_programs() -> EgressPrograms:
    return asyncio.run(compile_egress())


@pytest.fixture
def folder() -> Iterator[Path]:
    with cgroup() as path:
        yield path
