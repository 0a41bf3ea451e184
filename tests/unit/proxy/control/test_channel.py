"""The codec and the proxy's end of the control channel."""

from __future__ import annotations

import os
import resource
import socket

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidestep.aio.packets import MAX_PAYLOAD, ChannelClosed, ChannelOverflow, sealed_memfd, send_packet
from sidestep.model.errors import BugError, PeerError
from sidestep.proxy.control import messages
from sidestep.proxy.control.channel import Codec, ControlChannel
from sidestep.snapshots.hindrance import Hindrance
from sidestep.snapshots.ports import PortSnapshot

BIG = messages.Requests(
    7,
    tuple(
        messages.LoggedRequest("uid", 80, "10.0.0.1", 1, "GET", "/" + "x" * 1000, "a.test", copied=False)
        for _ in range(256)
    ),
    0,
)
SNAPSHOT = messages.Configure(
    7, generation=1, ports=tuple(PortSnapshot(n, "tcp", "probe", "probe", ()) for n in range(4000))
)


@pytest.fixture
def ends():
    daemon, proxy = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channels = ControlChannel(daemon, receives=messages.FromProxy), ControlChannel(proxy)
    yield channels
    for channel in channels:
        channel.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_messages_and_a_descriptor_travel(ends):
    daemon, proxy = ends
    assert proxy.receive() is None
    with open("/dev/null", "rb") as file:
        daemon.send(messages.Enter(1, uid=7, memory_limit=0, fd_limit=10), file.fileno())
    message, fd = proxy.receive()
    assert message == messages.Enter(1, uid=7, memory_limit=0, fd_limit=10)
    assert os.get_inheritable(fd) is False
    os.close(fd)
    proxy.acknowledge(message, "no")
    assert daemon.receive() == (messages.Ack(1, "no"), None)


def test_a_message_whose_descriptor_finds_no_room_is_there_all_the_same(ends):
    one, other = ends
    one.send(messages.Opened(1, 7), other.fileno())
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        assert other.receive() == (messages.Opened(1, 7), None)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    one.send(messages.Refused(2, 8))
    assert other.receive() == (messages.Refused(2, 8), None)


def test_what_exceeds_a_packet_travels_as_a_memfd(ends):
    daemon, proxy = ends
    before = descriptors()
    data, memfd = Codec(messages.FromProxy).encode(SNAPSHOT)
    send_packet(daemon._sock, data, memfd)
    os.close(memfd)
    assert proxy.receive() == (SNAPSHOT, None)
    assert descriptors() == before


def test_a_proxy_says_nothing_that_exceeds_a_packet(ends):
    daemon, proxy = ends
    before = descriptors()
    with pytest.raises(BugError):
        proxy.send(BIG)
    memfd = sealed_memfd("x", raw(["Ack", 1, "x" * 100]))
    send_packet(proxy._sock, raw(["Large", 1, 109]), memfd)
    os.close(memfd)
    with pytest.raises(PeerError):
        daemon.receive()
    assert descriptors() == before


def test_the_end_is_an_exception(ends):
    daemon, proxy = ends
    daemon.send(messages.Drain(1, 1.0))
    daemon.close()
    assert proxy.receive() == (messages.Drain(1, 1.0), None)
    with pytest.raises(ChannelClosed):
        proxy.receive()
    with pytest.raises(ChannelClosed):
        proxy.send(messages.Ack(1))


def test_sending_never_blocks_and_is_bounded(ends):
    daemon, proxy = ends
    sent = 0
    while not proxy.pending:
        proxy.send(messages.Ack(sent))
        sent += 1
    for _ in range(10):
        proxy.send(messages.Ack(sent))
        sent += 1
    assert proxy.pending == 11
    assert proxy.send(messages.Heartbeat(1, 0, {}, {}), droppable=True) is False
    assert proxy.dropped == 1
    assert proxy.flush() is False
    received = []
    while len(received) < sent:
        received.append(daemon.receive()[0].seq)
        proxy.flush()
    assert received == list(range(sent))
    assert proxy.pending == 0
    with pytest.raises(ChannelOverflow):
        for number in range(100_000):
            proxy.send(messages.Ack(number))


def test_a_queued_descriptor_is_a_duplicate_and_is_given_back(ends):
    daemon, proxy = ends
    before = descriptors()
    while not daemon.pending:
        with open("/dev/null", "rb") as file:
            daemon.send(messages.Opened(1, 1), file.fileno())
    assert descriptors() == before + 1
    count = 0
    while (received := proxy.receive()) is not None:
        os.close(received[1])
        daemon.flush()
        count += 1
    assert count > 5
    assert descriptors() == before
    while not daemon.pending:
        daemon.send(messages.Opened(1, 1), 0)
    daemon.close()
    assert descriptors() == before - 1


def raw(message: object) -> bytes:
    return msgspec.msgpack.encode(message)


@pytest.mark.parametrize(
    "data",
    [
        b"\xc1",
        b"garbage",
        raw([]),
        raw(["Ack"]),
        raw(["Ack", "1", ""]),
        raw(["Ack", 1, "", "extra"]),
        raw(["Nonsense", 1]),
        raw(["Enter", 1, 2, 3, 4]),
        raw(["Heartbeat", 1, 1, {"x": {}}, {}]),
        raw({"message": "Ack", "seq": 1}),
        raw(["Ack", 1, ""]) + b"\x00",
        raw(["Large", 1, 5]),
        b"\x93\xa3Ack\x01\xa2\xff\xfe",
    ],
)
def test_what_a_proxy_may_not_say_is_an_error_of_the_peer(data):
    with pytest.raises(PeerError):
        Codec(messages.FromProxy).decode(data, None)


def test_a_descriptor_out_of_place_is_an_error_and_is_closed():
    codec = Codec(messages.ToProxy)
    before = descriptors()
    for data in (raw(["Ack", 1, ""]), b"garbage", raw(["Drain", 1, 2.0])):
        with pytest.raises(PeerError):
            codec.decode(data, os.dup(0))
    for data in (raw(["Listen", 1, 80, "tcp"]), raw(["Enter", 1, 1, 0, 0])):
        with pytest.raises(PeerError, match="without its descriptor"):
            codec.decode(data, None)
    assert descriptors() == before


def test_a_large_message_that_lies_is_an_error_and_is_closed():
    codec = Codec(messages.ToProxy)
    before = descriptors()
    content = raw(["Ack", 1, "x" * 100])
    nested = raw(["Large", 1, 100])

    def unsealed() -> int:
        fd = os.memfd_create("x", os.MFD_CLOEXEC)
        os.write(fd, content)
        return fd

    def pipe() -> int:
        read, write = os.pipe()
        os.close(write)
        return read

    for size, fd in (
        (len(content), unsealed()),
        (len(content), pipe()),
        (len(content), os.open("/dev/null", os.O_RDONLY)),
        (len(content) - 1, sealed_memfd("x", content)),
        (len(content) + 1, sealed_memfd("x", content)),
        (0, sealed_memfd("x", content)),
        (-1, sealed_memfd("x", content)),
        (MAX_PAYLOAD + 1, sealed_memfd("x", content)),
        (len(nested), sealed_memfd("x", nested)),
    ):
        with pytest.raises(PeerError):
            codec.decode(raw(["Large", 1, size]), fd)
    with pytest.raises(PeerError, match="announced"):
        codec.decode(raw(["Large", 2, len(content)]), sealed_memfd("x", content))
    assert codec.decode(raw(["Large", 1, len(content)]), sealed_memfd("x", content)) == (
        messages.Ack(1, "x" * 100),
        None,
    )
    assert descriptors() == before


def test_our_own_mistakes_are_bugs():
    codec = Codec(messages.ToProxy)
    with pytest.raises(BugError):
        codec.encode(messages.Listen(1, 80, "tcp"))
    with pytest.raises(BugError):
        codec.encode(messages.Ack(1), 0)
    with pytest.raises(BugError):
        codec.encode(messages.Credential(1, "x" * 70_000, "identity"), 0)


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(data):
    try:
        Codec(messages.FromProxy).decode(data, None)
    except PeerError:
        pass


def every_message() -> list[messages.Message]:
    return [
        messages.Stderr(9),
        messages.Spawn(1),
        messages.Spawned(1, 2),
        messages.Enter(1, 2, 3, 4),
        messages.Pulse(1),
        messages.Configure(1, 2, (PortSnapshot(80, "tcp", "probe", "probe", ()),)),
        messages.Credential(1, "n", "identity"),
        messages.FeedIds(1),
        messages.UseInspector(1),
        messages.InspectorLate(1),
        messages.ShareTable(1, "127.200.0.0/16", 1024),
        messages.Listen(1, 80, "tcp"),
        messages.Unlisten(1, 80, "tcp"),
        messages.Opened(1, 2),
        messages.Refused(1, 2),
        messages.UseNetwork(1, "nameserver 10.96.0.10\n", "127.0.0.1 localhost\n", ("10.0.0.0/8",), ("192.0.2.1",)),
        messages.Dial(1, 2, "db", 5432, "tcp", True),
        messages.Dialed(1, 2, "refused"),
        messages.Drain(1, 2.5),
        messages.Hello(1, 1, 2),
        messages.Ack(1, "e"),
        messages.Heartbeat(1, 2, {80: {"accepted": 1}}, {"reason": 1}),
        messages.Open(1, 2, "u", 80, "h2", True, "sn", "10.0.0.1", 5),
        messages.Requests(1, (), 0),
        messages.Records(1, (b"r",), {"rate": 1}),
        messages.LiveRecords(1, "u", (b"r",), {"rate": 1}),
        messages.Report(1, 80, "NoApp", "t"),
        messages.Reset(1, 3),
        messages.NoApp(1, 80, 2),
        messages.NoServer(1, "203.0.113.7", 443),
        messages.Hindered(1, (Hindrance("cannot-dial", 80, 2, 110),)),
        messages.NameClient(1, 80, "127.1.2.3", 4, "192.0.2.1", 5),
        messages.ForgetClient(1, 80, "127.1.2.3", 4),
        messages.Probed(1, 80, "yes", "no", "h2", asks_certificate=True, certificate=b"der"),
        messages.Large(1, 5),
    ]


def test_every_message_survives_the_trip():
    kinds = {type(message) for message in every_message()}
    assert kinds == set(messages.Message.__subclasses__())
    for message in every_message():
        assert msgspec.msgpack.decode(raw(message), type=type(message)) == message


@pytest.mark.parametrize(
    "message",
    [
        messages.Heartbeat(1, 0, {number: {} for number in range(messages.MAX_PORTS + 1)}, {}),
        messages.Heartbeat(1, 0, {80: {f"w{n}": 1 for n in range(messages.MAX_COUNTERS + 1)}}, {}),
        messages.Heartbeat(1, 0, {}, {f"w{n}": 1 for n in range(messages.MAX_COUNTERS + 1)}),
        messages.Requests(1, (), 0, (messages.LostCopies("u", 1, "room", 1),) * (messages.MAX_LINES + 1)),
        messages.Requests(
            1, (messages.LoggedRequest("u", 1, "c", 1, "G", "/", "a", False),) * (messages.MAX_LINES + 1), 0
        ),
        messages.Requests(1, (messages.LoggedRequest("u", 1, "c", 1, "", "", "", False, "", (("", ""),) * 5000),), 0),
        messages.Hindered(1, (Hindrance("no-room"),) * (messages.MAX_HINDRANCES + 1)),
    ],
)
def test_a_collection_that_no_proxy_sends_is_not_decoded(message):
    codec = Codec(messages.FromProxy)
    data, _ = codec.encode(message)
    with pytest.raises(PeerError, match="length"):
        codec.decode(data, None)
