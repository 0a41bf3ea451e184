"""What one pod proxy says and asks: bounded, checked against its configuration, and passed on to the pod's owner.

What a proxy says is not trusted beyond its own pod: it may ask for streams of, and report requests for, the rules of
its own configuration only, and `heard` bounds what it says. Requests for streams are answered by tasks, a bounded
number at a time; everything else at once.
"""

from __future__ import annotations

import asyncio
import socket

from sidestep.aio.tasks import Tasks
from sidestep.model.errors import PeerError, RefusedError, SidestepError
from sidestep.node.proxies import sanitising as heard
from sidestep.node.proxies.incarnation import Incarnation
from sidestep.node.proxies.proxy_handler import ProxyHandler
from sidestep.proxy.control import messages
from sidestep.proxy.control.messages import (
    ForgetClient,
    FromProxy,
    Heartbeat,
    Hindered,
    NameClient,
    NoApp,
    Open,
    Probed,
    Report,
    Requests,
    Reset,
)
from sidestep.snapshots.ports import PortSnapshot

_MAX_OPENING = 1024
"""Streams of one proxy that may be waiting for their handler at once."""


class ProxyTalk:
    """That of one pod's proxy, whichever process it is. `tasks` are the owner's; `open_deadline` is in seconds."""

    def __init__(self, handler: ProxyHandler, *, tasks: Tasks, open_deadline: float) -> None:
        self._handler = handler
        self._tasks = tasks
        self._open_deadline = open_deadline
        self._opening = 0
        self._uids: tuple[frozenset[str], frozenset[str]] = (frozenset(), frozenset())
        """Of the rules now, and of those before: lines about their last requests may still come."""
        self._ports: frozenset[int] = frozenset()
        self.closed = False
        """No stream is opened any more."""

    def about(self, ports: tuple[PortSnapshot, ...]) -> None:
        """From now on the proxy may talk about these ports and their rules."""
        self._uids = (frozenset().union(*(port.uids for port in ports)), self._uids[0])
        self._ports = frozenset(port.number for port in ports)

    def received(self, life: Incarnation, message: FromProxy) -> None:
        """Take a message of the process `life`. Raises SidestepError: it is told that it may not, or ended."""
        match message:
            case Heartbeat():
                self._handler.on_heartbeat(heard.heartbeat(message, ports=self._ports))
            case Open():
                self._open(life, message)
            case Reset():
                self._handler.on_reset(message)
            case Requests():
                self._handler.on_requests(heard.requests(message, uids=self._uids[0] | self._uids[1]))
            case Report():
                self._handler.on_report(message)
            case NameClient():
                self._handler.on_name_client(message)
            case ForgetClient():
                self._handler.on_forget_client(message)
            case Probed():
                self._handler.on_probed(heard.probed(message))
            case NoApp():
                self._handler.on_no_app(message)
            case Hindered():
                self._handler.on_hindered(heard.hindrances(message, ports=self._ports))
            case _:
                raise PeerError(f"a pod proxy does not send {type(message).__name__}")

    def _open(self, life: Incarnation, request: Open) -> None:
        if self.closed:
            raise RefusedError("the pod proxy is being stopped")
        if request.uid not in self._uids[0]:
            raise RefusedError("the intercept is not on this pod any more")
        if self._opening >= _MAX_OPENING:
            raise RefusedError("too many connections are waiting for their handlers")
        self._opening += 1
        self._tasks.start(self._answer_open(life, request), name=f"open {request.stream}")

    async def _answer_open(self, life: Incarnation, request: Open) -> None:
        sock: socket.socket | None = None
        try:
            async with asyncio.timeout(self._open_deadline):
                sock = await self._handler.open_stream(request)
        except (TimeoutError, SidestepError):
            pass  # The app is asked instead.
        finally:
            self._opening -= 1
        try:
            if sock is None:
                await life.tell(messages.Refused(0, request.stream), doing="take a refusal")
            else:
                await life.tell(messages.Opened(0, request.stream), sock.fileno(), doing="take a stream")
        except SidestepError:
            pass  # The process is gone, or has given the stream up; closing our end tells the handler.
        finally:
            if sock is not None:
                sock.close()
