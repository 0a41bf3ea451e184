"""What a pod proxy may say and ask for."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import msgspec
import pytest

from sidestep.aio.packets import ChannelClosed
from sidestep.aio.tasks import Tasks
from sidestep.model.errors import PeerError, RefusedError
from sidestep.model.inspection import Action, Egress, InspectionPolicy, Rule
from sidestep.model.waf import Waf
from sidestep.node.proxies import dispatcher as dispatching
from sidestep.node.proxies.dispatcher import ProxyDispatcher
from sidestep.policy.egress_rows import to_egress_snapshot
from sidestep.policy.inspection_rows import to_snapshot
from sidestep.policy.seclang import CustomRules
from sidestep.policy.waf import PolicyWaf, join
from sidestep.proxy.control import messages
from sidestep.proxy.control.messages import Open
from sidestep.snapshots.hindrance import Hindrance
from sidestep.snapshots.ports import PortSnapshot


class Owner:
    """Notes what it is told; `open_stream` answers with a socket, an error, or not at all."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []
        self.refusal: BaseException | None = None
        self.hangs = False

    async def open_stream(self, request: Open, /) -> socket.socket:
        if self.hangs:
            await asyncio.Event().wait()
        if self.refusal is not None:
            raise self.refusal
        ours, self.theirs = socket.socketpair()
        return ours

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("on_"):
            raise AttributeError(name)
        return lambda message, *more: self.told.append((name, message))


class Process:
    """Notes what the proxy is answered."""

    def __init__(self, worker: int = 0) -> None:
        self.worker = worker
        self.answers: list[tuple[messages.Message, bool]] = []
        self.gone = False

    async def tell(self, message: messages.Message, fd: int | None = None, *, doing: str) -> None:
        if self.gone:
            raise ChannelClosed("gone")
        self.answers.append((message, fd is not None))


def port(number: int, *uids: str) -> PortSnapshot:
    return PortSnapshot(number, "tcp", "never", "never", (), global_taps=uids)


def opening(stream: int, uid: str = "u1") -> Open:
    return Open(0, stream, uid, 80, "http/1.1", False, "", "10.0.0.9", 4000)


def run(what, *, deadline: float = 5.0) -> tuple[Owner, Process]:
    """Let `what` talk through a dispatcher whose port 80 has rule u1; returns once all tasks have ended."""
    owner, process = Owner(), Process()

    async def go() -> None:
        tasks = Tasks("dispatcher")
        dispatcher = ProxyDispatcher(owner, tasks=tasks, open_deadline=deadline)
        dispatcher.allow((port(80, "u1"),))
        what(dispatcher, process, owner)
        answering = asyncio.all_tasks() - {asyncio.current_task()}
        if answering:
            await asyncio.wait(answering, timeout=5)
        await tasks.aclose()

    asyncio.run(go())
    return owner, process


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (messages.Reset(0, 7), "on_reset"),
        (messages.Requests(0, (), 0), "on_requests"),
        (messages.Report(0, 80, "NoApp", ""), "on_report"),
        (messages.NameClient(0, 80, "127.0.0.1", 1, "10.0.0.9", 2), "on_name_client"),
        (messages.ForgetClient(0, 80, "127.0.0.1", 1), "on_forget_client"),
        (messages.Probed(0, 80, "no", "no", "", False, b""), "on_probed"),
        (messages.NoApp(0, 80, 2), "on_no_app"),
        (messages.NoServer(0, "203.0.113.7", 443), "on_no_server"),
        (messages.Heartbeat(0, 1, {80: {"accepted": 1}}, {}), "on_heartbeat"),
    ],
)
def test_each_message_reaches_its_function(message, told):
    owner, _ = run(lambda dispatcher, process, _: dispatcher.received(process, message))
    assert owner.told == [(told, message)]


def test_what_a_proxy_may_say_of_connections_that_its_pod_makes():
    """Rules of both directions may have hits; counters are there once a policy is about such connections."""
    rules = (Rule("out", Action.ALERT),)
    written = InspectionPolicy("p", "shop", rules=(Rule("in", Action.LOG),), egress=Egress(rules=rules))
    inward = msgspec.structs.replace(port(80), policies=(to_snapshot(written),))
    beat = messages.Heartbeat(0, 1, {messages.OUTBOUND: {"outbound": 1}}, {})

    def talk(dispatcher, process, _):
        dispatcher.received(process, beat)
        outward = to_egress_snapshot(written)
        dispatcher.allow((inward,), (outward,))
        dispatcher.received(process, beat)
        dispatcher.received(process, messages.Records(0, (), {}))
        assert dispatcher._known_rules() == {"shop/p": {"in", "out"}}
        waf = join([PolicyWaf("shop/p", False, False, Waf(), CustomRules())])
        dispatcher.allow((inward,), (msgspec.structs.replace(outward, waf=waf),))
        assert dispatcher._known_rules() == {"shop/p": {"in", "out", "WAF"}}

    owner, _ = run(talk)
    assert [told.ports for name, told in owner.told if name == "on_heartbeat"] == [{}, beat.ports]


def test_numbers_of_two_processes_never_meet():
    """Each counts its streams and requests from one."""
    number = 3

    def talk(dispatcher, process, _):
        for each in (process, Process(worker=2)):
            dispatcher.received(each, messages.Reset(0, number))
            line_of = msgspec.structs.replace(line("u1"), number=number)
            dispatcher.received(each, messages.Requests(0, (line_of,), 0, (), (messages.Earlier("u1", 80, 0, False),)))
        dispatcher.received(each, messages.Reset(0, 1 << 60))

    owner, _ = run(talk)
    streams = [message.stream for name, message in owner.told if name == "on_reset"]
    told = [message for name, message in owner.told if name == "on_requests"]
    assert streams == [number, 2 << 48 | number, 0]
    assert [message.requests[0].number for message in told] == [number, 2 << 48 | number]
    assert [len(message.earlier) for message in told] == [1, 0]


def test_a_stream_is_asked_for_by_the_number_of_the_pod_and_answered_by_that_of_the_process():
    class Asked(Owner):
        async def open_stream(self, request):
            self.told.append(("open_stream", request.stream))
            return await super().open_stream(request)

    owner, process = Asked(), Process(worker=1)

    async def go():
        tasks = Tasks("dispatcher")
        dispatcher = ProxyDispatcher(owner, tasks=tasks, open_deadline=5.0)
        dispatcher.allow((port(80, "u1"),))
        dispatcher.received(process, opening(7))
        await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()}, timeout=5)
        await tasks.aclose()

    asyncio.run(go())
    owner.theirs.close()
    assert owner.told == [("open_stream", 1 << 48 | 7)]
    assert process.answers == [(messages.Opened(0, 7), True)]


def test_hindrances_and_counters_of_other_ports_are_dropped():
    def talk(dispatcher, process, _):
        dispatcher.received(process, messages.Hindered(0, (Hindrance("cannot-dial", 80), Hindrance("cannot-dial", 81))))
        dispatcher.received(process, messages.Heartbeat(0, 1, {81: {"accepted": 1}}, {}))

    owner, _ = run(talk)
    (_, hindrances), (_, beat) = owner.told
    assert hindrances == (Hindrance("cannot-dial", 80),)
    assert beat.ports == {}


def line(uid: str) -> messages.LoggedRequest:
    return messages.LoggedRequest(uid, 80, "10.0.0.9", 1, "GET", "/", "shop", copied=False)


def test_the_last_lines_of_rules_that_are_gone_are_taken_once_more():
    def talk(dispatcher, process, _):
        for ports in ((port(80, "u2"),), (port(80, "u3"),)):
            dispatcher.allow(ports)
            dispatcher.received(process, messages.Requests(0, (line("u1"), line("u2"), line("u3")), 0))

    owner, _ = run(talk)
    assert [[each.uid for each in message.requests] for _, message in owner.told] == [["u1", "u2"], ["u2", "u3"]]


def test_records_for_the_session_of_another_pod_are_dropped():
    def talk(dispatcher, process, _):
        for uid in ("u1", "of-another-pod", ""):
            dispatcher.received(process, messages.LiveRecords(0, uid, (b"r",), {}))

    owner, _ = run(talk)
    assert [(name, message.uid) for name, message in owner.told] == [("on_live_records", "u1")]


@pytest.mark.parametrize("message", [messages.Hello(0, 1, 1), messages.Ack(0)])
def test_what_a_proxy_does_not_send(message):
    def talk(dispatcher, process, _):
        with pytest.raises(PeerError, match="does not send"):
            dispatcher.received(process, message)

    run(talk)


def test_a_stream_is_handed_over_and_our_end_closed():
    owner, process = run(lambda dispatcher, process, _: dispatcher.received(process, opening(7)))
    assert process.answers == [(messages.Opened(0, 7), True)]
    with owner.theirs as theirs:
        theirs.settimeout(5)
        assert theirs.recv(1) == b""


@pytest.mark.parametrize("reason", [RefusedError("no session"), PeerError("odd")])
def test_a_stream_that_cannot_be_had_is_refused(reason):
    def talk(dispatcher, process, owner):
        owner.refusal = reason
        dispatcher.received(process, opening(7))

    _, process = run(talk)
    assert process.answers == [(messages.Refused(0, 7), False)]


def test_a_handler_that_does_not_answer_is_refused_at_the_deadline():
    def talk(dispatcher, process, owner):
        owner.hangs = True
        dispatcher.received(process, opening(7))

    _, process = run(talk, deadline=0.01)
    assert process.answers == [(messages.Refused(0, 7), False)]


def test_a_process_that_is_gone_gets_nothing_and_the_stream_is_closed():
    def talk(dispatcher, process, _):
        process.gone = True
        dispatcher.received(process, opening(7))

    owner, process = run(talk)
    assert process.answers == []
    with owner.theirs as theirs:
        theirs.settimeout(5)
        assert theirs.recv(1) == b""


@pytest.mark.parametrize("case", ["another pod's rule", "a rule that is gone", "while it is stopped", "too many"])
def test_streams_that_are_refused_at_once(case, monkeypatch):
    monkeypatch.setattr(dispatching, "_MAX_OPENING", 1)

    def talk(dispatcher, process, owner):
        owner.refusal = RefusedError("no session")
        request = opening(7)
        if case == "another pod's rule":
            request = opening(7, "u9")
        elif case == "a rule that is gone":
            dispatcher.allow((port(80, "u2"),))
        elif case == "while it is stopped":
            dispatcher.closed = True
        else:
            dispatcher.received(process, opening(6))
        with pytest.raises(RefusedError):
            dispatcher.received(process, request)

    _, process = run(talk)
    assert all(message.stream == 6 for message, _ in process.answers)  # type: ignore[attr-defined]
