"""What a target makes of the messages of its proxy."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace
from typing import Any

import pytest

from sidestep.model.condition import Condition, ConditionType
from sidestep.node.conditions import Conditions, Statements
from sidestep.node.planning.plan import PortPlan
from sidestep.node.pods.client_addresses import ClientAddresses
from sidestep.node.pods.late_client_auth import LateClientAuth
from sidestep.node.pods.probed_apps import ProbedApps
from sidestep.node.pods.proxy_reports import ProxyReports
from sidestep.node.proxies.supervisor import ProxyState
from sidestep.proxy.control import messages
from sidestep.snapshots.hindrance import Hindrance
from sidestep.snapshots.ports import PortSnapshot
from tests.unit.node.scenes import pod

SUBJECT = "pod shop/orders-1 port 8443"
CERTIFIED = PortPlan(PortSnapshot(8443, "tcp", "always", "probe", (), identity="id", client_trust="ca"), needs_app=True)


class Owner:
    """The target: notes what reaches it."""

    def __init__(self) -> None:
        self.pod = pod()
        self.uid = 4711
        self.client_addresses = ClientAddresses.off()
        self.own_addresses = frozenset(self.pod.ips)
        self.told: list[Any] = []

    def proxy_changed(self, state: ProxyState, reason: str) -> None:
        self.told.append((state, reason))

    def hindered(self, hindrances: tuple[Hindrance, ...]) -> None:
        self.told.append(hindrances)

    def changed(self) -> None:
        self.told.append("changed")


class Streams(set[int]):
    """The TCP ports that there are."""

    def refused(self, no_app: messages.NoApp) -> bool:
        return no_app.port in self

    def plans(self) -> dict[int, PortPlan]:
        return {8443: CERTIFIED}


class Handlers:
    """The sessions."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    async def open_stream(self, opening: messages.Open, *, pod: Any, proxy: int) -> socket.socket:
        self.told.append(("open", opening.stream, str(pod), proxy))
        return socket.socket()

    def reset_stream(self, stream: int, *, proxy: int) -> None:
        self.told.append(("reset", stream, proxy))

    def record(self, requests: Any, *, pod: Any) -> None:
        self.told.append(("record", requests))

    def record_losses(self, losses: Any, *, pod: Any) -> None:
        self.told.append(("losses", losses))

    def record_earlier(self, told: Any, *, pod: Any) -> None:
        self.told.append(("earlier", told))


@pytest.fixture
def scene():
    owner, conditions, handlers = Owner(), Conditions(), Handlers()
    late = LateClientAuth()
    tools = SimpleNamespace(handlers=handlers, late_client_auth=late)
    statements = Statements(conditions, owner.pod.key)
    statements.begin()
    reports = ProxyReports(owner, tools=tools, statements=statements, streams=Streams({8443}), apps=ProbedApps())
    return SimpleNamespace(owner=owner, conditions=conditions, handlers=handlers, late=late, reports=reports)


def report(kind: str, text: str = "the app refuses TLS", port: int = 8443) -> messages.Report:
    return messages.Report(0, port, kind, text)


def test_a_condition_is_stated_and_taken_back(scene):
    scene.reports.on_report(report("UpstreamTlsFailed"))
    assert scene.conditions.all() == (
        Condition(ConditionType.UPSTREAM_TLS_FAILED, SUBJECT, "the app refuses TLS"),
    )  # fmt: skip
    scene.reports.on_report(report("UpstreamTlsFailed", ""))
    assert scene.conditions.all() == ()


@pytest.mark.parametrize("message", [report("DriftRepaired"), report("nonsense"), report("NoCertificate", port=22)])
def test_what_a_proxy_may_not_state_is_ignored(scene, message):
    scene.reports.on_report(message)
    assert scene.conditions.all() == ()


def test_a_late_request_for_a_certificate_is_remembered(scene):
    snapshot = CERTIFIED.snapshot
    scene.reports.on_report(report("ClientCertificateRequestedLater", ""))
    assert not scene.late.snapshot(scene.owner.pod, snapshot).late_client_auth
    scene.reports.on_report(report("ClientCertificateRequestedLater"))
    assert scene.late.snapshot(scene.owner.pod, snapshot).late_client_auth


def test_streams_are_asked_for_and_reset_in_the_name_of_the_proxy(scene):
    opening = messages.Open(0, 7, "u1", 8443, "h2", True, "", "10.0.0.9", 1)
    asyncio.run(scene.reports.open_stream(opening)).close()
    scene.reports.on_reset(messages.Reset(0, 7))
    assert scene.handlers.told == [("open", 7, "shop/orders-1", 4711), ("reset", 7, 4711)]


def test_log_lines_and_losses_go_to_the_sessions(scene):
    lost = messages.LostCopies("u1", 8443, "room", 2)
    scene.reports.on_requests(messages.Requests(0, (), 0, (lost,)))
    assert scene.handlers.told == [("record", ()), ("losses", (lost,)), ("earlier", ())]


def test_the_first_sign_of_a_connection_is_a_change_and_no_later_one(scene):
    assert not scene.reports.seen
    scene.reports.on_heartbeat(messages.Heartbeat(0, 0, {8443: {"accepted": 0}}, {}))
    assert scene.owner.told == []
    for _ in range(2):
        scene.reports.on_heartbeat(messages.Heartbeat(0, 1, {8443: {"accepted": 1}}, {}))
        scene.reports.on_requests(messages.Requests(0, (), 0))
    assert scene.reports.seen
    assert scene.owner.told == ["changed"]
    assert scene.reports.counters.connections == 1


@pytest.mark.parametrize(("port", "told"), [(8443, ["changed"]), (22, [])])
def test_a_refused_dial(scene, port, told):
    scene.reports.on_no_app(messages.NoApp(0, port, 2))
    assert scene.owner.told == told


def test_credentials_that_failed_are_stated_for_the_ports_that_name_them(scene):
    scene.reports.on_credentials({"id": "the key does not fit"})
    [condition] = scene.conditions.all()
    assert (condition.type, condition.subject) == (ConditionType.CERTIFICATE_INVALID, SUBJECT)
    assert condition.text.endswith("TLS is carried end to end: the key does not fit")
    scene.reports.on_credentials({})
    assert scene.conditions.all() == ()


def test_credentials_of_policies_that_failed_are_stated_for_the_pod(scene):
    scene.reports.on_credentials({"issuer": "its key signs nothing"})
    [condition] = scene.conditions.all()
    assert (condition.type, condition.subject) == (ConditionType.CERTIFICATE_INVALID, "pod shop/orders-1")
    assert condition.text.endswith("whose connections are not opened: its key signs nothing")
    scene.reports.on_credentials({})
    assert scene.conditions.all() == ()


def test_what_the_target_decides_is_passed_on(scene):
    hindrances = (Hindrance("no-room"),)
    scene.reports.on_hindered(hindrances)
    scene.reports.on_state(ProxyState.FAILED, "a bug")
    assert scene.owner.told == [hindrances, (ProxyState.FAILED, "a bug")]
