"""Steered datagrams, answers from the app's own address and port, and copies: with the real kernel."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
from ipaddress import ip_address

import pytest

from sidestep.model.pod import Family, Transport
from sidestep.netns import Netns, udp_listener, udp_sender, udp_tap
from sidestep.protocols import udp
from sidestep.steering import Steering, compile_program
from tests.harness.namespaces import pod_namespace

pytestmark = pytest.mark.privileged

PORT = 5353
IP_PKTINFO = 8
PKTINFO4, PKTINFO6 = struct.Struct("=i4s4s"), struct.Struct("=16si")


@pytest.fixture(scope="module")
def program():
    return asyncio.run(compile_program())


def bound(space, address, port, where="pod"):
    def make():
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((address, port))
        sock.settimeout(5)
        return sock

    return getattr(space, where).call(make)


def addresses(space, family):
    if family is Family.IPV4:
        return space.ip, space.client_ip
    return space.ip6, space.client_ip6


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize("size", [0, 1, 512, 1400, 2401, 20_000])
def test_a_steered_datagram_is_answered_from_the_apps_address(program, family, size):
    with pod_namespace() as space, Netns.open(str(space.pod.path)) as netns:
        own, _ = addresses(space, family)
        with (
            contextlib.closing(Steering.attach(program, netns.fd)) as steering,
            bound(space, own, PORT) as app,
            bound(space, addresses(space, family)[1], 0, "client") as client,
            udp_listener(netns) as listener,
            udp_sender(netns, family) as sender,
        ):
            client.sendto(b"first", (own, PORT))
            assert app.recv(100) == b"first"

            steering.steer(PORT, Transport.UDP, family, listener.fileno())
            listener.settimeout(5)
            payload = bytes(index % 251 for index in range(size))
            client.sendto(payload, (own, PORT))
            data, ancillary, _, peer = listener.recvmsg(65535, 256)
            assert data == payload
            local, _ = PKTINFO6.unpack({kind: body for _, kind, body in ancillary}[socket.IPV6_PKTINFO])
            seen = ip_address(local)
            assert (seen.ipv4_mapped or seen) == ip_address(own)

            answer = payload[::-1]
            host = peer[0].removeprefix("::ffff:")
            if family is Family.IPV4:
                packed = ip_address(own).packed
                packet = udp.packet4(packed, PORT, ip_address(host).packed, peer[1], answer)
                extra = [(socket.IPPROTO_IP, IP_PKTINFO, PKTINFO4.pack(0, packed, bytes(4)))]
            else:
                packet = udp.packet(PORT, peer[1], answer)
                extra = [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, PKTINFO6.pack(ip_address(own).packed, 0))]
            sender.sendmsg([packet], extra, 0, (host, 0))
            got, source = client.recvfrom(65535)
            assert got == answer
            assert source[:2] == (own, PORT)

            steering.unsteer(PORT, Transport.UDP, family)
            client.sendto(b"last", (own, PORT))
            assert app.recv(100) == b"last"


@pytest.mark.parametrize("family", Family)
def test_a_sender_receives_nothing_and_its_filter_is_locked(family):
    with pod_namespace() as space, Netns.open(str(space.pod.path)) as netns:
        own, _ = addresses(space, family)
        with udp_sender(netns, family) as sender, bound(space, own, PORT) as app:
            with bound(space, addresses(space, family)[1], 0, "client") as client:
                client.sendto(b"x", (own, PORT))
                assert app.recv(100) == b"x"
            with pytest.raises(BlockingIOError):
                sender.recv(100)
            for option, value in ((27, b"\0\0\0\0"), (26, struct.pack("@HP", 0, 0)), (44, 0)):
                with pytest.raises(OSError, match="Errno") as caught:
                    sender.setsockopt(socket.SOL_SOCKET, option, value)
                assert caught.value.errno in (errno.EPERM, errno.EINVAL)


@pytest.mark.parametrize("family", Family)
def test_a_tap_gets_copies_of_one_port_while_the_app_is_served(family):
    with pod_namespace() as space, Netns.open(str(space.pod.path)) as netns:
        own, theirs = addresses(space, family)
        with (
            bound(space, own, PORT) as app,
            bound(space, own, PORT + 1) as other,
            bound(space, theirs, 0, "client") as client,
            udp_tap(netns, family, PORT) as tap,
        ):
            tap.settimeout(5)
            for size in (0, 5, 3000):
                client.sendto(b"y" * 7, (own, PORT + 1))
                client.sendto(b"x" * size, (own, PORT))
                assert other.recv(100) == b"y" * 7
                assert app.recv(5000) == b"x" * size
                data, _, _, peer = tap.recvmsg(70_000, 256)
                if family is Family.IPV4:
                    source, destination, source_port, port, payload = udp.parse4(data)
                    assert (ip_address(source), ip_address(destination)) == (ip_address(theirs), ip_address(own))
                else:
                    source_port, port, payload = udp.parse(data)
                    assert peer[0] == theirs
                assert (source_port, port, payload) == (client.getsockname()[1], PORT, b"x" * size)
            tap.setblocking(False)
            with pytest.raises(BlockingIOError):
                tap.recv(100)


def test_a_pod_without_ipv6(program):
    with (
        pod_namespace(ipv6=False) as space,
        Netns.open(str(space.pod.path)) as netns,
        udp_listener(netns) as listener,
        contextlib.closing(Steering.attach(program, netns.fd)) as steering,
        bound(space, space.client_ip, 0, "client") as client,
    ):
        steering.steer(PORT, Transport.UDP, Family.IPV4, listener.fileno())
        client.sendto(b"hello", (space.ip, PORT))
        listener.settimeout(5)
        assert listener.recv(100) == b"hello"
