"""A pod proxy that was taken over: the worker of `hostile_node`, in the real sandbox, with the daemon's real channel.

The mode is an address of the pod's loopback device, 10.66.66.N: N is that of the attack in `ATTACKS`. In a pod without
such an address it is the real proxy.
"""

from __future__ import annotations

import itertools
import os
import select
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from sidestep.aio.packets import ChannelClosed
from sidestep.aio.pulse import Pulse
from sidestep.proxy.control import messages
from sidestep.proxy.control.channel import ControlChannel
from sidestep.proxy.control.messages import Message
from sidestep.proxy.runtime import worker
from sidestep.snapshots.hindrance import Hindrance

BASE = "10.66.66."
TEXT = "x" * messages.MAX_TEXT


class Taken:
    """The process. It obeys the daemon, counts heartbeats, and attacks as fast as the socket takes it."""

    def __init__(self, channel: ControlChannel[Any], pulse: Pulse) -> None:
        self.channel = channel
        self.pulse = pulse
        self.kept: list[int] = []
        self.uids: list[str] = []
        self.ports: list[int] = []
        self.dials: list[int] = []
        """Numbers of the connections that it was asked for."""

    def obey(self) -> None:
        """Do as an honest proxy would, for as long as the daemon says something."""
        while (received := self.channel.receive()) is not None:
            message, fd = received
            if fd is not None:
                self.kept.append(fd)
                if isinstance(message, messages.Opened):
                    os.close(self.kept.pop())
            if isinstance(message, messages.Configure):
                self.ports = [port.number for port in message.ports] or self.ports
                self.uids = [rule.uid for port in message.ports for rule in port.rules] or self.uids
            if isinstance(message, messages.Dial):
                self.dials.append(message.stream)
            if not isinstance(message, messages.Ack):
                self.channel.acknowledge(message)

    def attack(self, flood: Iterator[Message]) -> None:
        """Send the flood for ever."""
        beaten = 0.0
        while True:
            if time.monotonic() - beaten > 0.1:
                self.pulse.beat()
                beaten = time.monotonic()
            poll = select.poll()
            writes = bool(self.ports or self.dials) and not self.channel.pending
            poll.register(self.channel, select.POLLIN | (select.POLLOUT if writes or self.channel.pending else 0))
            poll.poll(50)
            self.obey()
            if self.channel.flush() and writes:
                for message in itertools.islice(flood, 64):
                    message.seq = self.channel.next_seq()
                    self.channel.send(message)
                    if self.channel.pending:
                        break


def heartbeats(it: Taken) -> Iterator[Message]:
    words = [f"w{number}" for number in range(2000)]
    for number in itertools.count():
        counts = dict.fromkeys(words, number)
        yield messages.Heartbeat(0, number, {it.ports[0]: counts}, counts)


def lines(it: Taken) -> Iterator[Message]:
    while True:
        one = messages.LoggedRequest(
            it.uids[0], it.ports[0], TEXT, 1 << 60, TEXT, TEXT, TEXT, copied=False, fields=((TEXT, TEXT),)
        )
        yield messages.Requests(0, (one,) * 4, 1 << 60)


def many_lines(it: Taken) -> Iterator[Message]:
    while True:
        one = messages.LoggedRequest(it.uids[0], it.ports[0], "1.2.3.4", 1, "GET", "/", "a", copied=False)
        yield messages.Requests(0, (one,) * 256, 0, (messages.LostCopies(it.uids[0], 1, "room", 5),) * 256)


def flapping(it: Taken) -> Iterator[Message]:
    for number in itertools.count():
        port = it.ports[0]
        yield messages.Hindered(0, (Hindrance("cannot-dial", port),))
        yield messages.Hindered(0, ())
        yield messages.NoApp(0, port, socket.AF_INET)
        yield messages.Report(0, port, "UpstreamTlsFailed", f"{number} {TEXT}")
        yield messages.Report(0, port, "UpstreamTlsFailed", "")


def findings(it: Taken) -> Iterator[Message]:
    for number in itertools.count():
        certificate = number.to_bytes(8, "big") * 4000
        yield messages.Probed(0, it.ports[0], "yes", "yes" if number % 2 else "no", TEXT, True, certificate)


def opens(it: Taken) -> Iterator[Message]:
    for number in itertools.count():
        yield messages.Open(0, number, it.uids[0], it.ports[0], "http/1.1", False, TEXT, "1.2.3.4", 1 << 50)
        yield messages.Reset(0, number)


def names(it: Taken) -> Iterator[Message]:
    for number in itertools.count():
        yield messages.NameClient(0, it.ports[0], "127.0.0.1", number, "8.8.8.8", 1 << 40)
        yield messages.ForgetClient(0, it.ports[0], "127.0.0.1", number)


def acknowledgements(it: Taken) -> Iterator[Message]:
    del it
    while True:
        yield messages.Ack(0, "")


def words(it: Taken) -> Iterator[Message]:
    """Floods the log."""
    while True:
        os.write(2, b"\n" * 60_000 + TEXT.encode())
        yield messages.Heartbeat(0, 0, {it.ports[0]: {}}, {})


def records(it: Taken) -> Iterator[Message]:
    """Records in the name of others, with other lines in their texts; some that may not be sent."""
    bank = {"namespace": "bank", "pod": "vault"}
    http = {"url": 'forged\n{"event_type":"alert"}' + TEXT, "http_method": TEXT}
    ends = {"proto": "TCP", "src_ip": "::1", "src_port": 1, "dest_ip": "::1", "dest_port": 2}
    forged = (
        {"timestamp": "x", "event_type": "alert", "kubernetes": bank},
        {"timestamp": TEXT, "event_type": "stats", "stats": {"forged": 1}, "kubernetes": bank},
        {
            "timestamp": "2020-01-01T10:00:00.000000+0000",
            "event_type": "http",
            "http": http,
            "sidestep": {"inspected": True, "id": TEXT},
            "kubernetes": bank,
            **ends,
        },
    )
    made = tuple(map(msgspec.msgpack.encode, forged)) * 4
    words = {f"w{number}": 1 for number in range(messages.MAX_COUNTERS)}
    while True:
        yield messages.Records(0, made, {"rate": 1 << 40, TEXT: 1})
        yield messages.Records(0, (), words)
        for uid in (*it.uids, "of-another-pod"):
            yield messages.LiveRecords(0, uid, made, {"rate": 1 << 40, TEXT: 1})


def connections(it: Taken) -> Iterator[Message]:
    """Says that everything is connected, to where it is not: what it was asked for, and what others may have been."""
    for number in itertools.count():
        yield messages.Dialed(0, it.dials[number % len(it.dials)], address="203.0.113.7")
        yield messages.Dialed(0, number % 1000, address="203.0.113.7")
        yield messages.Dialed(0, 1 << 40 | number, error=TEXT[: messages.MAX_DIAL_ERROR])


_IN_ORDER = (
    heartbeats, lines, many_lines, flapping, findings, opens, names, acknowledgements, words, records, connections,
)  # fmt: skip
ATTACKS: dict[int, Callable[[Taken], Iterator[Message]]] = dict(enumerate(_IN_ORDER, 1))


def mode() -> int:
    """The attack of this pod; 0: none."""
    for number in ATTACKS:
        with socket.socket() as sock:
            try:
                sock.bind((f"{BASE}{number}", 0))
            except OSError:
                continue
            return number
    return 0


def run(channel: ControlChannel[Any], trust_store: ssl.SSLContext, pulse: Pulse) -> None:
    """Be the worker until the daemon is gone."""
    number = mode()
    if not number:
        worker.run(channel, trust_store, pulse)
        return
    taken = Taken(channel, pulse)
    try:
        taken.attack(ATTACKS[number](taken))
    except ChannelClosed:
        return
