"""Dispatches the messages of one pod's proxy to the pod's owner.

A proxy may only ask for streams of, and report requests for, the rules of its own configuration; `sanitising` bounds
everything else that it sends. Tasks answer requests for streams, at most _MAX_OPENING at a time; all other messages are
handled at once.

A proxy may have several processes. What one says of itself is merged with what the others say (`merged_reports`), and
its numbers of streams and requests become numbers of the pod (`_unique`). Of earlier requests only worker 0 tells.
"""

from __future__ import annotations

import socket
from collections.abc import Collection
from typing import TypeVar

from msgspec.structs import replace

from sidestep.aio.tasks import Tasks
from sidestep.aio.time_limit import time_limit
from sidestep.model.errors import PeerError, RefusedError, SidestepError
from sidestep.node.proxies import sanitising
from sidestep.node.proxies.dials import Dials
from sidestep.node.proxies.merged_reports import MergedReports
from sidestep.node.proxies.proxy_handler import ProxyHandler
from sidestep.node.proxies.proxy_process import ProxyProcess
from sidestep.node.records.checking import Rules
from sidestep.policy.inspection_rows import display_of
from sidestep.protocols.eve import FIREWALL
from sidestep.proxy.control import messages
from sidestep.proxy.control.messages import (
    OUTBOUND,
    Dialed,
    ForgetClient,
    FromProxy,
    Heartbeat,
    Hindered,
    InspectorLate,
    LiveRecords,
    NameClient,
    NoApp,
    NoServer,
    Open,
    Probed,
    Records,
    Report,
    Requests,
    Reset,
)
from sidestep.snapshots.egress import EgressSnapshot
from sidestep.snapshots.ports import PortSnapshot

_MAX_OPENING = 1024
"""Streams of one proxy that may be waiting for their handler at once."""

_NUMBERS = 48
"""Bits of a number that one process gives; the number of its worker is above them."""

_Stream = TypeVar("_Stream", Open, Reset)

_NO_RULES: frozenset[str] = frozenset()


class ProxyDispatcher:
    """Serves one pod's proxy across restarts of its process. `tasks` are the owner's; `open_deadline` is in seconds."""

    def __init__(self, handler: ProxyHandler, *, tasks: Tasks, open_deadline: float) -> None:
        self._handler = handler
        self._tasks = tasks
        self._open_deadline = open_deadline
        self._opening = 0
        self._uids: tuple[frozenset[str], frozenset[str]] = (frozenset(), frozenset())
        """The uids of the present rules and of the last ones, whose last log lines may still come."""
        self._rules: tuple[dict[str, frozenset[str]], dict[str, frozenset[str]]] = ({}, {})
        """The rules of the present inspection policies and of the last ones, by policy."""
        self._ports: frozenset[int] = frozenset()
        self._merged = MergedReports(handler)
        self.dials = Dials()
        """Connections that it was asked for."""
        self.closed = False
        """Requests for streams are refused."""

    def allow(
        self,
        ports: tuple[PortSnapshot, ...],
        egress: tuple[EgressSnapshot, ...] = (),
        outbound: PortSnapshot | None = None,
    ) -> None:
        """Accept messages about these ports and their rules, and about connections that the pod makes, from now on."""
        listened = ports if outbound is None else (*ports, outbound)
        self._uids = (frozenset().union(*(port.uids for port in listened)), self._uids[0])
        policies = [policy for port in ports for policy in port.policies] + [each.policy for each in egress]
        named: dict[str, frozenset[str]] = {}
        for policy in policies:
            rules = frozenset(rule.name for rule in policy.rules)
            named[display_of(policy)] = named.get(display_of(policy), _NO_RULES) | rules
        firewalls = [*(each.waf for each in ports), *(each.waf for each in egress)]
        for name in {name for each in firewalls if each is not None for name in each.names}:
            named[name] = named.get(name, _NO_RULES) | {FIREWALL}
        self._rules = (named, self._rules[0])
        self._ports = frozenset(port.number for port in ports) | ({OUTBOUND} if egress or outbound else set())
        self._merged.keep_ports(self._ports)

    def workers(self, *, serving: Collection[int], leaving: Collection[int]) -> None:
        """The workers that run and take connections are these now, and these leave."""
        self._merged.workers(serving=serving, leaving=leaving)

    def received(self, process: ProxyProcess, message: FromProxy) -> None:
        """Handle a message of `process`. Raises PeerError for one that it may not send, SidestepError for a refusal."""
        match message:
            case Heartbeat():
                beat = sanitising.heartbeat(message, ports=self._ports)
                self._merged.heartbeat(process.worker, beat, ports=self._ports)
            case Open():
                self._open(process, message)
            case Reset():
                self._handler.on_reset(_of_pod(message, process))
            case Requests():
                told = sanitising.requests(message, uids=self._uids[0] | self._uids[1])
                self._handler.on_requests(_requests_of_pod(told, process))
            case Records():
                self._handler.on_records(message, self._known_rules())
            case LiveRecords():
                if message.uid in self._uids[0]:
                    self._handler.on_live_records(message, self._known_rules())
            case Report():
                self._merged.report(process.worker, message, ports=self._ports)
            case Dialed():
                self.dials.answered(process, message.stream, message.error, message.address)
            case _:
                self._told(process, message)

    def process_ended(self, process: ProxyProcess, reason: str, *, others: bool) -> None:
        """A process has ended; `others` of the pod live. What it was asked for will not come."""
        self.dials.process_ended(process)
        self.start_failed(process.worker, others=others)
        if others:
            self._handler.on_process_ended(process.worker, reason)

    def start_failed(self, worker: int, *, others: bool) -> None:
        """Forget what a process has said that did not even start."""
        self._merged.process_ended(worker, others=others)

    def _told(self, process: ProxyProcess, message: FromProxy) -> None:
        """Handle what is said of apps, clients, and the state of the process. As `received`."""
        match message:
            case NameClient():
                self._handler.on_name_client(message, process.worker)
            case ForgetClient():
                self._handler.on_forget_client(message, process.worker)
            case Probed():
                self._handler.on_probed(sanitising.probed(message))
            case NoApp():
                self._handler.on_no_app(message)
            case NoServer():
                self._handler.on_no_server(message)
            case Hindered():
                self._merged.hindered(process.worker, sanitising.hindrances(message, ports=self._ports))
            case InspectorLate():
                self._handler.on_inspector_late()
            case _:
                raise PeerError(f"a pod proxy does not send {type(message).__name__}")

    def _known_rules(self) -> Rules:
        present, last = self._rules
        return {name: present.get(name, _NO_RULES) | last.get(name, _NO_RULES) for name in present.keys() | last.keys()}

    def _open(self, process: ProxyProcess, request: Open) -> None:
        if self.closed:
            raise RefusedError("the pod proxy is being stopped")
        if request.uid not in self._uids[0]:
            raise RefusedError("the intercept is not on this pod any more")
        if self._opening >= _MAX_OPENING:
            raise RefusedError("too many connections are waiting for their handlers")
        self._opening += 1
        self._tasks.start(self._answer_open(process, request), name=f"open {request.stream}")

    async def _answer_open(self, process: ProxyProcess, request: Open) -> None:
        sock: socket.socket | None = None
        try:
            async with time_limit(self._open_deadline):
                sock = await self._handler.open_stream(_of_pod(request, process))
        except (TimeoutError, SidestepError):
            pass  # The app is asked instead.
        finally:
            self._opening -= 1
        try:
            if sock is None:
                await process.tell(messages.Refused(0, request.stream), doing="take a refusal")
            else:
                await process.tell(messages.Opened(0, request.stream), sock.fileno(), doing="take a stream")
        except SidestepError:
            pass  # The process is gone, or has given the stream up; closing our end tells the handler.
        finally:
            if sock is not None:
                sock.close()


def _unique(number: int, process: ProxyProcess) -> int:
    """A number that no other process of the pod gives; 0 for one that no honest process gives."""
    return number | process.worker << _NUMBERS if 0 < number < 1 << _NUMBERS else 0


def _of_pod(message: _Stream, process: ProxyProcess) -> _Stream:
    return replace(message, stream=_unique(message.stream, process)) if process.worker else message


def _requests_of_pod(told: Requests, process: ProxyProcess) -> Requests:
    if not process.worker:
        return told
    lines = tuple(replace(line, number=_unique(line.number, process)) for line in told.requests)
    return replace(told, requests=lines, earlier=())
