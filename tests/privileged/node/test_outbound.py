"""Connections that a pod makes, from its cgroup and namespace to real servers in another: what policies do to them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import subprocess
import sys
from ipaddress import ip_address, ip_network

import pytest
from msgspec.structs import replace

from sidestep.model.condition import ConditionType
from sidestep.model.errors import KernelError
from sidestep.model.inspection import Action, Match, Mode, Rule
from sidestep.node.pods import pod_egress
from sidestep.node.proxies.supervisor import ProxyState, SupervisorSettings
from sidestep.steering import EgressSteering
from tests.privileged.node.outward import CLEAR_H2, OTHER, PLAIN, TLS, outbound, policy, succeeded, was_reset
from tests.privileged.node.rig import QUICK

pytestmark = pytest.mark.privileged

UNTIL_REFUSED = """
import socket, sys
while True:
    try:
        with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=20) as sock:
            sock.recv(1)
    except ConnectionRefusedError:
        break
    except ConnectionResetError:
        pass
"""
"""Connects again and again, until connect() itself says that the server refuses."""
NO_PASTE = Rule("no-paste", Action.BLOCK, match=Match(server_names=("paste.test",)))


def test_what_no_rule_blocks_reaches_its_server_and_a_blocked_name_does_not(program, tmp_path):
    async def go():
        async with outbound(program, tmp_path, policy(NO_PASTE)) as pod:
            for address in (pod.space.client_ip, pod.space.client_ip6):
                assert succeeded(await pod.asked("api.test", address=address), address)
            assert succeeded(await pod.asked("api.test", port=PLAIN, scheme="http"), pod.space.client_ip)
            assert succeeded(await pod.asked("api.test", "--http1.1", "--tls-max", "1.2"), pod.space.client_ip)
            served = len(pod.web.requests())
            assert was_reset(await pod.asked("paste.test"))
            refused = await pod.asked("paste.test", port=PLAIN, scheme="http")
            assert refused.stdout.startswith("sidestep: policy shop/out, id "), refused.stdout + refused.stderr
            assert len(pod.web.requests()) == served == 4
            await pod.counted(outbound=6, inspection_blocked=2, outbound_closed=1)
            assert pod.some.conditions.all() == ()

    asyncio.run(go())


STREAMS = """
import socket, sys
import h2.connection, h2.events
side = h2.connection.H2Connection()
side.initiate_connection()
for number, host in enumerate(sys.argv[3:]):
    head = [(":method", "GET"), (":path", f"/{number}"), (":scheme", "http"), (":authority", host)]
    side.send_headers(1 + 2 * number, head, end_stream=True)
statuses = {}
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=20) as sock:
    sock.sendall(side.data_to_send())
    while len(statuses) < len(sys.argv[3:]):
        for event in side.receive_data(sock.recv(65536)):
            if isinstance(event, h2.events.ResponseReceived):
                statuses[event.stream_id] = dict(event.headers)[b":status"].decode()
        sock.sendall(side.data_to_send())
print(*(statuses[each] for each in sorted(statuses)))
"""
"""Requests for several hosts on one connection. curl 7.88 makes one on each of HTTP/2 in clear."""


def test_each_request_in_clear_is_judged_in_http1_and_http2(program, tmp_path):
    """In HTTP/1 by curl, which makes the requests of a run to one address on one connection."""

    async def go():
        async with outbound(program, tmp_path, policy(NO_PASTE, fail=True)) as pod:
            hosts = ("api.test", "paste.test", "api.test")
            words = [
                word
                for number, host in enumerate(hosts)
                for word in (
                    "--next", "-sS", "--noproxy", "*", "-H", f"Host: {host}",
                    f"http://{pod.space.client_ip}:{PLAIN}/{number}",
                )
            ][1:]  # fmt: skip
            said = (await asyncio.to_thread(pod.run, "curl", *words)).stdout
            assert said.startswith("app\nsidestep: policy shop/out, id "), said
            assert said.endswith("app\n"), said
            streams = [sys.executable, "-c", STREAMS, pod.space.client_ip, str(CLEAR_H2), *hosts]
            done = await asyncio.to_thread(pod.run, *streams)
            assert done.stdout == "200 403 200\n", done.stdout + done.stderr
            await pod.counted(outbound=2, inspection_blocked=2)
            assert [each["uri"] for each in pod.web.requests()] == ["/0", "/2"] * 2

    asyncio.run(go())


def test_tls_stays_end_to_end(program, tmp_path):
    """The client sees the server's own certificate, and resumes sessions with it."""

    async def go():
        async with outbound(program, tmp_path, policy(NO_PASTE)) as pod:
            command = (
                "openssl", "s_client", "-connect", f"{pod.space.client_ip}:{OTHER}", "-servername", "api.test",
                "-CAfile", str(pod.authority), "-verify_return_error", "-reconnect", "-no_ticket", "-tls1_2",
            )  # fmt: skip
            done = await asyncio.to_thread(pod.run, *command)
            assert "Verify return code: 0 (ok)" in done.stdout, done.stdout + done.stderr
            assert done.stdout.count("Reused, TLSv1.2") >= 1
            await pod.counted(outbound_closed=None)

    asyncio.run(go())


def test_processes_outside_the_pods_cgroup_are_not_touched(program, tmp_path):
    async def go():
        async with outbound(program, tmp_path, policy(Rule("all", Action.BLOCK))) as pod:
            command = pod.space.pod.enter(["curl", "-sS", "--noproxy", "*", f"http://{pod.space.client_ip}:{PLAIN}/"])
            done = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=60, check=False)
            assert done.stdout == b"app\n", done.stderr
            assert (await pod.asked("api.test")).returncode != 0

    asyncio.run(go())


def test_an_address_that_is_blocked_is_never_connected_to(program, tmp_path):
    async def go():
        here = Rule("net", Action.BLOCK, match=Match(networks=(ip_network("10.99.0.0/16"),)))
        async with outbound(program, tmp_path, policy(here)) as pod:
            assert was_reset(await pod.asked("api.test"))
            assert succeeded(await pod.asked("api.test", address=pod.space.client_ip6), pod.space.client_ip6)
            assert len(pod.web.requests()) == 1

    asyncio.run(go())


def test_without_a_policy_nothing_is_there_and_connections_go_on(program, tmp_path):
    async def go():
        async with outbound(program, tmp_path, policy(NO_PASTE)) as pod:
            assert was_reset(await pod.asked("paste.test"))
            pod.some.policies = ()
            pod.some.plan()
            await pod.some.until(lambda: pod.some.reconciler.target(pod.key) is None)
            assert succeeded(await pod.asked("paste.test"), pod.space.client_ip)

    asyncio.run(go())


def test_policies_change_while_connections_are_made(program, tmp_path):
    async def go():
        async with outbound(program, tmp_path, policy()) as pod:
            assert succeeded(await pod.asked("paste.test"), pod.space.client_ip)
            await pod.program(policy(NO_PASTE))
            assert was_reset(await pod.asked("paste.test"))
            await pod.program(policy(NO_PASTE, mode=Mode.DETECT))
            assert succeeded(await pod.asked("paste.test"), pod.space.client_ip)
            await pod.counted(inspection_would_block=1, inspection_blocked=1)

    asyncio.run(go())


def test_the_next_proxy_takes_over(program, tmp_path):
    async def go():
        async with outbound(program, tmp_path, policy(NO_PASTE), settings=QUICK) as pod:
            for _ in range(2):
                before = pod.target.proxy_pid
                os.kill(before, signal.SIGKILL)
                await pod.some.until(
                    lambda: pod.target.proxy_state is ProxyState.RUNNING and pod.target.proxy_pid != before  # noqa: B023
                )
                await pod.some.until(lambda: pod.target.egress.serving)
                assert succeeded(await pod.asked("api.test"), pod.space.client_ip)
                assert was_reset(await pod.asked("paste.test"))

    asyncio.run(go())


async def kill_every_proxy(pod):
    """Until cancelled: however long a client takes, no proxy is there."""
    while True:
        if pod.target.proxy_pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pod.target.proxy_pid, signal.SIGKILL)
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("fail", [False, True])
def test_without_a_proxy_connections_go_out_directly_or_are_refused(program, tmp_path, fail):
    async def go():
        slow = SupervisorSettings(backoff=replace(QUICK.backoff, window=60.0))  # of proxies that take long to begin
        async with outbound(program, tmp_path, policy(NO_PASTE, fail=fail), settings=slow) as pod:
            killing = asyncio.create_task(kill_every_proxy(pod))
            await pod.some.until(lambda: pod.target.proxy_state is ProxyState.FAILED, within=20)
            await pod.some.until(lambda: not pod.target.egress.serving)
            done = await pod.asked("paste.test")
            killing.cancel()
            await asyncio.wait({killing})
            if fail:
                assert done.returncode == 7, done.stderr
            else:
                assert succeeded(done, pod.space.client_ip)
            await pod.some.until(lambda: pod.target.egress.serving)
            assert was_reset(await pod.asked("paste.test"))

    asyncio.run(go())


def test_a_server_that_refuses_is_seen_to_refuse(program, tmp_path):
    """The first connection is reset after it was made; then the pod's processes see the refusal itself."""

    async def go():
        async with outbound(program, tmp_path, policy(NO_PASTE)) as pod:
            assert was_reset(await pod.asked("api.test", port=4444))
            words = [sys.executable, "-c", UNTIL_REFUSED, pod.space.client_ip, "4444"]
            done = await asyncio.to_thread(pod.run, *words)
            assert done.returncode == 0, done.stderr
            assert succeeded(await pod.asked("api.test"), pod.space.client_ip)
            assert was_reset(await pod.asked("paste.test"))

    asyncio.run(go())


def test_what_a_rule_blocks_by_its_address_is_not_let_out_whatever_a_proxy_says(program, tmp_path):
    async def go():
        blocked = Rule("no-net", Action.BLOCK, match=Match(ports=(PLAIN,)))
        async with outbound(program, tmp_path, policy(blocked)) as pod:
            for port in (PLAIN, OTHER):
                pod.target.egress.unreachable(pod.space.client_ip, port)
            assert was_reset(await pod.asked("api.test", port=PLAIN, scheme="http"))
            assert pod.target.egress.verdicts()["down"] == 0

    asyncio.run(go())


def test_what_is_let_out_is_so_until_the_policies_change(program, tmp_path):
    async def go():
        async with outbound(program, tmp_path, policy(name="before")) as pod:
            steering = pod.target.egress._steering
            steering.unreachable(ip_address(pod.space.client_ip), TLS, seconds=3600)
            assert succeeded(await pod.asked("paste.test"), pod.space.client_ip)
            assert pod.target.egress.verdicts()["down"] == 1
            await pod.program(policy(NO_PASTE))
            assert was_reset(await pod.asked("paste.test"))

    asyncio.run(go())


def test_what_cannot_be_attached_is_tried_again_by_itself(program, tmp_path, monkeypatch):
    async def go():
        failing = [KernelError("link_create", errno.EBUSY, doing="attaching") for _ in range(2)]
        real = EgressSteering.attach

        def attach(*args, **options):
            if failing:
                raise failing.pop()
            return real(*args, **options)

        monkeypatch.setattr(EgressSteering, "attach", attach)
        monkeypatch.setattr(pod_egress, "FIRST_RETRY", 0.1)
        async with outbound(program, tmp_path, policy(NO_PASTE)) as pod:
            assert not failing
            assert pod.some.conditions.all() == ()
            assert was_reset(await pod.asked("paste.test"))

    asyncio.run(go())


def test_a_pod_whose_cgroup_is_not_known_is_told_of(program, tmp_path):
    async def go():
        async with outbound(program, tmp_path, policy(NO_PASTE)) as pod:
            known = pod.some.pods[pod.key]
            pod.some.pods[pod.key] = replace(known, location=replace(known.location, cgroup=None))
            pod.some.plan()
            await pod.some.until(lambda: pod.target.egress.problem)
            [condition] = pod.some.conditions.all()
            assert condition.type is ConditionType.NOT_INSPECTED
            assert "cgroup v2 folder is not known" in condition.text
            assert succeeded(await pod.asked("paste.test"), pod.space.client_ip)

    asyncio.run(go())
