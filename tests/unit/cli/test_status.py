"""What `sidestep status` prints for people."""

from sidestep.cli.status import _in_namespace, _text
from sidestep.tunnel.messages import PodState, State
from sidestep.tunnel.views import ConditionView, InterceptView, NodeStatus, PodView, StatusView


def lines(*pods, counters=None):
    intercept = InterceptView(
        namespace="shop",
        name="orders",
        kind="intercept",
        owner="ada",
        workload="deployment/orders",
        port="8443",
        transport="tcp",
        filter="header x-dev=ada",
        created=1.0,
        state=State(tuple(PodState(*each) for each in pods)),
        counters={},
    )
    node = NodeStatus("n1", "0.1.0", 1, 61.0, counters or {})
    return list(_text(StatusView(node=node, pods=(), intercepts=(intercept,), conditions=())))


def test_a_pod_that_has_seen_no_connection_is_not_called_active():
    shown = lines(("shop/orders-1", "attached"), ("shop/orders-2", "active"))
    assert "  shop/orders: pod shop/orders-1 is attached, no connection seen" in shown
    assert not [line for line in shown if "orders-2" in line]


def test_a_pod_that_waits_says_for_what():
    shown = lines(
        ("shop/orders-1", "pending", "nothing listens on port 8443"), ("shop/orders-2", "failed", "no \x1b netns")
    )
    assert "  shop/orders: pod shop/orders-1 is pending: nothing listens on port 8443" in shown
    assert "  shop/orders: pod shop/orders-2 is failed: no \\x1b netns" in shown


def test_a_node_without_news_has_no_empty_line_for_them():
    assert lines(("shop/orders-1", "active"), counters={"drift_repaired": 0})[1] == ""
    assert lines(("shop/orders-1", "active"), counters={"drift_repaired": 2})[1] == "  drift_repaired 2"


def test_one_namespace_is_shown_with_what_concerns_the_node():
    node = NodeStatus("n1", "0.1.0", 1, 61.0, {})
    pods = tuple(PodView(namespace, "orders-1", "running", 7, (), {}) for namespace in ("shop", "shopping"))
    subjects = ("pod shop/orders-1 port 8443", "pod shopping/orders-1", "node n1", "manifest a/b.yaml")
    conditions = tuple(ConditionView("NoApp", subject, "text") for subject in subjects)
    view = _in_namespace(StatusView(node, pods, (), conditions), "shop")
    assert [each.namespace for each in view.pods] == ["shop"]
    assert [each.subject for each in view.conditions] == [subjects[0], *subjects[2:]]
