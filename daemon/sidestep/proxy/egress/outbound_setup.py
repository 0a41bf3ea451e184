"""Sets up one connection that the pod makes: from its accept to a relay, or its end.

    accept    the kernel has steered it here; the table says where it was meant to go
    see       peek at the first bytes (`engine.outbound.see`). A silent client has its server connected to meanwhile, so
              that a server which speaks first is heard. Not one of HTTP/2, whose clients do not wait for it
    decide    by the policies of the moment (`engine.outbound.decide`); told before anything is relayed
    relay     end to end: every byte, every end and every break, both ways. Or close: the client sees a reset.
              Or hand the client over to `opened_setup`, which opens what policies want opened, and reads clear HTTP

States

    state    what can happen                                           next
    SEEING   first bytes, an end, a deadline, the server's data        RELAYED, OPENED, CLOSED
    RELAYED  the conductor owns both ends
    OPENED   another setup owns the client; a server that was connected to in clear is reset
    CLOSED   the client is reset, and the server

Invariants
  * No byte of the client reaches the server before the decision, and none is consumed: what is relayed is what the
    client sent. A connection that its address alone has blocked is not even dialled.
  * It is closed for three reasons only: a rule blocks it, a policy that enforces and fails closed says so, or one of
    its ends is gone.
  * `host.setup_over` is called exactly once, after both ends were given away or reset.
"""

from __future__ import annotations

import socket
from functools import lru_cache, partial
from ipaddress import ip_address

from msgspec.structs import replace

from sidestep.engine.classification import REST_SECONDS, AskApp, Event, Wait
from sidestep.engine.outbound import Decision, Opening, Seen, blocks_whatever_follows, decide, see
from sidestep.engine.passthrough import HeardWireRelay, WireRelay
from sidestep.model.errors import PeerError
from sidestep.policy.inspection_match import Address, ConnectionFacts
from sidestep.proxy.connection.app_connection import begin_dial
from sidestep.proxy.connection.captured import captured
from sidestep.proxy.connection.conductor import Conductor
from sidestep.proxy.connection.endpoints import Endpoints
from sidestep.proxy.connection.ends import Ends
from sidestep.proxy.connection.first_bytes import PeekedBytes
from sidestep.proxy.connection.relay_choice import mirror_whole
from sidestep.proxy.egress.opened_host import OpenedHost
from sidestep.proxy.egress.opened_setup import OpenedSetup
from sidestep.proxy.egress.outbound_host import OutboundHost
from sidestep.proxy.egress.outbound_policies import OutboundPolicies
from sidestep.proxy.egress.outbound_records import OutboundRecords, flow_line, matches
from sidestep.proxy.egress.unopened import OpenedClient
from sidestep.proxy.io.loop import Loop
from sidestep.proxy.io.stream import PlainStream
from sidestep.proxy.io.task import Task
from sidestep.proxy.tls.credentials import IssuedCredentials


@lru_cache(maxsize=1024)
def _address(text: str) -> Address:
    """An address; pods connect to few, and from one or two."""
    return ip_address(text)


class OutboundSetup:
    """One accepted connection until it is relayed or closed.

    `endpoints.host` and `endpoints.port` are its original destination.
    """

    def __init__(
        self, loop: Loop, sock: socket.socket, *, policies: OutboundPolicies, endpoints: Endpoints, host: OutboundHost
    ) -> None:
        self._loop = loop
        self._policies = policies
        self._port = policies.port
        self._endpoints = endpoints
        self._host = host
        self._ends = Ends(loop, sock)
        self._records = OutboundRecords(policies, endpoints, host.records)
        self._task = Task(self._run(sock))

    def begin(self) -> None:
        """Begin. Raises OSError when the loop cannot take the socket; the setup is over then."""
        self._task.start()

    def abandon(self) -> None:
        """End it where it stands: reset the client, and the server. Does nothing when it is over."""
        self._task.cancel()

    async def _run(self, sock: socket.socket) -> None:
        try:
            decision = await self._judge(sock)
            if decision.blocks or decision.closes:
                self._port.counters["outbound_closed"] += 1
                self._records.over(sock)
            elif decision.opening is not None:
                self._open(decision, decision.opening)
            else:
                self._relay()
        except PeerError:
            pass  # the client or the server is gone: nobody is left to be told
        finally:
            self._ends.reset()
            self._host.setup_over(self)

    async def _judge(self, sock: socket.socket) -> Decision:
        """Decide, and tell. Raises PeerError when the client breaks or the server is out of reach."""
        address, port = _address(self._endpoints.host), self._endpoints.port
        seen = Seen()
        if not blocks_whatever_follows(self._policies.current, address, port):
            seen = await self._see(sock)
        facts = ConnectionFacts(_address(self._endpoints.client), destination=address, port=port)
        decision = decide(self._policies.current, facts, seen, self._loop.now)
        if decision.opening is not None:
            issued, now = self._host.process.credentials.issued, self._loop.now
            if reason := self._policies.hindrance(decision, seen, issued, now):
                decision = decision.unopened(reason)
        if decision.opening is None and not decision.closes and seen.clear_http and self._port.has_wiretaps:
            decision = replace(decision, opening=Opening.READ)
        self._records.decided(decision, seen)
        for rule in self._port.steered.route.wiretaps if decision.opening is None else ():
            if rule.heads_only and matches(rule, seen):
                self._host.log_flow(flow_line(rule, self._endpoints, seen))
        return decision

    async def _see(self, sock: socket.socket) -> Seen:
        first = PeekedBytes(self._loop, sock, partial(begin_dial, self._host, self._port, self._endpoints))
        try:
            found = see(Event.ACCEPTED)
            data = b""
            while isinstance(found, Wait | AskApp):
                event, more = await first.next(found, len(data))
                if event is Event.SERVER_FIRST and first.holds_app():
                    found = Wait(1, REST_SECONDS) if isinstance(found, AskApp) else found
                    continue
                data = more
                found = see(event, data)
            self._ends.app = first.take_app()
        finally:
            first.close()
        return found

    def _open(self, decision: Decision, opening: Opening) -> None:
        """Hand the client over to the setup that opens the connection."""
        sock, process = self._ends.take_client_socket(), self._host.process
        seen, credentials = self._records.seen, process.credentials
        port = self._policies.open(decision, name=seen.name, flow=self._records.flow)
        leaves = credentials.issued(port.snapshot.identity)
        own = credentials if leaves is None else IssuedCredentials(credentials, leaves, seen.name)

        peer = OpenedClient(self._policies.unopened, seen.name, seen.hello, lambda: self._loop.now)
        setup = OpenedSetup(
            self._loop,
            sock,
            opening=opening,
            speaks=seen.clear_http,
            port=port,
            endpoints=self._endpoints,
            host=OpenedHost(self._loop, process, credentials=own, late_auth=peer.asks_later),
            unopened=self._records.offered,
            peer=peer,
        )
        process.setup_begins(setup)
        try:
            if seen.clear_http is None:
                self._loop.remove(sock.fileno())
            setup.begin()
        except OSError as error:
            process.setup_failed(error.errno or 0)
            setup.abandon()

    def _relay(self) -> None:
        """Hand both ends to a conductor, and begin."""
        relay = HeardWireRelay(self._records.hear) if self._records.hears else WireRelay()
        if self._port.snapshot.captures:
            told = captured(self._port, self._endpoints, None, "")
            mirror_whole(relay, self._port, self._host.ledger, told)
        conductor = Conductor(
            self._loop, relay, host=self._host, port=self._port, endpoints=self._endpoints, protocol="tcp"
        )
        client, server = self._ends.take_client_socket(), self._ends.take_app_socket()
        self._host.opened(conductor)
        try:
            conductor.attach(relay.client, self._records.watch(client), watched=True)
            if server is not None:
                conductor.attach(relay.app, PlainStream(server), watched=False)
            conductor.begin()
        except Exception:
            conductor.abandon()  # nobody else could end it
            raise
