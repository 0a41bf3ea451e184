"""Which pods may have a proxy of several processes."""

import msgspec
import pytest
from msgspec.structs import replace

from sidestep.config.proxy_workers import Workers
from sidestep.model.inspection import Action, Egress, InspectionPolicy, Rule
from sidestep.node.planning.plan import PortPlan
from sidestep.node.planning.workers import workers_of
from sidestep.policy.egress_rows import to_egress_snapshot
from sidestep.policy.inspection_rows import to_snapshot
from sidestep.snapshots.ports import PortSnapshot
from tests.unit.node.scenes import pod

AUTO = Workers(16, automatic=True)

POLICY = InspectionPolicy("p", "shop", rules=(Rule("in", Action.LOG),), egress=Egress(rules=(Rule("out", Action.LOG),)))


def port(number=80, **fields):
    snapshot = PortSnapshot(number, fields.pop("transport", "tcp"), "never", "never", (), **fields)
    return PortPlan(snapshot, needs_app=True)


def test_ports_that_are_only_relayed_and_diverted_may_have_several():
    ports = [port(), port(81, captures=("u1",), global_taps=("u2",))]
    assert workers_of(pod(), Workers(4), None, ports, (), None) == (Workers(4), "")


def test_one_is_no_fewer_than_one():
    assert workers_of(pod(), Workers(1), None, [port(policies=(to_snapshot(POLICY),))], (), None) == (Workers(1), "")


@pytest.mark.parametrize(
    ("asked", "node", "count"),
    [(None, None, 1), (None, 3, 3), (2, 3, 2), (4, 3, 3), (4, 1, 1), (1, 3, 1)],
)
def test_the_node_has_the_last_word(asked, node, count):
    had, why = workers_of(pod(), asked and Workers(asked), node and Workers(node), [port()], (), None)
    assert had == Workers(count)
    assert why.startswith("its node allows") is (asked == 4)


@pytest.mark.parametrize(
    ("ports", "egress", "outbound", "why"),
    [
        ([port(), port(81, policies=(to_snapshot(POLICY),))], (), None, "inspection policies"),
        ([port()], (to_egress_snapshot(POLICY),), None, "connections that the pod makes"),
        ([port()], (), msgspec.structs.replace(port().snapshot, number=65536), "connections that the pod makes"),
        ([port(), port(53, transport="udp")], (), None, "datagrams"),
        ([port(recent=True)], (), None, "recent requests"),
    ],
    ids=["policy", "egress", "outbound", "udp", "recent"],
)
def test_what_needs_one_process_has_one_and_says_so(ports, egress, outbound, why):
    for asked in (Workers(2), AUTO):
        had, text = workers_of(pod(), asked, Workers(4), ports, egress, outbound)
        assert had == Workers(1)
        assert text.startswith(why)


@pytest.mark.parametrize(
    ("processors", "node", "expected"),
    [
        (None, None, AUTO),
        (None, Workers(3), Workers(3, automatic=True)),
        (None, AUTO, AUTO),
        (2.5, None, Workers(3, automatic=True)),
        (0.2, None, Workers(1)),
        (20.0, None, AUTO),
        (4.0, Workers(2), Workers(2, automatic=True)),
    ],
)
def test_where_the_load_decides_the_limit_of_the_pod_counts(processors, node, expected):
    made = replace(pod(), processors=processors)
    assert workers_of(made, AUTO, node, [port()], (), None) == (expected, "")
    assert workers_of(made, Workers(8), None, [port()], (), None) == (Workers(8), "")
