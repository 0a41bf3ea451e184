"""What `sidestep status` prints for people."""

import msgspec
import pytest

from sidestep import __version__
from sidestep.cli import cluster_policies
from sidestep.cli.cluster_view import ClusterStatusView, DaemonView
from sidestep.cli.status import _cluster_text, _in_namespace, _text
from sidestep.kube.policies import DaemonEntry, EngineEntry, NodeEntry, ObservedPolicy, StatusFields
from sidestep.tunnel.messages import PodState, State
from sidestep.tunnel.versions import difference
from sidestep.tunnel.views import (
    ConditionView,
    EngineView,
    InterceptView,
    NodeStatus,
    OutboundView,
    PodView,
    PolicyView,
    StatusView,
    UninspectedView,
)


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


@pytest.mark.parametrize(("version", "told"), [(__version__, False), ("9.9.9", True)])
def test_a_daemon_of_another_release_is_told_of_in_one_line(version, told):
    shown = list(_text(StatusView(NodeStatus("n1", version, 1, 61.0, {}))))
    assert [line for line in shown if "this command" in line] == ([difference(version)] if told else [])


@pytest.mark.parametrize(
    ("versions", "named"),
    [
        ([__version__, f"v{__version__}"], ""),
        (["latest", "sha256-0a", ""], ""),
        (["9.9.9", "9.9.9", __version__], "9.9.9,"),
        (["v9.10.0", "9.9.9"], "9.9.9 and v9.10.0,"),
    ],
)
def test_daemons_of_a_cluster_of_other_releases_are_told_of_in_one_line(versions, named):
    daemons = tuple(DaemonView(f"d{index}", f"n{index}", True, 0, each) for index, each in enumerate(versions))
    shown = [line for line in _cluster_text(ClusterStatusView("s", "shop", daemons)) if "this command" in line]
    assert bool(shown) is bool(named)
    assert all(named in line for line in shown)
    assert len(shown) < 2


def test_a_session_is_shown_with_its_kind():
    head, row = [line.split()[:2] for line in lines(("shop/orders-1", "active")) if "OWNER" in line or "ada" in line]
    assert (head, row) == (["SESSION", "KIND"], ["shop/orders", "intercept"])


def test_what_was_passed_through_whole_is_shown_with_its_pod():
    node = NodeStatus("n1", "0.1.0", 1, 61.0, {})
    pods = (
        PodView("shop", "orders-1", "running", 7, (), {}, anomalies={"head-too-large": 2, "bare-lf": 1, "none": 0}),
        PodView("shop", "orders-2", "running", 8, (), {}, anomalies={"none": 0}),
    )
    shown = list(_text(StatusView(node, pods)))
    assert "  shop/orders-1: whole connections passed through: 3 (head-too-large 2, bare-lf 1)" in shown
    assert not [line for line in shown if line.startswith("  shop/orders-2:")]


def test_what_is_closed_and_not_inspected_is_shown_with_its_pod():
    node = NodeStatus("n1", "0.1.0", 1, 61.0, {})
    times = (UninspectedView("open", "not-programmed", 0.04), UninspectedView("closed", "no-proxy", 3.21))
    quiet = PodView("shop", "orders-1", "running", 7, ("8443/tcp",), {})
    closed = PodView("shop", "orders-2", "failed", 0, (), {}, closed=("8080/tcp", "8443/tcp"), uninspected=times)
    shown = list(_text(StatusView(node, (quiet, closed), (), ())))
    assert "  shop/orders-2: closed to clients: 8080/tcp 8443/tcp" in shown
    assert "  shop/orders-2: not inspected: 0.0 s open (not-programmed), 3.2 s closed (no-proxy)" in shown
    assert not [line for line in shown if line.startswith("  shop/orders-1:")]


def test_engines_are_shown_with_their_pods():
    node = NodeStatus("n1", "0.1.0", 1, 61.0, {})
    fed = {"fed": 7, "unfed": 0, "cut": 2}
    runs = EngineView(
        "suricata", "running", 42, "7.0.10", ("shop/orders",), 12, 33 << 20, 96 << 20, restarts=1, connections=fed
    )
    waits = EngineView("suricata", "paused", problem="it ended with status 1")
    engines = {"orders-1": (runs,), "orders-2": (waits,), "orders-3": ()}
    pods = tuple(PodView("shop", name, "running", 7, (), {}, engines=each) for name, each in engines.items())
    shown = list(_text(StatusView(node, pods)))
    [at] = [number for number, line in enumerate(shown) if line.startswith("INSPECTION ENGINE")]
    first, second, problem, empty = shown[at + 1 :][:4]
    assert " ".join(first.split()) == "suricata 7.0.10 shop/orders-1 running 42 12 33 of 96 MiB 1 fed 7, cut 2"
    assert " ".join(second.split()) == "suricata shop/orders-2 paused 0 0 of 0 MiB 0 -"
    assert problem == "  shop/orders-2: suricata: it ended with status 1"
    assert empty == ""
    assert not [line for line in lines(("shop/orders-1", "active")) if "ENGINE" in line]


@pytest.mark.parametrize(
    ("verdicts", "bypassed", "told"),
    [
        ({"judged": 5, "p50": 4, "p99": 0}, {}, "judged=5 p50<=4ms"),
        (
            {"judged": 5, "p50": 4, "p99": 16},
            {"crash": 2, "busy": 0},
            "judged=5 p50<=4ms p99<=16ms; not judged: crash 2",
        ),
        ({"judged": 0}, {"absent": 1}, "not judged: absent 1"),
        ({}, {}, "-"),
    ],
)
def test_verdicts_are_shown_with_what_was_not_judged(verdicts, bypassed, told):
    inspector = EngineView("inspector", "running", 42, "1.0", verdicts=verdicts, bypassed=bypassed)
    pod = PodView("shop", "orders-1", "running", 7, (), {}, engines=(inspector,))
    shown = list(_text(StatusView(NodeStatus("n1", "0.1.0", 1, 61.0, {}), (pod,))))
    [at] = [number for number, line in enumerate(shown) if line.startswith("INSPECTION ENGINE")]
    assert shown[at + 1].endswith(told)


def test_engines_of_a_cluster_are_shown_by_policy_and_node():
    engine = EngineEntry("inspector", "1.0", 2, 1, 262, 31 << 20, 4, 9, 4, 16, 3)
    entry = NodeEntry(DaemonEntry("sidestep", "sidestep-n1", "x"), 1, True, engines=(engine,))
    status = StatusFields(nodes={"n1": entry, "n2": None})
    observed = ObservedPolicy(
        kind="InspectionPolicy", namespace="shop", name="p", uid="u", generation=1, resource_version="7", policy=None,
        problem="", status=status,
    )  # fmt: skip
    made = cluster_policies._view(observed)
    shown = list(cluster_policies.text([made]))
    [at] = [number for number, line in enumerate(shown) if line.startswith("INSPECTION ENGINE")]
    told = " ".join(shown[at + 1].split())
    assert told == "inspector 1.0 shop/p n1 2 of 3 262 31 MiB 4 judged=9 p50<=4ms p99<=16ms 3"
    assert not [line for line in cluster_policies.text([msgspec.structs.replace(made, engines=())]) if "ENGINE" in line]


def test_policies_are_shown_with_their_pods_and_counts():
    node = NodeStatus("n1", "0.1.0", 1, 61.0, {})
    shown = list(
        _text(
            StatusView(
                node,
                policies=(
                    PolicyView("", "base", "", "", accepted=False, problem="spec: bad"),
                    PolicyView(
                        "shop",
                        "orders",
                        "Enforce",
                        "Fail",
                        accepted=True,
                        in_force=True,
                        programmed=("shop/orders-1",),
                        failing=(PodState("shop/orders-2", "failed", "no key"),),
                        failing_pods=1,
                        hits={"blocked": 3},
                        bypassed={"not_http": 2},
                    ),
                ),
            )
        )
    )
    [head] = [line for line in shown if line.startswith("INSPECTION POLICY")]
    base, orders, failing = shown[shown.index(head) + 1 :][:3]
    assert base.split() == ["base", "not", "in", "force", "0", "of", "0", "-", "-", "-"]
    assert " ".join(orders.split()) == "shop/orders Enforce Fail 1 of 2 blocked 3 not_http 2 -"
    assert failing == "  shop/orders: pod shop/orders-2 is failed: no key"


def test_policies_of_the_cluster_are_shown_in_every_namespace():
    policies = tuple(PolicyView(namespace, "p", "Detect", "Ignore", accepted=True) for namespace in ("", "shop", "x"))
    view = _in_namespace(StatusView(NodeStatus("n1", "0.1.0", 1, 61.0, {}), policies=policies), "shop")
    assert [each.namespace for each in view.policies] == ["", "shop"]


def test_connections_that_a_pod_makes_are_shown_with_it():
    counters = {"outbound": 7, "inspection_blocked": 3, "outbound_closed": 0}
    steered = OutboundView("steered", open=2, counters=counters, verdicts={"steered": 7, "unselected": 40})
    direct = OutboundView("direct", problem="the pod's cgroup v2 folder is not known")
    pods = [PodView("shop", name, "running", 7, (), {}) for name in ("a", "b", "c")]
    pods[:2] = [msgspec.structs.replace(pod, outbound=each) for pod, each in zip(pods, (steered, direct), strict=False)]
    shown = list(_text(StatusView(NodeStatus("n1", "0.1.0", 1, 61.0, {}), tuple(pods))))
    told = "steered, 2 open; outbound 7, inspection_blocked 3; kernel: steered 7, unselected 40"
    assert f"  shop/a outbound: {told}" in shown
    assert "  shop/b outbound: not inspected: the pod's cgroup v2 folder is not known; direct, 0 open" in shown
    assert not [line for line in shown if line.startswith("  shop/c outbound")]
