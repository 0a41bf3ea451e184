"""What people are told about ports that are not steered."""

from __future__ import annotations

import pytest

from sidestep.model.condition import ConditionType
from sidestep.model.pod import Family, PodKey
from sidestep.node.planning.plan import PortPlan
from sidestep.node.planning.port_conditions import about_app, about_proxy
from sidestep.node.planning.port_state import Availability, PortState, Unsteered
from sidestep.snapshots.ports import PortSnapshot

POD = PodKey("shop", "orders-1")
ROOM = Availability("", {Family.IPV4: "no room", Family.IPV6: "no room"})
NOT_READY, OVERLOADED = ConditionType.PROXY_NOT_READY, ConditionType.OVERLOADED


@pytest.mark.parametrize(
    ("reasons", "proxy", "stated"),
    [
        ({None}, Availability(""), []),
        ({Unsteered.LEAVING, Unsteered.NO_APP}, Availability(""), []),
        ({Unsteered.NO_PROXY}, Availability("it is gone"), []),
        ({Unsteered.OVERLOADED, None}, Availability(""), [(OVERLOADED, "faster than")]),
        ({Unsteered.LISTENER_DEAD}, Availability(""), [(NOT_READY, "closed by somebody in the pod")]),
        ({Unsteered.REFUSED}, Availability(""), [(NOT_READY, "although it listens")]),
        ({Unsteered.HINDERED}, ROOM, [(NOT_READY, "no room; the app serves meanwhile")]),
        ({Unsteered.NO_APP}, ROOM, []),
    ],
)
def test_conditions_of_reasons(reasons, proxy, stated):
    found = about_proxy(POD, 8443, reasons=reasons, proxy=proxy)
    assert [each.type for each in found] == [kind for kind, _ in stated]
    assert all(part in each.text for each, (_, part) in zip(found, stated, strict=True))
    assert all(each.subject == "pod shop/orders-1 port 8443" for each in found)


@pytest.mark.parametrize("reason", Unsteered)
def test_of_a_closed_port_it_is_said_that_clients_are_refused_and_why(reason):
    found = about_proxy(
        POD, 8443, reasons={None, reason}, proxy=Availability("it is gone", ROOM.hindrance), closes=True
    )
    by_type = {each.type: each.text for each in found}
    if reason in (Unsteered.LEAVING, Unsteered.NO_APP):
        assert by_type == {}
        return
    assert "clients, and the kubelet's probes, are refused" in by_type.pop(ConditionType.PORT_CLOSED)
    assert not any("the app serves" in text for text in by_type.values())
    assert all("clients are refused meanwhile" in text for text in by_type.values())
    assert len(by_type) == (reason is not Unsteered.NO_PROXY)


@pytest.mark.parametrize(
    ("needs_app", "served", "steered", "told"),
    [
        (True, set(), set(), True),
        (True, {Family.IPV4}, set(), False),
        (True, set(), {Family.IPV4}, False),
        (False, set(), set(), False),
    ],
)
def test_a_port_without_an_app_is_told(needs_app, served, steered, told):
    plan = PortPlan(PortSnapshot(80, "tcp", "never", "never", ()), needs_app=needs_app)
    found = about_app(POD, PortState(plan, served=served, steered=steered))
    assert [each.type for each in found] == ([ConditionType.NO_APP] if told else [])
