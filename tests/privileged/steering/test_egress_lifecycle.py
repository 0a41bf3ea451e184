"""Attaching, replacing, bounding and ending outbound steering; what stays behind is asked of bpftool."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network

import msgspec
import pytest

from sidestep.model.errors import BugError, KernelError
from sidestep.netns import Netns, tcp_listener
from sidestep.steering import EgressSteering
from sidestep.steering.egress_layout import CONNECT6, LOOKUP, PEER4
from tests.harness import kernel, namespaces
from tests.harness.cgroups import cgroup, inside
from tests.harness.processes import child
from tests.harness.waiting import until
from tests.privileged.steering.answering import app
from tests.privileged.steering.outbound import PORT, Dialler, Outbound, client, outbound, own, told

pytestmark = pytest.mark.privileged


def descriptors() -> set[str]:
    listed = os.listdir("/proc/self/fd")  # one of them is the folder's own, closed by now
    return {fd for fd in listed if os.path.lexists(f"/proc/self/fd/{fd}")}


def asked(out: Outbound) -> list[str]:
    """Who answers a client of the pod, over both families."""
    return [out.connect(host)["answer"] for host in (out.space.client_ip, out.space.client_ip6)]


def test_the_kernel_sees_eight_links_seven_maps_and_no_pin_and_nothing_afterwards(
    egress_programs, dual_stack_pod, folder
):
    pins = kernel.pins()
    with outbound(egress_programs, dual_stack_pod, folder) as out:
        hung, lookup = kernel.on_cgroup(folder), kernel.steering(dual_stack_pod.pod)
        assert (len(hung.links), len(lookup.links), len(hung.maps | lookup.maps)) == (7, 1, 7)
        assert kernel.pins() == pins
        assert out.steering.attached()
        out.steering.close()
        out.steering.close()
        assert not out.steering.attached()
        with pytest.raises(BugError):
            out.steering.counters()
    until(lambda: not hung.left() + lookup.left(), within=2, what=lambda: f"{hung.left() + lookup.left()} to go")


@pytest.mark.parametrize("what", ["no folder", "no cgroup", "no namespace", LOOKUP, PEER4, CONNECT6])
def test_a_failed_attachment_leaves_nothing(egress_programs, dual_stack_pod, folder, what):
    place = {"no folder": "/nonexistent", "no cgroup": "/tmp"}.get(what, str(folder))
    programs = dict(egress_programs)
    if what in programs:
        spoiled = programs[what].instructions[:-8] + b"\xff" * 8
        programs[what] = msgspec.structs.replace(programs[what], instructions=spoiled)
    fd = os.open("/dev/null" if what == "no namespace" else dual_stack_pod.pod.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        before = descriptors()
        with pytest.raises(KernelError) as caught:
            EgressSteering.attach(programs, place, fd, own(dual_stack_pod), entries=64)
        assert descriptors() <= before  # the garbage of other tests may have gone meanwhile
    finally:
        os.close(fd)
    assert "\n" not in str(caught.value)
    assert ("cgroup v2" in str(caught.value)) == (what in {"no folder", "no cgroup"})
    nothing = kernel.Programs(frozenset(), frozenset(), frozenset())
    until(lambda: kernel.on_cgroup(folder) == nothing, within=2, what="the cgroup to be without programs")
    until(lambda: kernel.steering(dual_stack_pod.pod) == nothing, within=2, what="the namespace to be without programs")


ATTACHER = """
import asyncio, os, sys, time
from ipaddress import ip_address
from sidestep.model.errors import RefusedError
from sidestep.netns import Netns, tcp_listener
from sidestep.steering import EgressConfig, EgressSteering, compile_egress
netns = Netns.open(sys.argv[1])
config = EgressConfig(own=tuple(map(ip_address, sys.argv[3:])), fail=True)
try:
    steering = EgressSteering.attach(asyncio.run(compile_egress()), sys.argv[2], netns.fd, config)
except RefusedError as error:
    print(error, flush=True)
    sys.exit()
listener = tcp_listener(netns, backlog=16)
steering.serve(listener.fileno())
print("steered", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("below", [False, True])
def test_a_cgroup_that_sidestep_is_in_itself_is_refused(dual_stack_pod, folder, below):
    where = folder / "below" if below else folder
    where.mkdir(exist_ok=True)
    command = [sys.executable, "-c", ATTACHER, dual_stack_pod.pod.path, folder]
    done = subprocess.run(inside(where, command), capture_output=True, text=True, timeout=120, check=True)
    assert "its own connections would be steered" in done.stdout
    assert kernel.on_cgroup(folder).links == frozenset()


def test_sigkill_of_the_holder_lets_connections_out_and_leaves_nothing(dual_stack_pod, folder):
    pod, pins = dual_stack_pod, kernel.pins()
    command = [sys.executable, "-c", ATTACHER, pod.pod.path, folder, *pod.ips]
    with app(pod.client, "::", PORT), child(command, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout.readline() == b"steered\n"
            hung, lookup = kernel.on_cgroup(folder), kernel.steering(pod.pod)
            assert (len(hung.links), len(lookup.links)) == (7, 1)
            assert told(inside(folder, pod.pod.enter(client(pod.client_ip, mute=True))))["peer"] == [
                pod.client_ip,
                PORT,
            ]
        finally:
            os.kill(holder.pid, signal.SIGKILL)
            holder.wait(30)
        until(lambda: not hung.left() + lookup.left(), within=2, what=lambda: f"{hung.left() + lookup.left()} to go")
        for host in (pod.client_ip, pod.client_ip6):
            assert told(inside(folder, pod.pod.enter(client(host))))["answer"] == "app"
        assert kernel.pins() == pins
        assert kernel.listeners(pod.pod) == frozenset()


def test_the_first_attached_steers_until_it_retires_and_its_connections_go_on(egress_programs, dual_stack_pod, folder):
    pod = dual_stack_pod
    with (
        app(pod.client, "::", PORT),
        outbound(egress_programs, pod, folder) as first,
        outbound(egress_programs, pod, folder) as second,
    ):
        assert asked(first) == ["app"] * 2
        assert (first.counted(), second.counted()) == ({"steered": 2}, {"loopback": 2})
        with lasting(first) as open_connection:
            first.steering.retire()
            first.steering.retire()
            assert open_connection() == [pod.client_ip, PORT]
            assert first.steering.open_entries() == 1
        with app(pod.client, "::", PORT + 1):
            seen = [second.connect(host, PORT + 1) for host in (pod.client_ip, pod.client_ip6)]
            assert [each["answer"] for each in seen] == ["app"] * 2
            assert [each["peer"] for each in seen] == [[host, PORT + 1] for host in (pod.client_ip, pod.client_ip6)]
        assert first.counted() == {"steered": 3}
        assert second.counted() == {"loopback": 3, "steered": 2}
        assert second.steering.attached()


LASTING = """
import json, socket, sys
sock = socket.create_connection((sys.argv[1], int(sys.argv[2])))
print("connected", flush=True)
for line in sys.stdin:
    print(json.dumps(sock.getpeername()[:2]), flush=True)
"""


@contextlib.contextmanager
def lasting(out: Outbound, host: str = "") -> Iterator[Callable[[], list]]:
    """A client that stays connected; what is yielded asks it for its peer."""
    command = out.command([sys.executable, "-c", LASTING, host or out.space.client_ip, str(PORT)])
    with child(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "connected\n"

            def peer() -> list:
                process.stdin.write("?\n")
                process.stdin.flush()
                return json.loads(process.stdout.readline())

            yield peer
        finally:
            process.stdin.close()
            process.wait(30)


CROWD = """
import select, socket, sys
answers = {}
while not select.select([sys.stdin], [], [], 0)[0]:
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=60) as sock:
        answer = b""
        while chunk := sock.recv(64):
            answer += chunk
    answers[answer.decode()] = answers.get(answer.decode(), 0) + 1
print(answers)
"""


@contextlib.contextmanager
def crowd(out: Outbound, host: str) -> Iterator[Callable[[], dict[str, int]]]:
    """A client of the pod that connects again and again; what is yielded ends it, and tells how often who answered."""
    command = out.command([sys.executable, "-c", CROWD, host, str(PORT)])
    with child(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:

        def finish() -> dict[str, int]:
            output, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
            return ast.literal_eval(output)

        try:
            yield finish
        finally:
            process.kill()


def test_no_connection_fails_while_one_daemon_takes_over_from_another(egress_programs, dual_stack_pod, folder):
    pod, config = dual_stack_pod, msgspec.structs.replace(own(dual_stack_pod), fail=True)
    with (
        app(pod.client, "::", PORT),
        outbound(egress_programs, pod, folder, config) as first,
        crowd(first, pod.client_ip) as finish4,
        crowd(first, pod.client_ip6) as finish6,
    ):
        until(lambda: first.steering.counters()["steered"] > 20, within=20, what="connections to be steered")
        with outbound(egress_programs, pod, folder, config) as second:
            first.steering.retire()
            until(lambda: second.steering.counters()["steered"] > 20, within=20, what="the successor to steer")
            until(lambda: first.steering.open_entries() == 0, within=20, what="the first's connections to end")
            first.steering.close()
            answers = [finish4(), finish6()]
            assert [list(each) for each in answers] == [["app"]] * 2
            originals = first.proxy.originals + second.proxy.originals
            assert None not in originals
            assert len(originals) == sum(each["app"] for each in answers)


def test_a_configuration_is_replaced_without_a_connection_that_meets_neither(egress_programs, dual_stack_pod, folder):
    pod = dual_stack_pod
    narrow = msgspec.structs.replace(
        own(pod), steered=(ip_network(f"{pod.client_ip}/32"),), passed=(), ports=frozenset({PORT})
    )
    with (
        app(pod.client, "::", PORT),
        outbound(egress_programs, pod, folder) as out,
        crowd(out, pod.client_ip) as finish,
    ):
        updates = 0

        def updated_and_steered() -> bool:
            nonlocal updates
            out.steering.update((narrow, own(pod))[updates % 2])
            updates += 1
            return updates > 100 and out.steering.counters()["steered"] > 100

        until(updated_and_steered, within=30, what="a hundred connections", every=0)
        answers = finish()
        assert list(answers) == ["app"]
        assert out.counted() == {"steered": answers["app"]}
        keys = sum(len(prefixes) + len(ports) for prefixes, ports in out.steering._keys.values())
        assert keys <= len(own(pod).steered) + len(own(pod).passed) + 2 + 4


def test_a_configuration_that_the_maps_refuse_leaves_the_former_in_force(egress_programs, dual_stack_pod, folder):
    pod = dual_stack_pod
    with app(pod.client, "::", PORT), outbound(egress_programs, pod, folder) as out:
        os.close(out.steering._maps["oports"])
        out.steering._maps["oports"] = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        with pytest.raises(KernelError):
            out.steering.update(msgspec.structs.replace(own(pod), ports=frozenset({1})))
        assert asked(out) == ["app"] * 2
        assert out.counted() == {"steered": 2}


@pytest.mark.parametrize("fail", [False, True])
def test_the_bound_of_open_connections(egress_programs, dual_stack_pod, folder, fail):
    pod, config = dual_stack_pod, msgspec.structs.replace(own(dual_stack_pod), fail=fail)
    with app(pod.client, "::", PORT) as server, outbound(egress_programs, pod, folder, config, entries=4) as out:
        server.stop()
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                stack.enter_context(lasting(out))
            until(lambda: len(out.proxy.originals) == 3, within=10, what="the proxy to accept three connections")
            assert out.steering.open_entries() == 3
            with app(pod.client, "::", PORT + 1):
                seen = out.connect(pod.client_ip, PORT + 1)
                assert seen == {"error": "EPERM"} if fail else seen["answer"] == "app"
        assert out.counted() == {"steered": 3, "full": 1, **({"closed": 1} if fail else {})}
        until(lambda: out.steering.open_entries() == 0, within=10, what="the entries to be released")
        with app(pod.client, "::", PORT + 2):
            assert out.connect(pod.client_ip6, PORT + 2)["answer"] == "app"
        assert out.steering.counters()["steered"] == 4


def test_a_connection_that_its_app_closed_keeps_its_destination_until_the_proxy_has_accepted_it(
    egress_programs, dual_stack_pod, folder
):
    """The only other entry is in use: nothing may take the place of one that waits in the queue."""
    pod = dual_stack_pod
    with (
        Netns.open(str(pod.pod.path)) as netns,
        EgressSteering.attach(egress_programs, str(folder), netns.fd, own(pod), entries=2) as steering,
        tcp_listener(netns, backlog=16) as listener,
        app(pod.client, "::", PORT),
        contextlib.ExitStack() as stack,
    ):
        steering.serve(listener.fileno())
        waiting = told(inside(folder, pod.pod.enter(client(pod.client_ip, 5001, mute=True))))
        assert waiting["peer"] == [pod.client_ip, 5001]
        assert steering.open_entries() == 0
        assert told(inside(folder, pod.pod.enter(client(pod.client_ip))))["answer"] == "app"
        assert steering.counters()["full"] == 1
        dialler = stack.enter_context(contextlib.closing(Dialler(steering, netns, listener)))
        accepted, _ = listener.accept()
        with accepted:
            original = dialler.take(accepted)
            assert (str(original.address), original.port) == (pod.client_ip, 5001)
        assert told(inside(folder, pod.pod.enter(client(pod.client_ip, mute=True))))["peer"] == [pod.client_ip, PORT]
        assert steering.counters()["steered"] == 2


def test_a_dial_to_the_loopback_network_itself_is_not_given_to_the_proxy(egress_programs, dual_stack_pod, folder):
    pod = dual_stack_pod
    with app(pod.client, "::", PORT), outbound(egress_programs, pod, folder, entries=16) as out:
        assert asked(out) == ["app"] * 2
        for index in range(16):
            for address, port in ((str(out.steering.network[index]), PORT), ("::1", index or 16)):
                assert out.connect(address, port) == {"error": "ECONNREFUSED"}
        with lasting(out):
            until(lambda: len(out.proxy.originals) == 3, within=10, what="the proxy to accept")
            for index in range(1, 16):
                assert out.connect(str(out.steering.network[index]), PORT) == {"error": "ECONNREFUSED"}
        assert len(out.proxy.originals) == 3


def test_a_dial_to_the_address_of_a_connection_that_waits_is_not_taken_for_it(egress_programs, dual_stack_pod, folder):
    """The entries are in use and not taken: only the source tells the steered connection from the dial."""
    pod = dual_stack_pod
    with app(pod.client, "::", PORT), outbound(egress_programs, pod, folder, entries=2) as out:
        out.proxy.stop()
        out.proxy.listener.settimeout(60)
        for host, address, port in (
            (pod.client_ip, str(out.steering.network[1]), PORT),
            (pod.client_ip6, "::1", 1),
        ):
            with lasting(out, host):
                assert told(pod.pod.enter(client(address, port))) == {"error": "ECONNREFUSED"}
                assert out.connect(address, port) == {"error": "ECONNREFUSED"}
                accepted, _ = out.proxy.listener.accept()
                with accepted:
                    assert out.proxy.take(accepted).address == ip_address(host)
        out.proxy.listener.settimeout(0)
        with pytest.raises(BlockingIOError):
            out.proxy.listener.accept()


def test_a_link_that_somebody_detached_and_a_cgroup_that_is_gone_are_seen(egress_programs, dual_stack_pod):
    pod = dual_stack_pod
    with Netns.open(str(pod.pod.path)) as netns:
        with cgroup() as folder, EgressSteering.attach(egress_programs, str(folder), netns.fd, own(pod)) as steering:
            assert steering.attached()
            namespaces.run("bpftool", "link", "detach", "id", str(min(kernel.on_cgroup(folder).links)))
            assert not steering.attached()
        with contextlib.ExitStack() as stack:
            with cgroup() as folder:
                steering = stack.enter_context(
                    EgressSteering.attach(egress_programs, str(folder), netns.fd, own(pod), entries=64)
                )
            until(lambda: not steering.attached(), within=5, what="the links to notice that the cgroup is gone")


def test_the_tables_memory_is_what_it_says(egress_programs, dual_stack_pod, folder):
    with outbound(egress_programs, dual_stack_pod, folder, entries=65536) as out:
        maps = [each for each in kernel.objects("map") if each["id"] in kernel.on_cgroup(folder).maps]
        (table,) = (each for each in maps if each["name"] == "sidestep_entrie")
        assert table["max_entries"] == 65536
        assert 3 << 20 <= table["bytes_memlock"] < 4 << 20
        assert out.steering.open_entries() == 0
