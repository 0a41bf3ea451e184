"""The worker of a pod proxy: accepts, sets up and relays the connections of one pod's steered ports.

It joins the parts of the process, carries out the daemon's messages, and is the host of all connections
(`connection.host`).

States

    serving    `Configure` replaces the desired state, `Credential` adds key material, `Listen` and `Unlisten` begin
               and end accepting, `Opened` and `Refused` answer our `Open`
    draining   after `Drain`, or once the channel is closed (the daemon is gone): listeners are retired (or closed, when
               the process leaves others that accept from them) and idle connections closed; the others have until the
               timeout
    flushing   no connection is left: the last copies, and the last bytes to clients, have FLUSH seconds; then the
               process ends

Invariants

  * Applying a snapshot twice changes nothing.
  * A connection keeps the cell of its port (`LivePort.steered`) when the port is not configured any more; every request
    goes to the app then.
  * Each message of the daemon that asks for an answer gets one.
  * A callback that raises ends its own connection only.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from ipaddress import IPv4Network
from typing import Final

from sidestep.aio.pulse import Pulse
from sidestep.engine.leg import Leg
from sidestep.engine.memory_budget import BACKLOG, Budget
from sidestep.engine.mirror.gate import TapGate
from sidestep.engine.mirror.ledger import Ledger
from sidestep.model.condition import ConditionType
from sidestep.model.errors import PeerError, SidestepError
from sidestep.proxy.access.access_side import AccessSide
from sidestep.proxy.connection.app_dials import LEAD, AppDials
from sidestep.proxy.connection.client_naming import ClientNaming
from sidestep.proxy.connection.datagram_flow import Key
from sidestep.proxy.connection.datagrams import Datagrams
from sidestep.proxy.connection.dial import Done, Naming
from sidestep.proxy.connection.endpoints import ConnectionInfo, Endpoints
from sidestep.proxy.connection.handler_streams import HandlerStreams
from sidestep.proxy.connection.host import RelayedConnection
from sidestep.proxy.connection.inspector_link import InspectorLink
from sidestep.proxy.connection.kept_hellos import KeptHellos
from sidestep.proxy.connection.live_ports import CompiledPolicies, LivePort
from sidestep.proxy.connection.setup import ConnectionSetup
from sidestep.proxy.connection.setup_host import PendingConnection
from sidestep.proxy.control import messages
from sidestep.proxy.control.channel import CARRY_DESCRIPTOR, ControlChannel
from sidestep.proxy.control.daemon_link import DaemonLink
from sidestep.proxy.control.readiness import EXHAUSTED, Readiness, Room
from sidestep.proxy.control.record_queue import RecordQueue
from sidestep.proxy.io.loop import Loop
from sidestep.proxy.io.splice import Pipes
from sidestep.proxy.io.stream import PlainStream
from sidestep.proxy.mirror.earlier_requests import EarlierRequests
from sidestep.proxy.mirror.ids_feeds import IdsFeeds
from sidestep.proxy.mirror.request_log import RequestLog
from sidestep.proxy.mirror.scheduler import MirrorScheduler
from sidestep.proxy.runtime.app_probes import AppProbes
from sidestep.proxy.runtime.condition_reports import ConditionReports
from sidestep.proxy.runtime.fair_share import FairShare
from sidestep.proxy.runtime.heartbeat import Heartbeat
from sidestep.proxy.runtime.listeners import Listeners
from sidestep.proxy.runtime.live_connections import LiveConnections
from sidestep.proxy.runtime.outbound_side import OutboundSide
from sidestep.proxy.tls.credentials import Credentials
from sidestep.proxy.tls.failures import late_client_auth
from sidestep.snapshots.ports import PortSnapshot

DETECTION_TIMEOUT: Final = 1.0
"""Seconds a silent client is waited for before the app is dialled."""
HEARTBEAT: Final = 0.5
"""Seconds between heartbeats."""
IDLE_GRACE: Final = 5.0
"""Seconds for which a draining proxy leaves an idle connection alone."""
ORPHANED: Final = 3600.0
"""Seconds an idle client is kept that has no connection to an app that would end it; Envoy's default."""
SWEEP: Final = 60.0
"""Seconds between two looks for such clients."""
FLUSH: Final = 1.0
"""Seconds for the last copies, and for the last words to clients, once nothing else is left to drain."""

Message = messages.ToProxy


class Worker:
    """The process. It implements what setups and conductors ask of it (`SetupHost`)."""

    def __init__(self, channel: ControlChannel[Message], trust_store: ssl.SSLContext, pulse: Pulse) -> None:
        self._loop = Loop(on_crash=self._crashed)
        self._link = DaemonLink(self._loop, channel, on_message=self._dispatch, on_gone=self._orphaned)
        self._handlers = HandlerStreams(self._loop, self._link, on_crash=self._crashed)
        self._naming = ClientNaming(self._loop, self._link)
        self._log = RequestLog(self._loop, self._link)
        self._earlier = EarlierRequests(self._loop, self._link)
        self.records = RecordQueue(self._loop, self._link)
        self.inspector = InspectorLink(self._loop, self._inspector_late)
        self._ports: dict[int, LivePort] = {}
        self._policies = CompiledPolicies()
        self._connections = LiveConnections(self._exit_when_drained)
        self._client_sources: IPv4Network | None = None
        self._anomalies: Counter[str] = Counter()
        self._pulse = pulse
        self._draining = False
        self._drain_timeout = 30.0
        self._readiness = Readiness(self._loop, self._link)
        self._reports = ConditionReports(self._loop, self._link)
        self._heartbeat = Heartbeat(self._link)
        self._probes = AppProbes(self._loop, self._link)
        self._dials = AppDials(self._loop, self._readiness)
        self.credentials = Credentials(trust_store)
        self.detection_timeout = DETECTION_TIMEOUT
        self.pipes = Pipes(lambda: not self._room.is_short)
        self.hellos = KeptHellos()
        self.ledger = Ledger(gate=TapGate(self._loop.now))
        self.mirror_scheduler = MirrorScheduler(self._loop, self.ledger.gate)
        self.ids = IdsFeeds(self._loop, self.mirror_scheduler.spend)
        self.backlog = Budget(BACKLOG)
        self._share = FairShare(backlog=self.backlog, ledger=self.ledger, log=self._log, records=self.records)
        self._datagrams = Datagrams(self._loop, self._open_flow, self.mirror_scheduler)
        self.lingering: set[object] = set()
        self._room = Room(self._readiness, self)
        self._listeners = Listeners(
            self._loop,
            self._readiness,
            has_room=self._room.is_left,
            retired=self._exit_when_drained,
            is_shared=lambda: self._share.workers > 1,
        )
        self._outbound = OutboundSide(
            self._loop, self, self._readiness, has_room=self._room.is_left, retired=self._exit_when_drained
        )
        self._access = AccessSide(
            self._loop, self._link, self.pipes, has_room=self._room.is_half_left, retired=self._exit_when_drained
        )

    def run(self) -> None:
        """Serve until drained."""
        gc.set_threshold(20_000, 20, 50)
        self._link.watch()
        self._beat()
        self._loop.later(SWEEP, self._sweep)
        self._loop.run()

    # --- control channel --------------------------------------------------------------------------------------------

    def _dispatch(self, message: Message, fd: int | None) -> None:
        if isinstance(message, messages.Ack):
            self._naming.acknowledged(message)
            self._handlers.acknowledged(message)
            return
        error = ""
        if fd is None and type(message) in CARRY_DESCRIPTOR:
            self._readiness.exhausted(errno.EMFILE)
        try:
            self._obey(message, fd)
        except (SidestepError, OSError, ValueError, KeyError) as failure:
            error = str(failure) or type(failure).__name__
        self._link.acknowledge(message, error)

    def _obey(self, message: Message, fd: int | None) -> None:
        match message:
            case messages.Configure():
                self._configure(message)
            case messages.Credential():
                self.credentials.add(message.name, message.kind, _owned(fd))
            case messages.FeedIds():
                self.ids.replace(_owned(fd))
            case messages.UseInspector():
                self.inspector.replace(_owned(fd))
            case messages.ShareTable():
                self._outbound.share(_owned(fd), network=message.network, entries=message.entries)
            case messages.Listen():
                self._listen(message, _owned(fd))
            case messages.Unlisten():
                if message.transport == messages.OUTBOUND_TRANSPORT:
                    self._outbound.unlisten()
                elif message.transport.startswith("udp"):
                    self._datagrams.unlisten(message.port, message.transport)
                else:
                    self._listeners.unlisten(message.port)
            case messages.Opened():
                self._handlers.arrived(message.stream, None if fd is None else socket.socket(fileno=fd))
            case messages.Refused():
                self._handlers.arrived(message.stream, None)
            case messages.UseNetwork() | messages.Dial():
                self._access.obey(message, fd)
            case messages.Drain():
                self._drain(message.timeout, leave=message.leave)
            case _:
                raise PeerError(f"{type(message).__name__} is not expected here")

    def _configure(self, message: messages.Configure) -> None:
        wanted = {port.number: port for port in message.ports if port.transport == "tcp"}
        names = {name for port in wanted.values() for name in port.credentials}
        names.update(name for each in message.egress for name in each.credentials)
        for name in names:
            if name not in self.credentials:
                raise PeerError(f"the credential {name} was not sent")
        self._outbound.configure(message.egress, message.outbound)
        compiled = {
            number: LivePort(port, self._policies) for number, port in wanted.items() if number not in self._ports
        }
        for number, port in wanted.items():
            if number in self._ports:
                self._replace(self._ports[number], port)
        self._ports.update(compiled)
        for number in [number for number in self._ports if number not in wanted]:
            self._ports.pop(number).retire()
        for number, live in self._ports.items():
            live.stand_alone(message.workers == 1)
            for rule in live.take_newcomers():
                self._earlier.tell(live, number, rule)
        self.firewalls_changed()
        self._datagrams.configure({port.number: port for port in message.ports if port.transport == "udp"})
        self.credentials.keep(names)
        self._readiness.keep_ports(self._ports)
        self._dials.keep_ports(self._ports)
        self._tell_losses()
        listened = message.ports if message.outbound is None else (*message.ports, message.outbound)
        self.ledger.gate.keep({uid for port in listened for uid in port.uids})
        self._client_sources = IPv4Network(message.client_sources) if message.client_sources else None
        self._drain_timeout = message.drain_timeout
        if self._share.divide(message.workers):
            self._listeners.accept()
        self.records.wanted = message.records
        self.records.live.keep({rule.uid for port in listened for rule in port.rules if rule.records})

    def firewalls_changed(self) -> None:
        """Have the inspector told of what requests may be judged by."""
        ports = (live.snapshot.waf for live in self._ports.values())
        self.inspector.configure((*ports, *self._outbound.firewalls))

    def _inspector_late(self) -> None:
        """Have the daemon end an inspector that has missed a deadline."""
        self._link.send(messages.InspectorLate(self._link.next_seq()))

    def _replace(self, live: LivePort, port: PortSnapshot) -> None:
        resets = live.resets(port)
        live.replace(port)
        if resets:
            self._connections.reset(live)

    def _listen(self, message: messages.Listen, fd: int) -> None:
        listener = socket.socket(fileno=fd)
        if message.transport.startswith("udp"):
            self._datagrams.listen(message.port, message.transport, listener)
            return
        if message.transport == messages.OUTBOUND_TRANSPORT:
            self._outbound.listen(listener)
            return
        port = self._ports.get(message.port)
        if port is None or message.transport != "tcp":
            listener.close()
            raise PeerError(f"port {message.port}/{message.transport} is not configured")

        def accepted(sock: socket.socket, endpoints: Endpoints) -> None:
            self._accepted(self._ports.get(message.port, port), sock, endpoints)

        self._listeners.listen(message.port, listener, accepted)

    # --- connections that the pod makes -------------------------------------------------------------------------------

    def setup_begins(self, setup: PendingConnection) -> None:
        """Note that a connection is being set up."""
        self._connections.begin(setup)

    def no_server(self, host: str, port: int) -> None:
        """Tell the daemon that a server could not be reached: for a while the pod's processes see that themselves."""
        self._link.advise(messages.NoServer(self._link.next_seq(), host, port))

    def setup_failed(self, error: int) -> None:
        """Note that the kernel refused what a connection needs."""
        if error in EXHAUSTED:
            self._readiness.exhausted(error)

    # --- connections ------------------------------------------------------------------------------------------------

    def descriptors(self) -> int:
        """Descriptors in use, and those that accepted connections will need: one to the app each, and streams to
        handlers that were asked for."""
        used = max(len(self._loop) + len(self._connections.setups), 2 * self._connections.count)
        return used + 2 * self.pipes.open + len(self._handlers)

    def _accepted(self, port: LivePort, sock: socket.socket, endpoints: Endpoints) -> None:
        port.counters["accepted"] += 1
        setup = ConnectionSetup(self._loop, sock, port=port, endpoints=endpoints, host=self)
        self._connections.begin(setup)
        try:
            setup.begin()
        except OSError as error:
            if error.errno in EXHAUSTED:
                self._readiness.exhausted(error.errno)
            setup.abandon()

    def setup_over(self, setup: PendingConnection) -> None:
        """Note that a setup is over."""
        self._connections.setup_over(setup)

    def opened(self, connection: RelayedConnection) -> None:
        """Note that a connection is relayed."""
        self._connections.opened(connection)

    def closed(self, connection: RelayedConnection) -> None:
        """Note that a connection is closed; take its names back, and count its anomaly."""
        if connection.endpoints.names:
            self.release_names(connection.endpoints)
        gate, anomaly = connection.relay.gate, connection.relay.anomaly
        if gate is not None:
            gate.end()
        if anomaly:
            self._anomalies[anomaly] += 1
            connection.port.counters["wired"] += 1
        self._connections.closed(connection)

    def report(self, port: LivePort, kind: ConditionType, text: str) -> None:
        """Tell the daemon about a condition, when it changes (`ConditionReports`)."""
        self._reports.report(port, kind, text)

    def late_client_auth_seen(self, port: LivePort) -> None:
        """The app asks clients for certificates after the handshake: from now on such connections are passed through.

        Idle ones that are opened are ended; their clients connect again.
        """
        if port.late_client_auth:
            return
        port.learn_late_client_auth()
        failure = late_client_auth(port.snapshot)
        self.report(port, failure.type, failure.text)
        self._loop.later(0.0, lambda: self._connections.retire_late_auth(port))

    def dial_app(self, endpoints: Endpoints, done: Done) -> Callable[[], None]:
        """Connect to the app, named after the client if the node can do that; returns a function that cancels."""
        naming = None
        if self._client_sources is not None:
            if self._naming.is_possible:
                naming = Naming(partial(self._name, endpoints), self._client_sources)
            else:
                self._unnamed(endpoints)
        return self._dials.dial(endpoints, done, naming=naming)

    def _name(
        self, endpoints: Endpoints, peer: str, peer_port: int, ready: Callable[[bool], None]
    ) -> Callable[[], None]:
        def answered(named: bool) -> None:
            if not named:
                self._unnamed(endpoints)
            ready(named)

        return self._naming.name(endpoints, peer, peer_port, answered)

    def _unnamed(self, endpoints: Endpoints) -> None:
        """Count a connection for which the app sees the pod's own address instead of the client's."""
        port = self._ports.get(endpoints.port)
        if port is not None:
            port.counters["clients_unnamed"] += 1

    def release_name(self, endpoints: Endpoints, app: socket.socket) -> None:
        """A connection to the app is about to be closed, before its client's is."""
        self._naming.release_name(endpoints, app)

    def release_names(self, endpoints: Endpoints) -> None:
        """A client's connection is over."""
        self._naming.release_names(endpoints)

    def observe_protocol(self, port: LivePort, endpoints: Endpoints, *, tls: bool) -> None:
        """A client has begun with TLS or with HTTP in clear: probe the app unless it is known what it speaks."""
        self._probes.observe(port, endpoints, tls=tls)

    def no_app(self, port: LivePort, host: str) -> None:
        """Tell the daemon that a dial to the app was refused."""
        port.counters["no_app"] += 1
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._link.advise(messages.NoApp(self._link.next_seq(), port.steered.number, int(family)))

    def log_requests(self, connection: RelayedConnection) -> None:
        """Queue a connection's diverted requests for the session's log."""
        self.mirror_scheduler.told(sum(request.copied for request in connection.relay.mirror.notes))
        self._log.add(connection)

    def log_flow(self, line: messages.LoggedRequest) -> None:
        """Queue a line about a connection that the pod makes for a session's log."""
        self._log.add_line(line)

    def open_stream(
        self, info: ConnectionInfo, leg: Leg, done: Callable[[PlainStream | None], None]
    ) -> Callable[[], None]:
        """Ask the daemon for a connection to the handler of `leg.rule`."""
        if self._room.is_short:
            return self._refuse(done)
        endpoints = info.endpoints
        return self._handlers.ask(
            done,
            uid=leg.rule.uid if leg.rule is not None else "",
            port=endpoints.port,
            protocol=info.protocol,
            tls=info.tls,
            server_name=info.server_name,
            client=(endpoints.client, endpoints.client_port),
        )

    def _refuse(self, done: Callable[[PlainStream | None], None]) -> Callable[[], None]:
        """Refuse a stream: the last descriptors are reserved. Requests that can go to the app do."""
        return self._loop.later(0.0, lambda: done(None)).cancel

    def _open_flow(self, key: Key, done: Callable[[PlainStream | None], None]) -> Callable[[], None]:
        if self._room.is_short:
            return self._refuse(done)
        uid, port, client, client_port, _ = key
        return self._handlers.ask(done, uid=uid, port=port, protocol="udp", client=(client, client_port))

    # --- life -------------------------------------------------------------------------------------------------------

    def _beat(self) -> None:
        self._loop.later(HEARTBEAT, self._beat)
        self._pulse.beat()
        self._room.look()
        self._end_cut_off()
        self._tell_losses()
        self.records.flush()
        if self._share.workers > 1:
            self._listeners.accept()
        ports: dict[int, Mapping[str, int]] = {number: port.counters for number, port in self._ports.items()}
        if self._datagrams.counters:
            ports[0] = self._datagrams.counters
        if self._outbound.counters:
            ports[messages.OUTBOUND] = self._outbound.counters
        self._heartbeat.beat(self._connections.count, ports, self._anomalies)
        if self._draining:
            self._connections.retire_idle(self._loop.now - IDLE_GRACE)

    def _end_cut_off(self) -> None:
        """End connections whose app does not acknowledge any more, for instance behind a new firewall rule.

        `AppDials` is told first, so that their clients, who connect again, reach the app itself.
        """
        for connection in [*self._connections.relayed]:
            if connection.is_cut_off:
                self._dials.cut_off(connection.endpoints)
                self._loop.later(LEAD, connection.abandon)

    def _tell_losses(self) -> None:
        losses = self.ledger.gate.take_losses()
        for loss, count in losses.items():
            port = self._ports.get(loss.port)
            counters = self._datagrams.counters if port is None else port.counters
            counters["copies_dropped"] += count
        self._log.lose(losses)
        self._log.flush()

    def _orphaned(self) -> None:
        """The daemon is gone. Its sk_lookup link and maps ended with it: the app gets new connections already."""
        self._handlers.refuse_all()
        self._drain(self._drain_timeout)

    def _drain(self, timeout: float, *, leave: bool = False) -> None:
        """Begin to drain, or end by an earlier deadline: a process that leaves others has a later one than the pod."""
        self._loop.later(timeout, self._drain_over)
        if self._draining:
            return
        self._draining = True
        if leave:
            self._listeners.leave()
        else:
            self._listeners.unlisten_all()
        self._outbound.retire()
        self._exit_when_drained()

    def _sweep(self) -> None:
        self._loop.later(SWEEP, self._sweep)
        self._connections.retire_orphaned(self._loop.now - ORPHANED)

    def _exit_when_drained(self) -> None:
        if not self._draining or self._connections.count or len(self._access):
            return
        if self._listeners.are_retiring or self._outbound.is_retiring:
            return
        self._tell_losses()
        self.records.flush()
        self.ids.flush()
        if self.lingering or not self.mirror_scheduler.is_idle:
            self._loop.later(FLUSH, self._loop.stop)
        else:
            self._loop.stop()

    def _drain_over(self) -> None:
        self._connections.abandon()
        self._access.abandon()
        self._listeners.close_retired()
        self._outbound.close_retired()
        self._datagrams.close()
        self._loop.stop()

    def _crashed(self, owner: object, error: Exception) -> None:
        """A callback raised: count it, write a line, end the connection that it belonged to."""
        self._anomalies["internal-error"] += 1
        if isinstance(error, MemoryError):
            self._readiness.out_of_memory()
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else "?"
        line = f"sidestep proxy: internal error at {where}: {type(error).__name__}: {error}\n"
        with contextlib.suppress(OSError):  # the log may be gone, with the daemon
            os.write(2, line.encode("utf-8", "replace"))
        abandon = getattr(owner, "abandon", None)
        if abandon is not None:
            try:
                abandon()
            except Exception:  # noqa: BLE001 - a connection that cannot even be ended must not end the others
                self._anomalies["internal-error"] += 1


def _owned(fd: int | None) -> int:
    if fd is None:
        raise PeerError("a descriptor is missing")
    return fd


def run(channel: ControlChannel[Message], trust_store: ssl.SSLContext, pulse: Pulse) -> None:
    """Entry of the forked, sandboxed child: serve until drained."""
    Worker(channel, trust_store, pulse).run()
