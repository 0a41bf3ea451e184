"""The registry of sessions: the existing intercepts, and the way from a pod proxy to the handler of each.

`register` accepts a session: it validates the spec, assigns name and uid, and asks the node about conflicts. The
session is served while its tunnel lives. When the tunnel ends or somebody ends the session, it first leaves
`intercepts()` and `on_change` is called, so that the next request goes to the app; then its connections end.

The daemon does not poll: it sets `on_change`, and calls `refresh()` when the result of `NodeView.state` may have
changed.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterable

from msgspec.structs import astuple

from sidestep import __version__
from sidestep.aio.tasks import Tasks
from sidestep.config.filters import describe_filter
from sidestep.model.errors import PeerError, RefusedError, SidestepError
from sidestep.model.intercept import Intercept
from sidestep.model.pod import PodKey
from sidestep.node.sessions.answers import AnswerTotals
from sidestep.node.sessions.capture_bounds import BoundsOfCaptures, CaptureBounds
from sidestep.node.sessions.capture_log import captures_told, inspection_told
from sidestep.node.sessions.intercept import intercept_of
from sidestep.node.sessions.node_view import NodeView
from sidestep.node.sessions.pod_world import NoWorld, PodWorld
from sidestep.node.sessions.record_feed import RecordFeed, WaitingBytes
from sidestep.node.sessions.session import Session
from sidestep.policy.earlier_alerts import is_of
from sidestep.protocols import eve
from sidestep.protocols.eve_records import Record
from sidestep.proxy.control.messages import Earlier, LoggedAnswer, LoggedRequest, LostCopies, Open
from sidestep.tunnel import messages
from sidestep.tunnel.limits import DEFAULT_LIMITS, TunnelLimits
from sidestep.tunnel.messages import Answer, Answered, Ended, Lost, Request, SessionSpec, TlsFacts
from sidestep.tunnel.opening import StreamOpening
from sidestep.tunnel.session_names import base_name
from sidestep.tunnel.unread_budget import UnreadBudget
from sidestep.tunnel.views import InterceptView

MAX_SESSIONS = 1024
"""Sessions of one node."""


LAST_BYTES = 1.0
"""Seconds for what is on its way when a capture has reached its bounds."""


def _nothing() -> None:
    """Default of `on_change`."""


def _no_alerts(_exchange: str) -> Iterable[Record]:
    """Default of `alerts`."""
    return ()


def _unheard(_intercept: Intercept, _reason: str) -> None:
    """Default of `on_over`."""


class SessionRegistry:
    """All sessions of this node. For one event loop, without locks."""

    def __init__(
        self, *, view: NodeView, node: str, limits: TunnelLimits = DEFAULT_LIMITS, local_refusal: str = ""
    ) -> None:
        """Create an empty registry.

        `local_refusal` is the reason why no session may begin at the unix socket; empty where it may.
        """
        self.answers = AnswerTotals()
        self.on_change: Callable[[], None] = _nothing
        self.on_over: Callable[[Intercept, str], None] = _unheard
        """Called when a capture has reached its bounds, with the reason, after its session was told."""
        self.leaving = ""
        """Reason why no session may begin now, although it soon could at this daemon's successor; empty otherwise."""
        self._view = view
        self._node = node
        self._limits = limits
        self.budget = UnreadBudget()
        """Limit of unread bytes of all tunnels together."""
        self.waiting_records = WaitingBytes()
        """Records of inspection that wait for all sessions together."""
        self.alerts: Callable[[str], Iterable[Record]] = _no_alerts
        """Finds the alerts of an exchange that this node knows."""
        self.world: PodWorld = NoWorld()
        """What sessions use that have access to pods."""
        self._sessions: dict[str, Session] = {}
        self._bounds = BoundsOfCaptures(MAX_SESSIONS)
        self._ordered: tuple[Intercept, ...] | None = ()
        self._names: dict[tuple[str, str], dict[str, Session]] = {}
        """Sessions by (namespace, name), then uid: in a cluster an intercept and a wiretap may share a name."""
        self._local_refusal = local_refusal
        self._closing: str | None = None

    # --- for the daemon ---------------------------------------------------------------------------------------------

    def intercepts(self) -> tuple[Intercept, ...]:
        """Return the intercepts of all sessions, oldest first. Sorted once after each change."""
        if self._ordered is None:
            intercepts = (each.intercept for each in self._sessions.values())
            self._ordered = tuple(sorted(intercepts, key=lambda each: each.order))
        return self._ordered

    def intercept(self, uid: str) -> Intercept | None:
        """Return the intercept of one session; None when there is none."""
        session = self._sessions.get(uid)
        return session.intercept if session is not None else None

    def views(self) -> tuple[InterceptView, ...]:
        """Return the intercepts as `sidestep status` shows them, oldest first."""
        return tuple(self._view_of(self._sessions[each.uid]) for each in self.intercepts())

    def refresh(self) -> None:
        """Send every session the state of its pods, where it has changed."""
        for uid, session in self._sessions.items():
            session.publish(self._view.state(uid))

    async def open_stream(self, opening: Open, *, pod: PodKey, proxy: int) -> socket.socket:
        """Connect one diverted connection to the handler of `opening.uid`; returns the pod proxy's end of a socketpair.

        The socket is an AF_UNIX stream. FIN is half-close in both directions. Both directions closed at once (POLLHUP)
        means that the handler's connection broke or the session ended. `proxy` is the uid of the pod proxy's user,
        which is unique at any time; a pod may have two proxies, one of which drains. Raises RefusedError within
        `TunnelLimits.open_timeout` seconds.
        """
        session = self._sessions.get(opening.uid)
        if session is None:
            raise RefusedError("the session is gone")
        return await session.open_stream(
            StreamOpening(
                intercept=opening.uid,
                pod=str(pod),
                port=opening.port,
                client=opening.client,
                client_port=opening.client_port,
                protocol=opening.protocol,
                tls=opening.tls,
                server_name=opening.server_name,
                capture=bool(session.intercept.capture),
            ),
            number=(proxy, opening.stream),
        )

    def record(self, requests: Iterable[LoggedRequest], *, pod: PodKey) -> None:
        """Send sessions the requests that a pod proxy diverted, copied or showed to them, and their answers. Unknown
        uids are ignored.
        """
        now = time.time()
        for each in requests:
            session = self._sessions.get(each.uid)
            if session is None:
                continue
            answer = None if each.answer is None else _answer(each.answer)
            if answer is not None and not each.earlier:
                self.answers.count(session.intercept, answer)
            if each.is_answer:
                if answer is not None:
                    session.record_answer(Answered(str(pod), each.port, each.number, answer))
            else:
                session.record(
                    Request(
                        time=now - each.age,
                        pod=str(pod),
                        port=each.port,
                        client=each.client,
                        client_port=each.client_port,
                        method=each.method,
                        path=each.path,
                        authority=each.authority,
                        copied=each.copied,
                        lost=each.lost,
                        fields=each.fields,
                        server=each.server,
                        protocol=each.protocol,
                        tls=each.tls,
                        trace=each.trace,
                        number=each.number,
                        answer=answer,
                        earlier=each.earlier,
                        tls_facts=None if each.tls_facts is None else TlsFacts(*astuple(each.tls_facts)),
                    )
                )

    def record_losses(self, losses: Iterable[LostCopies], *, pod: PodKey) -> None:
        """Send sessions the number of copies that a pod proxy did not make. Unknown uids are ignored."""
        for each in losses:
            session = self._sessions.get(each.uid)
            if session is not None:
                session.record_loss(Lost(pod=str(pod), port=each.port, count=each.count, reason=each.reason))

    def record_earlier(self, told: Iterable[Earlier], *, pod: PodKey) -> None:
        """Tell sessions that a pod proxy has told them all its earlier requests. Unknown uids are ignored."""
        for each in told:
            session = self._sessions.get(each.uid)
            if session is not None:
                session.record_earlier(messages.Earlier(str(pod), each.port, each.count, each.kept))

    def record_feed(self, uid: str) -> RecordFeed | None:
        """Return the way of records to a session; None if it is gone, or gets none."""
        session = self._sessions.get(uid)
        return None if session is None else session.feed

    def reset_stream(self, stream: int, *, proxy: int) -> None:
        """Reset the connection to the handler after the pod proxy reset its end, identified by the proxy's number."""
        for session in self._sessions.values():
            if session.reset_stream((proxy, stream)):
                return

    def move(self, reason: str) -> None:
        """Tell every session to register with another daemon; accept no new one. Existing connections continue."""
        self.leaving = reason
        for session in self._sessions.values():
            session.move(reason)

    async def close(self, reason: str) -> None:
        """End all sessions with a reason; accept no new one."""
        self._closing = reason
        sessions = tuple(self._sessions.values())
        self._sessions.clear()
        self._names.clear()
        self._ordered = None
        if sessions:
            self.on_change()
        ended = Ended(reason=reason, failed=True)
        await asyncio.gather(*(session.end(ended) for session in sessions))

    # --- for the local API ------------------------------------------------------------------------------------------

    async def register(self, spec: SessionSpec, *, owner: str) -> Session:
        """Accept a session. Raises ConfigurationError or RefusedError. `serve` must follow."""
        self._may_begin()
        await self._view.prepare(intercept_of(spec, name=self._name(spec), owner=owner))
        self._may_begin()
        # Other sessions may have begun meanwhile, so the name is chosen and everything is checked at this point.
        intercept = intercept_of(spec, name=self._name(spec), owner=owner)
        old = self._sessions.get(intercept.uid)
        if old is not None and old.intercept.display != intercept.display:
            raise RefusedError(f"that session is intercept {old.intercept.display}")
        self._view.check(intercept)
        session = Session(
            intercept=intercept,
            node=self._node,
            software=__version__,
            limits=self._limits,
            budget=self.budget,
            waiting=self.waiting_records,
            world=self.world,
        )
        self._add(session)
        if old is not None:
            old.connection.close()  # it broke, and this end has not noticed yet
        return session

    async def serve(self, session: Session) -> SidestepError | None:
        """Run a registered session, whose connection has its transport, to its end. Returns the error that ended it, if
        any.

        The intercept is always gone when this returns.
        """
        try:
            self.on_change()
            await session.begin()
            session.publish(self._view.state(session.intercept.uid))
            return await self._run(session)
        except (PeerError, RefusedError) as error:
            return error
        finally:
            self._forget(session)
            await session.aclose()

    async def join(self, session: Session) -> SidestepError | None:
        """Run a session whose hello has been answered, replacing an older one of the same intercept, to its end."""
        if self._closing is not None:
            raise RefusedError(f"the node daemon takes no sessions now: {self._closing}")
        old = self._sessions.get(session.intercept.uid)
        self._add(session)
        try:
            self.on_change()
            if old is not None:
                await old.end(Ended(reason="the session was opened anew"))
            session.publish(self._view.state(session.intercept.uid))
            return await self._run(session)
        finally:
            self._forget(session)
            await session.aclose()

    async def end(self, uid: str, *, reason: str) -> None:
        """End the session of an intercept, if there is one."""
        session = self._sessions.get(uid)
        if session is not None:
            self._forget(session)
            await session.end(Ended(reason=reason))

    async def _run(self, session: Session) -> SidestepError | None:
        """Run a session to its end, a capture no further than to its bounds. Returns the error that ended it."""
        bounds = session.bounds
        if session.feed is not None:
            self._tell_alerts(session.intercept, session.feed)
            with inspection_told(session.intercept):
                return await session.run()
        if bounds is None:
            return await session.run()
        with captures_told(session.intercept, bounds):
            async with Tasks(f"capture {session.intercept.display}") as tasks:
                running = tasks.start(session.run(), name="session")
                over = tasks.start(bounds.over(), name="bounds")
                await asyncio.wait({running, over}, return_when=asyncio.FIRST_COMPLETED)
                if not running.done():
                    self._forget(session)
                    ended = Ended(reason=over.result(), over=True)
                    await session.conclude(ended, within=LAST_BYTES)
                    self.on_over(session.intercept, over.result())
                return await running

    def _tell_alerts(self, intercept: Intercept, feed: RecordFeed) -> None:
        """Give a session the alerts that it asks for and that are already known."""
        for record in self.alerts(intercept.alert) if intercept.alert else ():
            whose = record.kubernetes
            if is_of(intercept, namespace=whose.namespace, pod=whose.pod, workload=whose.workload):
                feed.put(eve.encode(record), f"{whose.namespace}/{whose.pod}")

    def take_bounds(self, uid: str) -> CaptureBounds | None:
        """Remove and return the bounds of a capture that is gone; None where this node has not served it."""
        return self._bounds.take(uid)

    def withdraw(self, session: Session) -> None:
        """Remove a registered session that never got its transport."""
        self._forget(session)

    async def leave(self, namespace: str, name: str, *, by: str, kind: str = "") -> bool:
        """End a session, of any kind or of this one (`Intercept.shown_kind`); returns False when there is none."""
        named = self._names.get((namespace, name), {}).values()
        session = next((each for each in named if kind in {"", each.intercept.shown_kind}), None)
        if session is None:
            return False
        self._forget(session)
        await session.end(Ended(reason=f"ended by {by}"))
        return True

    # --- inside -----------------------------------------------------------------------------------------------------

    def _add(self, session: Session) -> None:
        """Add a session, replacing an older one of the same intercept."""
        intercept = session.intercept
        session.bounds = self._bounds.of(intercept)
        self._sessions[intercept.uid] = session
        self._names.setdefault((intercept.namespace, intercept.name), {})[intercept.uid] = session
        self._ordered = None

    def _forget(self, session: Session) -> None:
        intercept = session.intercept
        if self._sessions.get(intercept.uid) is not session:
            return
        del self._sessions[intercept.uid]
        named = self._names[intercept.namespace, intercept.name]
        del named[intercept.uid]
        if not named:
            del self._names[intercept.namespace, intercept.name]
        self._ordered = None
        self.on_change()

    def _may_begin(self) -> None:
        """Raise RefusedError when no session may begin now."""
        if self._local_refusal:
            raise RefusedError(self._local_refusal)
        if self._closing is not None:
            raise RefusedError(f"the node daemon takes no sessions now: {self._closing}")
        if len(self._sessions) >= MAX_SESSIONS:
            raise RefusedError(f"the node already serves {MAX_SESSIONS} sessions")

    def _name(self, spec: SessionSpec) -> str:
        """Return the requested name, or the first free name derived from the workload's."""
        if spec.name:
            other = self._named(spec.namespace, spec.name, spec.resume)
            if other is not None:
                kind, owner = other.shown_kind, other.owner or "somebody"
                raise RefusedError(f"{kind} {other.display} exists already, held by {owner}; choose --name")
            return spec.name
        base = base_name(spec)
        number, name = 1, base
        while self._named(spec.namespace, name, spec.resume) is not None:
            number += 1
            name = f"{base}-{number}"
        return name

    def _named(self, namespace: str, name: str, resuming: str) -> Intercept | None:
        """Return the intercept that has a name already, other than the one that is being resumed."""
        found = self._names.get((namespace, name), {})
        return next((each.intercept for uid, each in found.items() if uid != resuming), None)

    def _view_of(self, session: Session) -> InterceptView:
        intercept = session.intercept
        return InterceptView(
            namespace=intercept.namespace,
            name=intercept.name,
            kind=intercept.shown_kind,
            owner=intercept.owner,
            workload=str(intercept.workload),
            port=intercept.port or intercept.place,
            transport=intercept.transport.value,
            filter=describe_filter(intercept.filter),
            created=intercept.created,
            state=self._view.state(intercept.uid),
            counters=session.counters.as_dict(),
        )


def _answer(answer: LoggedAnswer) -> Answer:
    return Answer(
        answer.status,
        answer.by,
        answer.handler,
        answer.seconds,
        answer.sent,
        answer.received,
        answer.is_whole,
        answer.head,
    )
