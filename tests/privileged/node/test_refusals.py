"""Which ends of opened TLS count as a refusal of the certificate: those that a client makes of itself."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import subprocess
import sys

import pytest

from sidestep.model.egress import EgressMode
from tests.harness.authority import Authority
from tests.harness.cgroups import inside
from tests.harness.nginx import nginx
from tests.harness.peers import Server
from tests.harness.processes import child
from tests.harness.tls_peers import load
from tests.privileged.node.outward import outbound, policy

pytestmark = pytest.mark.privileged

ISSUER, SERVERS = Authority("Egress CA"), Authority("Servers")
IDLE = 8446
"""The port of a server that ends connections."""


@contextlib.asynccontextmanager
async def opened(program, tmp_path, *, fail=False):
    made = policy(opens=EgressMode.DECRYPT, trust="servers", issuer="issuer", fail=fail)
    secrets = {"issuer": ISSUER.pair, "servers": SERVERS.pem}
    async with outbound(program, tmp_path, made, secrets=secrets) as pod:
        (tmp_path / "both.pem").write_bytes(ISSUER.pem + SERVERS.pem)
        listen = [f"{pod.space.client_ip}:8445"]
        certificate = SERVERS.issue("*.api.test")
        with nginx(
            pod.space.client, tmp_path / "far", listen=listen, certificate=certificate, http2=True,
            extra="client_header_timeout 1s;",
        ):  # fmt: skip
            yield pod, tmp_path / "both.pem"


def command(pod, ca, way, name, *, port=8445, alpn="http/1.1"):
    return (
        sys.executable, "-m", "tests.harness.leaving_client", pod.space.client_ip, str(port), f"{name}.api.test",
        str(ca), alpn, way,
    )  # fmt: skip


async def visit(pod, *args, **options):
    """Who issued the certificate that a client was shown; empty for one that leaves before it says so."""
    done = await asyncio.to_thread(pod.run, *command(pod, *args, **options))
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


WAYS = ("silent", "reset", "notify", "alert", "handshake")


@pytest.mark.parametrize("alpn", ["http/1.1", ""])
def test_a_client_that_leaves_at_once_twice_is_left_alone_from_then_on(program, tmp_path, alpn):
    """Each asks for another name: what is remembered is the server's name and the client's fingerprint."""

    async def go():
        async with opened(program, tmp_path) as (pod, ca):
            ended = 0
            for number, way in enumerate(WAYS, 1):
                for _ in range(1 if way == "alert" else 2):
                    await visit(pod, ca, way, way, alpn=alpn)
                    ended += 1
                    await pod.counted(inspection_closed_client_refuses_certificate=ended)
                assert await visit(pod, ca, "asks", way, alpn=alpn) == "Servers", way
                await pod.counted(inspection_bypassed_client_refuses_certificate=number)

    asyncio.run(go())


@pytest.mark.parametrize("alpn", ["http/1.1", ""])
def test_one_that_leaves_once_and_asks_the_next_time_is_opened(program, tmp_path, alpn):
    """Also where it asks on a connection that was there before, and stays."""

    async def go():
        async with opened(program, tmp_path) as (pod, ca):
            for number in (1, 2):
                await visit(pod, ca, "silent", "probed", alpn=alpn)
                await pod.counted(inspection_closed_client_refuses_certificate=number)
                assert await visit(pod, ca, "asks", "probed", alpn=alpn) == "Egress CA"
            words = inside(pod.folder, pod.space.pod.enter(command(pod, ca, "stays", "kept", alpn=alpn)))
            with child(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
                assert await asyncio.to_thread(client.stdout.readline) == "Egress CA\n"
                for number in (3, 4, 5):
                    assert await asyncio.to_thread(client.stdout.readline) == "answered\n"
                    await visit(pod, ca, "silent", "kept", alpn=alpn)
                    await pod.counted(inspection_closed_client_refuses_certificate=number)
                    client.stdin.write("\n")
                    client.stdin.flush()
                assert await asyncio.to_thread(client.stdout.readline) == "answered\n"
                client.stdin.close()
            assert await visit(pod, ca, "asks", "kept", alpn=alpn) == "Egress CA"

    asyncio.run(go())


def test_where_a_policy_fails_closed_only_an_alert_tells(program, tmp_path):
    async def go():
        async with opened(program, tmp_path, fail=True) as (pod, ca):
            for way in WAYS:
                await visit(pod, ca, way, way)
                if way != "alert":
                    assert await visit(pod, ca, "asks", way) == "Egress CA", way
            await pod.counted(outbound=2 * len(WAYS) - 1, inspection_closed_client_refuses_certificate=1)

    asyncio.run(go())


def test_other_clients_are_opened_again(program, tmp_path):
    """nginx ends a connection on which nothing is said after a second, which is within `refusal.AT_ONCE`."""

    async def go():
        async with opened(program, tmp_path) as (pod, ca):
            for way in ("late", "waits", "asks"):
                assert await visit(pod, ca, way, way) == "Egress CA"
                assert await visit(pod, ca, "asks", way) == "Egress CA", way
            await pod.counted(outbound=6, inspection_closed_client_refuses_certificate=None)

    asyncio.run(go())


def ends(how):
    """The script of a server that ends each connection at once."""

    def script(server, connection):
        sock = connection.sock
        if how == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif how == "timeout":
            connection.send(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        elif how == "notify":
            sock.settimeout(0.0)
            with contextlib.suppress(ssl.SSLError, OSError):
                sock.unwrap()
        sock.close()

    return script


@pytest.mark.parametrize("alpn", ["http/1.1", ""])
def test_a_server_that_ends_connections_at_once_is_opened_again(program, tmp_path, alpn):
    async def go():
        async with opened(program, tmp_path) as (pod, ca):
            for number, how in enumerate(("silent", "reset", "notify", "timeout"), 1):
                with Server(
                    ends(how), netns=pod.space.client, address=pod.space.client_ip, port=IDLE, tls=context(alpn)
                ):
                    for _ in range(2):
                        assert await visit(pod, ca, "waits", how, port=IDLE, alpn=alpn) == "Egress CA", how
                await pod.counted(outbound=2 * number, inspection_closed_client_refuses_certificate=None)

    asyncio.run(go())


def context(alpn=""):
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    load(made, SERVERS.issue("*.api.test"))
    if alpn:
        made.set_alpn_protocols([alpn])
    return made


def test_a_client_that_had_given_up_before_it_was_answered_has_refused_nothing(program, tmp_path):
    """Its server takes longer for its handshake than the client waits."""

    async def go():
        async with opened(program, tmp_path) as (pod, ca):
            listener = pod.space.client.call(lambda: socket.create_server((pod.space.client_ip, IDLE)))
            with listener:
                impatient = (
                    "curl", "-sS", "--noproxy", "*", "--max-time", "1", "--cacert", str(ca), "--resolve",
                    f"slow.api.test:{IDLE}:{pod.space.client_ip}", f"https://slow.api.test:{IDLE}/",
                )  # fmt: skip
                done = await asyncio.to_thread(pod.run, *impatient)
                assert done.returncode == 28, done.stderr
                await asyncio.to_thread(shaken, listener, context())
            await pod.counted(outbound=1, inspection_closed_client_refuses_certificate=None)
            with Server(ends("timeout"), netns=pod.space.client, address=pod.space.client_ip, port=IDLE, tls=context()):
                assert await visit(pod, ca, "waits", "slow", port=IDLE) == "Egress CA"

    asyncio.run(go())


def shaken(listener, made):
    """Shake hands with the connection that waits, and wait for its end."""
    listener.settimeout(20)
    raw, _ = listener.accept()
    with raw:
        raw.settimeout(20)
        with contextlib.suppress(OSError), made.wrap_socket(raw, server_side=True) as sock:
            sock.recv(1)
