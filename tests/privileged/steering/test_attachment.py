"""Attaching, listing, auditing and releasing; what stays behind is asked of bpftool."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from sidestep.model.errors import BugError, KernelError
from sidestep.model.pod import Family, Transport
from sidestep.netns import Netns, tcp_listener
from sidestep.steering import Steering, bpf
from sidestep.steering.layout import PROGRAM
from tests.harness import kernel, namespaces
from tests.harness.waiting import until
from tests.privileged.steering.answering import app, ask
from tests.privileged.steering.conftest import PORT, steered

pytestmark = pytest.mark.privileged

OTHERS = 5.0
"""Seconds until objects that another test run made and dropped meanwhile are gone from the lists."""


def descriptors() -> set[str]:
    listed = os.listdir("/proc/self/fd")  # one of them is the folder's own, closed by now
    return {fd for fd in listed if os.path.lexists(f"/proc/self/fd/{fd}")}


def objects() -> set[str]:
    """Every program, map and link of ours on the machine."""
    return {
        f"{kind} {each['id']}"
        for kind in ("prog", "map")
        for each in kernel.objects(kind)
        if each.get("name", "").startswith("sidestep_")
    }


def seconds(work):
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


@pytest.mark.alone
def test_attaching_takes_less_than_5_ms_or_as_long_as_the_verifier(program, dual_stack_pod):
    """The verifier's time is the kernel's affair, and is most of it where instructions are emulated."""
    attaching, loading = [], []
    with Netns.open(str(dual_stack_pod.pod.path)) as netns:
        for _ in range(20):
            spent, steering = seconds(lambda: Steering.attach(program, netns.fd))
            attaching.append(spent)
            maps = [steering._ports, steering._counts, steering._closed_ports]
            spent, loaded = seconds(
                lambda maps=maps: bpf.prog_load(name=PROGRAM, instructions=program.relocated(maps)),
            )
            loading.append(spent)
            os.close(loaded)
            steering.close()
    assert statistics.median(attaching) <= max(0.005, 2 * statistics.median(loading)), (attaching, loading)


def test_the_kernel_sees_one_link_one_program_three_maps_and_no_pin(program, dual_stack_pod):
    pins = kernel.pins()
    with steered(program, dual_stack_pod) as pair:
        pair.steer()
        seen = kernel.steering(dual_stack_pod.pod)
        assert (len(seen.links), len(seen.programs), len(seen.maps)) == (1, 1, 3)
        assert kernel.pins() == pins
    until(lambda: not seen.left(), within=2, what=lambda: f"{seen.left()} to go")
    assert kernel.steering(dual_stack_pod.pod) == kernel.Programs(frozenset(), frozenset(), frozenset())


def test_every_descriptor_is_close_on_exec(program, dual_stack_pod):
    before = descriptors()
    with steered(program, dual_stack_pod):
        ours = {int(fd) for fd in descriptors() - before}
        assert len(ours) >= 6
        for fd in ours:
            assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC, os.readlink(f"/proc/self/fd/{fd}")
    assert descriptors() == before


def test_two_pods_share_nothing(program, dual_stack_pod, pod):
    with steered(program, dual_stack_pod) as first, steered(program, pod) as second:
        maps = [kernel.steering(each.space.pod).maps for each in (first, second)]
        assert not maps[0] & maps[1]
        first.steer()
        assert second.steering.entries() == frozenset()


@pytest.mark.alone
@pytest.mark.parametrize("what", ["another kind of namespace", "no namespace", "a refused program", "a refused map"])
def test_a_failed_attachment_leaves_nothing(program, what):
    path = {"another kind of namespace": "/proc/self/ns/mnt", "no namespace": "/dev/null"}.get(
        what, "/proc/self/ns/net"
    )
    if what == "a refused program":
        spoiled = program.instructions[:-8] + b"\xff" * 8
        program = msgspec.structs.replace(program, instructions=spoiled)
    if what == "a refused map":
        last = msgspec.structs.replace(program.maps[-1], key_size=0)
        program = msgspec.structs.replace(program, maps=(*program.maps[:-1], last))
    before = objects()
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        open_before = descriptors()
        with pytest.raises(KernelError) as caught:
            Steering.attach(program, fd)
        assert descriptors() == open_before
    finally:
        os.close(fd)
    assert "\n" not in str(caught.value)
    until(lambda: not objects() - before, within=OTHERS, what=lambda: f"{objects() - before} to go")


def test_a_refused_program_carries_the_verifiers_reason(program):
    spoiled = msgspec.structs.replace(program, instructions=program.instructions + b"\x95\0\0\0\0\0\0\0")
    fd = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with pytest.raises(KernelError, match="unreachable insn"):
            Steering.attach(spoiled, fd)
    finally:
        os.close(fd)


def test_entries_are_the_kernels(program, dual_stack_pod):
    with steered(program, dual_stack_pod) as pair:
        assert pair.steering.entries() == frozenset()
        pair.steer()
        pair.steer()
        both = {(PORT, Transport.TCP, family) for family in Family}
        assert pair.steering.entries() == both
        pair.steer(9090)
        assert len(pair.steering.entries()) == 4
        pair.unsteer(9090)
        pair.unsteer(9090)
        assert pair.steering.entries() == both


def test_many_entries_are_listed(program, dual_stack_pod):
    with steered(program, dual_stack_pod) as pair:
        for port in range(1, 513):
            pair.steer(port)
        assert len(pair.steering.entries()) == 1024
        with pytest.raises(KernelError) as caught:
            pair.steer(513)
        assert caught.value.errno == errno.E2BIG


def test_what_is_not_a_listener_is_refused(program, dual_stack_pod):
    with steered(program, dual_stack_pod) as pair, open(os.devnull) as file:
        with pytest.raises(KernelError):
            pair.steering.steer(PORT, Transport.TCP, Family.IPV4, file.fileno())
        assert pair.steering.entries() == frozenset()


def test_a_closed_steering_says_so(program, dual_stack_pod):
    with steered(program, dual_stack_pod) as pair:
        assert pair.steering.attached()
        pair.steering.close()
        pair.steering.close()
        assert not pair.steering.attached()
        with pytest.raises(BugError):
            pair.steer()
        with pytest.raises(BugError):
            pair.steering.entries()


def test_a_link_that_somebody_detached_is_seen(program, dual_stack_pod):
    with steered(program, dual_stack_pod) as pair:
        (link,) = kernel.steering(dual_stack_pod.pod).links
        assert pair.steering.attached()
        namespaces.run("bpftool", "link", "detach", "id", str(link))
        assert not pair.steering.attached()


def test_the_link_does_not_keep_a_deleted_namespace(program, dual_stack_pod):
    pod = dual_stack_pod
    netns = Netns.open(str(pod.pod.path))
    with Steering.attach(program, netns.fd) as steering:
        listener = tcp_listener(netns, backlog=16)
        steering.steer(PORT, Transport.TCP, Family.IPV4, listener.fileno())
        pod.delete_pod()
        assert steering.attached()
        assert pod.peer_exists()
        listener.close()
        netns.close()
        until(lambda: not pod.peer_exists(), within=5, what="the veth pair to go")
        until(lambda: not steering.attached(), within=5, what="the link to notice")
        assert steering.entries() == frozenset()
        steering.unsteer(PORT, Transport.TCP, Family.IPV4)


HOLDER = """
import asyncio, sys, time
from sidestep.model.pod import Family, Transport
from sidestep.netns import Netns, tcp_listener
from sidestep.steering import Steering, compile_program
netns = Netns.open(sys.argv[1])
steering = Steering.attach(asyncio.run(compile_program()), netns.fd)
listener = tcp_listener(netns, backlog=16)
for family in Family:
    steering.steer(8080, Transport.TCP, family, listener.fileno())
print("steered", flush=True)
time.sleep(600)
"""


def test_sigkill_of_the_holder_leaves_nothing(program, pod):
    pins = kernel.pins()
    with app(pod.pod, "0.0.0.0", PORT):
        holder = subprocess.Popen([sys.executable, "-c", HOLDER, pod.pod.path], stdout=subprocess.PIPE)
        with holder:
            try:
                assert holder.stdout.readline() == b"steered\n"
                seen = kernel.steering(pod.pod)
                assert len(seen.links) == 1
                assert kernel.listeners(pod.pod) != {f"tcp 0.0.0.0:{PORT}"}
            finally:
                os.kill(holder.pid, signal.SIGKILL)
                holder.wait(10)
        assert ask(pod.client, pod.ip, PORT) == b"app"
        until(lambda: not seen.left(), within=2, what=lambda: f"{seen.left()} to go")
        assert kernel.pins() == pins
        assert kernel.listeners(pod.pod) == {f"tcp 0.0.0.0:{PORT}"}
        pod.delete_pod()
    until(lambda: not pod.peer_exists(), within=5, what="the veth pair to go")
    assert not Path(pod.pod.path).exists()
