"""UDP in the pod proxy: datagrams of steered ports to their handlers and back, and copies of those of tapped ports.

A *flow* (`datagram_flow`) is one client address and port that talks to one address of the pod. The daemon gives three
kinds of sockets: `udp`, to which a port's datagrams are steered; `udp-send-4|6`, raw sockets that can only send, for
the answers, which leave from the address and port that the client wrote to; `udp-tap-4|6`, which receive copies.

Nothing is reliable: what does not fit into a bounded queue or a socket buffer is dropped and counted, as a network
would.

A tapped port has flows of its own. Their answers are read and discarded, and nothing about them can reach the app or
its client. They share circuit breakers and the budget of time with the copies of connections (`engine.mirror.gate`):
while the budget is spent, the sockets of copies are not read, and the kernel drops what it has no room for.

DTLS and QUIC are carried like everything else, and never opened.
"""

from __future__ import annotations

import socket
import struct
from collections import Counter, OrderedDict
from dataclasses import dataclass
from ipaddress import ip_address
from time import thread_time
from typing import Final

from sidestep.protocols import udp
from sidestep.proxy.connection.datagram_addresses import copied4, copied6, local_address, source_information
from sidestep.proxy.connection.datagram_flow import Ask, Flow, Key
from sidestep.proxy.connection.dial import plain_address
from sidestep.proxy.io.loop import READ, Loop
from sidestep.proxy.mirror.scheduler import MirrorScheduler
from sidestep.snapshots.ports import PortSnapshot

IDLE: Final = 60.0
"""Seconds without a datagram in either direction after which a flow ends (RFC 4787 asks NATs for at least 120; a flow
that returns is opened again at once, so less state is kept here)."""
SWEEP: Final = 5.0
"""Seconds between two looks for idle flows."""
MAX_OPENING: Final = 256
"""Flows whose stream was asked for and has not come. Above this number new flows are dropped: a flood neither drowns
the daemon in calls nor pushes out the flows that live."""
MAX_FLOWS: Final = 4096
"""Flows of one pod. For one more, the flow that was idle for longest is ended."""
BURST: Final = 64
"""Datagrams taken from a socket per event."""
PAUSE: Final = 0.02
"""Seconds for which copies are not read once their budget is spent."""
SO_MEMINFO: Final = 55
_MEMINFO: Final = struct.Struct("=9I")
"""The last number counts datagrams that the kernel dropped (SK_MEMINFO_DROPS, linux/sock_diag.h)."""


@dataclass(slots=True)
class _Socket:
    """A socket of the daemon. `role` is the transport of its `Listen`."""

    sock: socket.socket
    port: int
    role: str
    dropped: int = 0
    """Datagrams for which the kernel had no room, when they were last counted."""


class Datagrams:
    """All UDP of one pod."""

    def __init__(self, loop: Loop, ask: Ask, mirror_scheduler: MirrorScheduler | None = None) -> None:
        self.loop = loop
        self.mirror_scheduler = mirror_scheduler or MirrorScheduler(loop)
        self.counters: Counter[str] = Counter()
        self.held = 0
        """Bytes that wait in all flows."""
        self.opening = 0
        """Flows that have no stream yet."""
        self._ask = ask
        self._ports: dict[int, PortSnapshot] = {}
        self._sockets: dict[tuple[int, str], _Socket] = {}
        self._flows: OrderedDict[Key, Flow] = OrderedDict()
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
        """End every flow and close every socket."""
        for flow in list(self._flows.values()):
            flow.end()
        for port, role in list(self._sockets):
            self.unlisten(port, role)

    @property
    def flows(self) -> int:
        """The number of flows that have not ended."""
        return len(self._flows)

    # --- datagrams --------------------------------------------------------------------------------------------------

    def _steered(self, entry: _Socket) -> None:
        """Receive datagrams of a steered port."""
        for _ in range(BURST):
            try:
                data, ancillary, flags, peer = entry.sock.recvmsg(udp.MAX_PAYLOAD + 1, 256)
            except BlockingIOError:
                return
            except OSError:
                continue  # an ICMP error for an earlier answer
            port = self._ports.get(entry.port)
            local = local_address(ancillary)
            if port is None or not port.global_uid or local is None or flags & socket.MSG_TRUNC:
                self.counters["datagrams_dropped"] += 1
                continue
            self.counters["datagrams_in"] += 1
            key = (port.global_uid, entry.port, plain_address(peer[0]), peer[1], local)
            self._carry(key, data, answers=True)

    def _tapped(self, entry: _Socket) -> None:
        """Receive copies of datagrams of a tapped port; count the time."""
        began = thread_time()
        self._copy(entry)
        self.mirror_scheduler.spend(thread_time() - began)
        if self.mirror_scheduler.gate.is_spent:
            self.loop.modify(entry.sock.fileno(), 0)
            self.loop.later(PAUSE, lambda: self._resume(entry))

    def _resume(self, entry: _Socket) -> None:
        """Read copies again, and count those that the kernel dropped meanwhile."""
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
            copied = copied4(data) if entry.role.endswith("4") else copied6(data, ancillary, peer[0])
            if port is None or copied is None:
                continue
            client, client_port, local, number, payload = copied
            if number != entry.port or client == local or ip_address(client).is_loopback:
                continue  # sent inside the pod
            for uid in port.global_taps:
                key = (uid, entry.port, client, client_port, local)
                if self.mirror_scheduler.gate.takes(entry.port, uid, begun=key in self._flows):
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
            flow = self._flows[key] = Flow(self, key, answers=answers)
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

    def ended(self, flow: Flow) -> None:
        """Forget a flow that has ended."""
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
        destination = ip_address(client.partition("%")[0]).packed
        if four:
            packet = udp.packet4(ip_address(local).packed, port, destination, client_port, payload)
        else:
            packet = udp.packet(port, client_port, payload)
        try:
            entry.sock.sendmsg([packet], [source_information(local)], 0, (client, 0))
            self.counters["datagrams_out"] += 1
        except OSError:
            self.counters["datagrams_dropped"] += 1
