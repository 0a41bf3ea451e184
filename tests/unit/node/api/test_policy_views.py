"""What is shown of inspection policies: where they are programmed, where not and why, what was counted."""

from __future__ import annotations

from sidestep.model.condition import Condition, ConditionType
from sidestep.model.inspection import Action, FailurePolicy, InspectionPolicy, Mode, Rule
from sidestep.model.pod import Owner, Pod, PodKey
from sidestep.model.workload import LabelSelector
from sidestep.node.api.policy_views import policy_views
from sidestep.node.conditions import Conditions, Source
from sidestep.node.planning.inspection import PlannedPolicy
from sidestep.node.planning.plan import Plan, PodPlan, PortPlan
from sidestep.node.pods.pod_counters import PodCounters
from sidestep.node.policies import CHECKING, PolicyEntry
from sidestep.node.records.presence import Absence
from sidestep.policy.inspection_rows import to_snapshot
from sidestep.policy.survey import PodSurvey
from sidestep.snapshots.ports import PortSnapshot
from sidestep.tunnel.messages import PodState
from sidestep.tunnel.views import MAX_FAILING, EngineView, GapView, InspectedView, PolicyEngineView

WRITTEN = InspectionPolicy(
    "p",
    "shop",
    LabelSelector(),
    mode=Mode.ENFORCE,
    failure_policy=FailurePolicy.FAIL,
    rules=(Rule("all", Action.BLOCK),),
)
POLICY = PlannedPolicy(WRITTEN, to_snapshot(WRITTEN), 1)
ENTRY = PolicyEntry(("shop", "p"), WRITTEN, "", POLICY)


class Counters(PodCounters):
    def __init__(self, **ports):
        super().__init__()
        self.ports = {int(name.removeprefix("port")): counts for name, counts in ports.items()}


class Target:
    """A target that steers these ports and has told its proxy of these policies."""

    def __init__(self, *, told=True, steered=(8080, 8443), waits=(), left="", unjudged="", beside=(), **counters):
        self.unjudged = unjudged
        self.beside = beside
        self.told, self.steered_ports, self.waits, self.left = told, steered, waits, left
        self.counters = Counters(**counters)

    def engines(self):
        return self.beside

    def inspects(self, number, policies):
        return self.told and policies == (POLICY.snapshot,)

    def takes(self, number, transport):
        return number in self.steered_ports

    def waits_for_app(self, number):
        return number in self.waits

    def why_unjudged(self, policies):
        return self.unjudged

    def why_left(self, number, transport):
        return self.left


class Targets:
    """What is asked of the reconciler."""

    def __init__(self, problem="", *, missed=None, **targets):
        self._problem = problem
        self._missed = missed or {}
        self._targets = {PodKey("shop", name): target for name, target in targets.items()}

    def target(self, key):
        return self._targets.get(key)

    def problem(self, key):
        return self._problem

    def missed(self, key):
        ports = self._missed.get(key.name)
        return None if ports is None else (Absence(100.0, 130.5), ports)


class Store:
    def __init__(self, *entries):
        self.entries = entries


def planned(*names, **fields):
    keys = [PodKey("shop", name) for name in names]
    snapshots = [
        PortSnapshot(number, "tcp", "probe", "probe", (), policies=(POLICY.snapshot,)) for number in (8080, 8443)
    ]
    ports = tuple(PortPlan(snapshot, needs_app=True) for snapshot in snapshots)
    return Plan(
        pods={key: PodPlan(Pod(key, "uid"), ports) for key in keys},
        inspected={key: {8080: ("shop/p",), 8443: ("shop/p",)} for key in keys},
        **fields,
    )


def view(plan, entry=ENTRY, problem="", missed=None, conditions=(), **targets):
    stated = Conditions()
    stated.state(Source("test"), conditions)
    [only] = policy_views(Store(entry), plan, Targets(problem, missed=missed, **targets), stated)
    return only


def test_why_an_engine_does_not_have_its_rules_is_told():
    stated = [
        Condition(ConditionType.IDS_RULES_INVALID, f"InspectionPolicy {name}", name) for name in ("shop/x", "shop/p")
    ]
    stated.append(Condition(ConditionType.POLICY_INVALID, "InspectionPolicy shop/p", "other"))
    assert view(planned(), conditions=stated).rules_problem == "shop/p"
    assert view(planned(), conditions=stated[:1]).rules_problem == ""


def test_a_pod_is_programmed_once_its_proxy_has_the_policy_on_steered_ports():
    plan = planned("a", "b", "c", "d", "e", "f")
    found = view(
        plan,
        problem="no namespace",
        a=Target(),
        b=Target(told=False),
        c=Target(steered=(8080,), left="overloaded"),
        d=Target(steered=(8080,), waits=(8443,)),
        f=Target(unjudged="its inspector is being made"),
    )
    assert found.programmed == ("shop/a", "shop/d")
    assert found.failing == (
        PodState("shop/b", "pending", "no namespace"),
        PodState("shop/c", "pending", "overloaded"),
        PodState("shop/e", "pending", "no namespace"),
        PodState("shop/f", "pending", "its inspector is being made"),
    )
    assert (found.mode, found.failure_policy, found.accepted, found.in_force) == ("Enforce", "Fail", True, True)


class Outbound(Target):
    """A target whose pod makes connections; `inspected` says whether they are inspected."""

    def __init__(self, *, inspected=True, problem="", absence="", counts=None, **fields):
        super().__init__(**fields)
        self.inspected, self.problem, self._absence = inspected, problem, absence
        self.counters.outbound = counts or {}

    @property
    def egress(self):
        return self

    def inspects(self, *asked):
        return self.inspected if len(asked) == 1 else super().inspects(*asked)

    def absence(self):
        return self._absence


def test_a_pod_is_programmed_once_connections_that_it_makes_are_inspected():
    keys = [PodKey("shop", name) for name in "abcdef"]
    plan = Plan(
        pods={key: PodPlan(Pod(key, "uid"), ()) for key in keys},
        outward=dict.fromkeys(keys, ("shop/p", "shop/q")),
    )
    engine = EngineView("inspector", "running", 7, "3.0.9", ("shop/p",), 200, 1, 2, 0)
    found = view(
        plan,
        problem="no namespace",
        a=Outbound(counts={"inspection_blocked": 2, "inspection_bypassed_not_http": 1, "outbound": 9}),
        b=Outbound(inspected=False, absence="the pod proxy has ended"),
        c=Outbound(problem="no cgroup"),
        d=Outbound(counts={"inspection_blocked": 1, "inspection_closed_not_http": 1}, beside=(engine,)),
        f=Outbound(unjudged="no inspector"),
    )
    assert found.programmed == ("shop/a", "shop/d")
    assert [(each.kind, each.pods) for each in found.engines] == [("inspector", 1)]
    assert found.failing == (
        PodState("shop/b", "pending", "the pod proxy has ended"),
        PodState("shop/c", "failed", "connections that the pod makes: no cgroup"),
        PodState("shop/e", "pending", "no namespace"),
        PodState("shop/f", "pending", "no inspector"),
    )
    assert (found.hits, found.bypassed, found.closed) == ({"blocked": 3}, {"not_http": 1}, {"not_http": 1})


def test_counters_of_connections_that_a_pod_makes_are_those_of_policies_about_them():
    plan = planned("a", outward={PodKey("shop", "a"): ("shop/q",)})
    found = view(plan, a=Outbound(counts={"inspection_blocked": 2}, port8443={"inspection_blocked": 1}))
    assert found.hits == {"blocked": 1}


def test_a_pod_where_it_is_not_carried_out_has_failed_with_the_reason():
    key, other = PodKey("shop", "a"), PodKey("shop", "z")
    plan = planned("a", not_inspected={("shop/p", key): "no key", ("shop/p", other): "off", ("shop/q", key): "x"})
    found = view(plan, a=Target(port8443={"inspection_bypassed_tls_without_certificate": 3}))
    assert found.programmed == ()
    assert found.failing == (PodState("shop/a", "failed", "no key"), PodState("shop/z", "failed", "off"))
    assert found.bypassed == {"tls_without_certificate": 3}


def test_a_pod_that_waits_says_so():
    found = view(planned("a", waiting=frozenset({PodKey("shop", "a")})))
    assert found.failing[0].state == "pending"
    assert "certificate" in found.failing[0].detail


def test_the_first_failing_pods_are_named_and_all_counted():
    names = [f"p{number:02}" for number in range(MAX_FAILING + 5)]
    found = view(planned(*names))
    assert [each.pod for each in found.failing] == [f"shop/{name}" for name in names[:MAX_FAILING]]
    assert found.failing_pods == len(names)


def test_counters_of_the_ports_to_which_it_applies_are_summed():
    counts = {
        "accepted": 9,
        "inspection_blocked": 2,
        "inspection_would_block": 1,
        "inspection_bypassed_not_http": 4,
        "inspection_closed_window": 5,
    }
    found = view(planned("a", "b"), a=Target(port8080=counts, port9999=counts), b=Target(port8443=counts))
    assert found.hits == {"blocked": 4, "would_block": 2}
    assert found.bypassed == {"not_http": 8}
    assert found.closed == {"window": 10}


def test_the_ports_of_workloads_to_which_it_applies():
    owners = (Owner("replicaset", "orders-1"), Owner("deployment", "orders"))
    pods = {name: Pod(PodKey("shop", name), "uid", owners=owners) for name in ("a", "b")}
    surveys = {pod.key: PodSurvey(pod, ()) for pod in pods.values()}
    found = view(planned("a", "b", "lone", surveys=surveys))
    assert found.inspected == (
        InspectedView("shop/deployment/orders", (8080, 8443)),
        InspectedView("shop/pod/lone", (8080, 8443)),
    )


def test_the_time_in_which_no_daemon_ran():
    missed = {"a": (8443,), "b": (8080, 8443), "c": (9999,)}
    found = view(planned("a", "b", "c", "d"), missed=missed)
    assert found.gaps == (GapView(100.0, 130.5, "no-daemon", 2),)
    assert view(planned("a")).gaps == ()


def test_a_policy_that_is_not_in_force():
    found = view(Plan(), PolicyEntry(("", "base"), None, "spec: bad"))
    assert (found.namespace, found.name, found.accepted, found.problem) == ("", "base", False, "spec: bad")
    assert (found.in_force, found.mode, found.failure_policy, found.failing_pods) == (False, "", "", 0)
    assert not view(Plan(), PolicyEntry(("shop", "p"), WRITTEN, CHECKING)).accepted
    last_good = view(planned("a"), PolicyEntry(("shop", "p"), None, "spec: bad", POLICY), a=Target())
    assert (last_good.accepted, last_good.in_force, last_good.programmed) == (False, True, ("shop/a",))


def engine(kind="inspector", policies=("shop/p",), state="running", **more):
    return EngineView(kind, state, 7, "1.0", policies, **more)


def test_the_engines_of_a_policy_are_added_up():
    plan = planned("a", "b", "c", "d")
    mine = engine(rules=262, memory=30 << 20, restarts=1, bypassed={"deadline": 2, "crash": 1})
    waiting = engine(rules=262, memory=31 << 20, state="paused")
    foreign = engine(policies=("shop/other",), memory=99 << 20, bypassed={"crash": 50})
    ids = engine("suricata", rules=7, memory=33 << 20, connections={"fed": 9, "unfed": 1, "cut": 2})
    fast, slow = {"waf_verdicts_1ms": 150}, {"waf_verdicts_16ms": 49, "waf_verdicts_longer": 1, "accepted": 900}
    found = view(
        plan,
        a=Target(beside=(mine, ids), port8080=fast),
        b=Target(beside=(waiting,), port8443=slow),
        c=Target(beside=(foreign,), port8080={"waf_verdicts_256ms": 1000}),
        d=Target(),
    )
    assert found.engines == (
        PolicyEngineView("inspector", "1.0", 1, 1, 262, 31 << 20, 1, judged=200, p50=1, p99=16, missed=3),
        PolicyEngineView("suricata", "1.0", 1, 0, 7, 33 << 20, 0, missed=3),
    )
    assert view(plan, a=Target()).engines == ()
