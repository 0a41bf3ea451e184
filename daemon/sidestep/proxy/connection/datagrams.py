"""UDP in the pod proxy: datagrams of steered ports to their handlers and back, copies of tapped ports to theirs.

A *flow* is one client address and port talking to one address of the pod. Its states:

    opening   the daemon was asked for a stream; datagrams wait, at most HELD bytes
    live      each datagram is a capsule on the stream (`protocols.capsules`), each capsule a datagram back
    dead      refused, broken, idle for IDLE seconds, or the oldest of too many

Nothing is reliable here, on purpose: what does not fit into a bounded queue or a socket buffer is dropped and counted,
as a network would. Answers leave through a raw socket of the daemon's making that can only send, from the address and
port that the client wrote to. A tapped port has flows of its own whose answers are read and discarded; nothing about
them can reach the app or its client. Copies share breakers and the budget of time with those of connections
(`engine.mirror.gate`); while the budget is spent the copies' socket is not read, and the kernel drops what it has no
room for. DTLS and QUIC are carried like everything else, never opened.
"""

from __future__ import annotations

import socket
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from time import thread_time
from typing import Final

from sidestep.engine.memory_budget import DATAGRAMS
from sidestep.model.errors import PeerError
from sidestep.protocols import capsules, udp
from sidestep.proxy.connection.dial import plain_address
from sidestep.proxy.io.loop import READ, WRITE, Loop
from sidestep.proxy.io.stream import PlainStream
from sidestep.proxy.mirror.scheduler import Copyist
from sidestep.proxy.mirror.tap_leg import OPENED, WRITTEN
from sidestep.snapshots.ports import PortSnapshot

IDLE: Final = 60.0
"""Seconds without a datagram in either direction after which a flow ends (RFC 4787 asks NATs for at least 120; a flow
that returns is opened again at once, so less state is kept here)."""
SWEEP: Final = 5.0
HELD: Final = 256 * 1024
"""Bytes that may wait for a flow's stream."""
HELD_TOGETHER: Final = DATAGRAMS
"""Bytes that may wait for all streams (`engine.memory_budget`); anybody can send from many addresses."""
MAX_OPENING: Final = 256
"""Flows whose stream was asked for and has not come yet. Beyond that it is a flood, not a crowd: its new flows are
dropped, so that it neither drowns the daemon in questions nor pushes out the flows that live."""
MAX_FLOWS: Final = 4096
"""Flows of one pod; the one that was silent for longest makes room."""
BURST: Final = 64
"""Datagrams taken from a socket per event."""
REST: Final = 0.02
"""Seconds for which copies are not read when their budget is spent."""
IP_PKTINFO: Final = 8
SO_MEMINFO: Final = 55

_PKTINFO4: Final = struct.Struct("=i4s4s")
_PKTINFO6: Final = struct.Struct("=16si")
_MEMINFO: Final = struct.Struct("=9I")
"""The last one counts datagrams that the kernel dropped (SK_MEMINFO_DROPS)."""

Key = tuple[str, int, str, int, str]
"""(rule uid, port, client address, client port, local address)."""
Ask = Callable[[Key, Callable[[PlainStream | None], None]], Callable[[], None]]
"""Ask the daemon for a stream; returns a function that cancels."""


@dataclass(slots=True)
class _Socket:
    """A socket that the daemon gave us: `role` is the transport of its `Listen`."""

    sock: socket.socket
    port: int
    role: str
    dropped: int = 0
    """Datagrams for which the kernel had no room, as far as counted."""


class _Flow:
    """One client's datagrams to one handler. Calls `ended(flow)` once."""

    def __init__(self, datagrams: Datagrams, key: Key, *, answers: bool) -> None:
        self._datagrams = datagrams
        self._loop = datagrams.loop
        self.key = key
        self.seen = self._loop.now
        self._answers = answers
        self._said = False
        """Of a copy: what came of it has been said."""
        self._decoder = capsules.Decoder()
        self._out: list[bytes] = []
        self._queued = 0
        self._stream: PlainStream | None = None
        self._mask = READ
        self._cancel: Callable[[], None] | None = None

    def begin(self, ask: Ask) -> None:
        """Ask for the stream."""
        self._datagrams.opening += 1
        if not self._answers:
            self._datagrams.copyist.spend(OPENED)
        self._cancel = ask(self.key, self._opened)

    def _opened(self, stream: PlainStream | None) -> None:
        self._cancel = None
        self._datagrams.opening -= 1
        if stream is None:
            self._datagrams.counters["datagrams_refused"] += 1
            self._broken()
            return
        if not self._answers:
            self._datagrams.copyist.opened(self.key[0])
        self._stream = stream
        self._loop.add(stream.fd, self._ready, READ)
        self._flush()

    def send(self, payload: bytes) -> None:
        """Carry a datagram to the handler, or drop it."""
        self.seen = self._loop.now
        if self._queued > HELD or self._datagrams.held > HELD_TOGETHER:
            self._datagrams.counters["datagrams_dropped"] += 1
            return
        capsule = capsules.encode(payload)
        self._out.append(capsule)
        self._queued += len(capsule)
        self._datagrams.held += len(capsule)
        if self._stream is not None and len(self._out) == 1:
            self._flush()

    def _flush(self) -> None:
        stream = self._stream
        if stream is None:
            return
        try:
            if self._out:
                if not self._answers:
                    self._datagrams.copyist.spend(WRITTEN)
                data = b"".join(self._out)
                taken = stream.write(data)
                self._queued -= taken
                self._datagrams.held -= taken
                self._out = [data[taken:]] if taken < len(data) else []
        except OSError:
            self._broken()
            return
        mask = READ | (WRITE if self._out else 0)
        if mask != self._mask:
            self._mask = mask
            self._loop.modify(stream.fd, mask)

    def _ready(self, mask: int) -> None:
        stream = self._stream
        if stream is None:
            return
        if mask & ~WRITE:
            try:
                data = stream.read()
                payloads = self._decoder.feed(data) if data else []
            except (OSError, PeerError):
                self._broken()
                return
            if data == b"":
                self._broken()
                return
            if payloads:
                self._answered(payloads)
        if mask & WRITE:
            self._flush()

    def _answered(self, payloads: list[bytes]) -> None:
        if self._answers:
            self.seen = self._loop.now
            for payload in payloads:
                self._datagrams.answer(self.key, payload)
        elif not self._said:
            self._said = True
            self._datagrams.copyist.succeeded(self.key[0])

    def _broken(self) -> None:
        """The handler refused the flow or left it."""
        if not self._answers and not self._said:
            self._said = True
            self._datagrams.copyist.failed(self.key[0])
        self.end()

    def end(self) -> None:
        """Close the stream and be forgotten. Ending twice is the same as once."""
        if self._cancel is not None:
            cancel, self._cancel = self._cancel, None
            self._datagrams.opening -= 1
            cancel()
        self._datagrams.held -= self._queued
        self._queued = 0
        self._out.clear()
        stream, self._stream = self._stream, None
        if stream is not None:
            self._loop.remove(stream.fd)
            stream.close()
        self._datagrams.ended(self)

    def abandon(self) -> None:
        """A bug was met in a callback of this flow."""
        self.end()


class Datagrams:
    """All UDP of one pod."""

    def __init__(self, loop: Loop, ask: Ask, copyist: Copyist | None = None) -> None:
        self.loop = loop
        self.copyist = copyist or Copyist(loop)
        self.counters: Counter[str] = Counter()
        self.held = 0
        """Bytes that wait in all flows."""
        self.opening = 0
        """Flows that have no stream yet."""
        self._ask = ask
        self._ports: dict[int, PortSnapshot] = {}
        self._sockets: dict[tuple[int, str], _Socket] = {}
        self._flows: OrderedDict[Key, _Flow] = OrderedDict()
        self._sweeping = False

    # --- what the daemon wants --------------------------------------------------------------------------------------

    def configure(self, ports: dict[int, PortSnapshot]) -> None:
        """Replace the desired state; flows of rules that are gone end."""
        self._ports = ports
        wanted = {(port.global_uid, number) for number, port in ports.items()}
        wanted |= {(uid, number) for number, port in ports.items() for uid in port.global_taps}
        for flow in [flow for key, flow in self._flows.items() if key[:2] not in wanted]:
            flow.end()

    def listen(self, port: int, role: str, sock: socket.socket) -> None:
        """Take a socket: role `udp` (steered to), `udp-send-4|6` (answers), `udp-tap-4|6` (copies)."""
        sock.setblocking(False)
        self.unlisten(port, role)
        entry = self._sockets[port, role] = _Socket(sock, port, role)
        if role == "udp":
            self.loop.add(sock.fileno(), lambda _mask: self._steered(entry), READ)
        elif role.startswith("udp-tap"):
            self.loop.add(sock.fileno(), lambda _mask: self._tapped(entry), READ)

    def unlisten(self, port: int, role: str) -> None:
        """Close our duplicate of a socket."""
        entry = self._sockets.pop((port, role), None)
        if entry is not None:
            self.loop.remove(entry.sock.fileno())
            entry.sock.close()

    def close(self) -> None:
        """End everything."""
        for flow in list(self._flows.values()):
            flow.end()
        for port, role in list(self._sockets):
            self.unlisten(port, role)

    @property
    def flows(self) -> int:
        """Flows open now."""
        return len(self._flows)

    # --- datagrams --------------------------------------------------------------------------------------------------

    def _steered(self, entry: _Socket) -> None:
        """Datagrams to a steered port."""
        for _ in range(BURST):
            try:
                data, ancillary, flags, peer = entry.sock.recvmsg(udp.MAX_PAYLOAD + 1, 256)
            except BlockingIOError:
                return
            except OSError:
                continue  # an ICMP error for an earlier answer
            port = self._ports.get(entry.port)
            local = _local_address(ancillary)
            if port is None or not port.global_uid or local is None or flags & socket.MSG_TRUNC:
                self.counters["datagrams_dropped"] += 1
                continue
            self.counters["datagrams_in"] += 1
            key = (port.global_uid, entry.port, plain_address(peer[0]), peer[1], local)
            self._carry(key, data, answers=True)

    def _tapped(self, entry: _Socket) -> None:
        """Copies of datagrams to a tapped port."""
        began = thread_time()
        self._copy(entry)
        self.copyist.spend(thread_time() - began)
        if self.copyist.gate.is_spent:
            self.loop.modify(entry.sock.fileno(), 0)
            self.loop.later(REST, lambda: self._go_on(entry))

    def _go_on(self, entry: _Socket) -> None:
        """Read copies again, and count those that were missed."""
        if self._sockets.get((entry.port, entry.role)) is not entry:
            return
        self.loop.modify(entry.sock.fileno(), READ)
        dropped = _MEMINFO.unpack(entry.sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, _MEMINFO.size))[-1]
        self.counters["datagrams_dropped"] += (dropped - entry.dropped) & 0xFFFFFFFF
        entry.dropped = dropped

    def _copy(self, entry: _Socket) -> None:
        for _ in range(BURST):
            try:
                data, ancillary, _, peer = entry.sock.recvmsg(udp.MAX_PAYLOAD + 128, 256)
            except BlockingIOError:
                return
            except OSError:
                continue
            port = self._ports.get(entry.port)
            copied = _copied4(data) if entry.role.endswith("4") else _copied6(data, ancillary, peer[0])
            if port is None or copied is None:
                continue
            client, client_port, local, number, payload = copied
            if number != entry.port or client == local or ip_address(client).is_loopback:
                continue  # said inside the pod
            for uid in port.global_taps:
                key = (uid, entry.port, client, client_port, local)
                if self.copyist.gate.takes(entry.port, uid, begun=key in self._flows):
                    self.counters["datagrams_copied"] += 1
                    self._carry(key, payload, answers=False)

    def _carry(self, key: Key, payload: bytes, *, answers: bool) -> None:
        flow = self._flows.get(key)
        if flow is None:
            if self.opening >= MAX_OPENING:
                self.counters["datagrams_dropped"] += 1
                return
            if len(self._flows) >= MAX_FLOWS:
                next(iter(self._flows.values())).end()
            flow = self._flows[key] = _Flow(self, key, answers=answers)
            self.counters["flows"] += 1
            flow.begin(self._ask)
            if not self._sweeping:
                self._sweeping = True
                self.loop.later(SWEEP, self._sweep)
        self._flows.move_to_end(key)
        flow.send(payload)

    def _sweep(self) -> None:
        for flow in [flow for flow in self._flows.values() if self.loop.now - flow.seen > IDLE]:
            flow.end()
        self._sweeping = bool(self._flows)
        if self._sweeping:
            self.loop.later(SWEEP, self._sweep)

    def ended(self, flow: _Flow) -> None:
        """A flow is over."""
        if self._flows.get(flow.key) is flow:
            del self._flows[flow.key]

    def answer(self, key: Key, payload: bytes) -> None:
        """Send a handler's datagram to the client, from the address and port that it wrote to."""
        _, port, client, client_port, local = key
        four = ":" not in client
        entry = self._sockets.get((0, "udp-send-4" if four else "udp-send-6"))
        if entry is None:
            self.counters["datagrams_dropped"] += 1
            return
        source, destination = ip_address(local).packed, ip_address(client.partition("%")[0]).packed
        extra: tuple[int, int, bytes]
        if four:
            packet = udp.packet4(source, port, destination, client_port, payload)
            extra = (socket.IPPROTO_IP, IP_PKTINFO, _PKTINFO4.pack(0, source, bytes(4)))
        else:
            packet = udp.packet(port, client_port, payload)
            extra = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _PKTINFO6.pack(source, 0))
        try:
            entry.sock.sendmsg([packet], [extra], 0, (client, 0))
            self.counters["datagrams_out"] += 1
        except OSError:
            self.counters["datagrams_dropped"] += 1


def _local_address(ancillary: list[tuple[int, int, bytes]]) -> str | None:
    """Where a datagram was sent to, from its packet information."""
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO and len(data) >= _PKTINFO6.size:
            return plain_address(str(_mapped(_PKTINFO6.unpack_from(data)[0])))
        if level == socket.IPPROTO_IP and kind == IP_PKTINFO and len(data) >= _PKTINFO4.size:
            return str(ip_address(_PKTINFO4.unpack_from(data)[2]))
    return None


def _mapped(packed: bytes) -> object:
    address = ip_address(packed)
    mapped = getattr(address, "ipv4_mapped", None)
    return mapped or address


def _copied4(data: bytes) -> tuple[str, int, str, int, bytes] | None:
    parsed = udp.parse4(data)
    if parsed is None:
        return None
    source, destination, source_port, port, payload = parsed
    return str(ip_address(source)), source_port, str(ip_address(destination)), port, payload


def _copied6(
    data: bytes, ancillary: list[tuple[int, int, bytes]], client: str
) -> tuple[str, int, str, int, bytes] | None:
    parsed = udp.parse(data)
    local = _local_address(ancillary)
    if parsed is None or local is None:
        return None
    source_port, port, payload = parsed
    return client, source_port, local, port, payload
