"""The status of a policy: what one node says, and what all of them say together."""

from pathlib import Path

import msgspec
import pytest
import yaml

from sidestep.kube.policies import (
    DaemonEntry,
    EngineEntry,
    FailingPod,
    Gap,
    InspectedWorkload,
    NodeEntry,
    ObservedPolicy,
    StatusCondition,
    StatusFields,
)
from sidestep.model.condition import Condition, ConditionType
from sidestep.model.pod import PodKey
from sidestep.node.cluster.policy_status import (
    aggregate,
    conflicts_of,
    differs,
    entry_of,
    is_ours,
    patch_of,
    reporting_node,
    without_counts,
)
from sidestep.node.planning.plan import Plan
from sidestep.node.policies import CHECKING
from sidestep.tunnel.messages import PodState
from sidestep.tunnel.views import GapView, InspectedView, PolicyEngineView, PolicyView
from tests.unit.node.planning.test_inspection import GLOBAL, enforced, planned, policy
from tests.unit.node.scenes import intercept

DEPLOY = Path(__file__).parents[4] / "deploy"
OWN = DaemonEntry("sidestep", "sidestep-n1", "2026-01-01T00:00:00Z")
NOW, LATER = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"


def view(**changes):
    values = {"namespace": "shop", "name": "p", "mode": "Enforce", "failure_policy": "Fail", "accepted": True}
    return PolicyView(**{**values, "in_force": True, **changes})


def entry(**changes):
    return NodeEntry(**{"daemon": OWN, "observed_generation": 2, "accepted": True, "programmed": 1, **changes})


def observed(status=None, generation=2):
    return ObservedPolicy(
        kind="InspectionPolicy",
        namespace="shop",
        name="p",
        uid="u",
        generation=generation,
        resource_version="7",
        policy=None,
        problem="",
        status=status or StatusFields(),
    )


def conditions(nodes, own=None, status=None):
    whole = aggregate(observed(status), own or view(), nodes, now=NOW)
    return {each["type"]: (each["status"], each["reason"], each["message"]) for each in whole["conditions"]}


def test_the_entry_of_a_node():
    failing = (PodState("shop/b", "pending", "starts"),)
    made = entry_of(
        view(programmed=("shop/a",), failing=failing, failing_pods=3, bypassed={"tls": 4}, closed={"x": 1}),
        5,
        OWN,
        ["c"],
    )
    assert made == NodeEntry(
        OWN, 5, True, "", 1, 3, (FailingPod("shop/b", "pending", "starts"),), {"tls": 4}, {"x": 1}, ("c",)
    )
    assert entry_of(view(), 5, OWN, ["c"]) is None, "no pod of this node is selected"
    assert without_counts(made) == msgspec.structs.replace(made, bypassed={}, closed={})


def test_engines_are_in_the_entry_and_written_with_the_counts():
    engines = (PolicyEngineView("inspector", "1.0", 2, 1, 262, 31 << 20, 4, judged=9, p50=4, p99=16, missed=3),)
    made = entry_of(view(programmed=("shop/a",), engines=engines), 5, OWN, ())
    assert made.engines == (EngineEntry("inspector", "1.0", 2, 1, 262, 31 << 20, 4, 9, 4, 16, 3),)
    assert without_counts(made).engines == ()
    [told] = patch_of(made, None)["engines"]
    assert (told["kind"], told["p99"], told["missed"]) == ("inspector", 16, 3)
    documents = list(yaml.safe_load_all((DEPLOY / "inspection.yaml").read_text()))
    for each in [each for each in documents if each["metadata"]["name"].endswith("inspectionpolicies.sidestep.dev")]:
        [version] = each["spec"]["versions"]
        status = version["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]
        written = status["nodes"]["additionalProperties"]["properties"]["engines"]["items"]["properties"]
        assert set(written) == set(told), "an API server prunes what its schema does not have"


def test_workloads_are_named_within_bounds():
    all_ = tuple(InspectedView(f"shop/pod/{number:02}", tuple(range(1, 31))) for number in range(40))
    few = entry_of(view(programmed=("shop/a",), inspected=all_), 5, OWN, ())
    assert (len(few.inspected), few.inspected_more) == (32, 8)
    assert few.inspected[0] == InspectedWorkload("shop/pod/00", tuple(range(1, 17)))
    many = entry_of(view(programmed=("shop/a",), inspected=all_), 5, OWN, (), nodes=100)
    assert (len(many.inspected), many.inspected_more) == (10, 30)
    most = entry_of(view(programmed=("shop/a",), inspected=all_), 5, OWN, (), nodes=10_000)
    assert (len(most.inspected), most.inspected_more) == (1, 39)


def test_gaps_of_earlier_daemons_are_kept_within_bounds():
    def said(start, pods, present=None):
        gap = GapView(start, start + 1.5, "no-daemon", pods)
        return entry_of(view(programmed=("shop/a",), gaps=(gap,)), 5, OWN, (), present)

    first = said(0.0, 2)
    assert first.gaps == (Gap("1970-01-01T00:00:00.000Z", "1970-01-01T00:00:01.500Z", "no-daemon", 2),)
    assert said(0.0, 3, first).gaps[0].pods == 3, "pods are found one after the other"
    assert said(0.0, 1, first) == first, "and may be gone later"
    assert entry_of(view(programmed=("shop/a",)), 5, OWN, (), first).gaps == first.gaps
    for number in range(1, 30):
        first = said(60.0 * number, 1, first)
    assert len(first.gaps) == 10
    assert first.gaps[-1].start == "1970-01-01T00:29:00.000Z"
    assert without_counts(first).gaps == first.gaps, "they are written at once"


def test_counts_that_are_gone_are_taken_out():
    before, after = entry(bypassed={"tls": 4, "not_http": 1}, closed={"x": 1}), entry(bypassed={"tls": 5})
    patch = patch_of(after, before)
    assert patch["bypassed"] == {"tls": 5, "not_http": None}
    assert patch["closed"] == {"x": None}
    assert patch["programmed"] == 1
    assert patch_of(None, before) is None
    assert patch_of(after, None)["bypassed"] == {"tls": 5}


@pytest.mark.parametrize(
    ("daemon", "ours"),
    [
        (OWN, True),
        (DaemonEntry("sidestep", "sidestep-old", "2025-12-31T00:00:00Z"), True),
        (DaemonEntry("sidestep", "sidestep-new", "2026-01-01T00:00:01Z"), False),
    ],
)
def test_the_daemon_that_started_later_writes(daemon, ours):
    assert is_ours(entry(daemon=daemon), OWN) is ours
    assert is_ours(None, OWN)


def test_the_first_node_reports():
    assert reporting_node({"b": entry(), "a": None, "c": entry()}) == "b"
    assert reporting_node({"a": None}) == ""


@pytest.mark.parametrize(
    ("nodes", "own", "status", "reason", "message"),
    [
        ({}, view(), "True", "Accepted", "it is in force"),
        ({}, view(accepted=False, problem="spec.mode: no"), "False", "Invalid", "spec.mode: no"),
        ({}, view(accepted=False, problem=CHECKING), "Unknown", "Pending", CHECKING),
        ({"a": entry(), "b": entry()}, view(), "True", "Accepted", "it is in force"),
        ({"a": entry(), "b": entry(accepted=False, problem="slow")}, view(), "False", "Invalid", "slow"),
        ({"a": entry(), "b": entry(accepted=False, problem=CHECKING)}, view(), "Unknown", "Pending", CHECKING),
        ({"a": entry(observed_generation=1)}, view(), "Unknown", "Pending", CHECKING),
        ({"a": entry(observed_generation=1), "b": entry()}, view(), "True", "Accepted", "it is in force"),
    ],
)
def test_accepted(nodes, own, status, reason, message):
    assert conditions(nodes, own)["Accepted"] == (status, reason, message)


def test_without_entries_the_first_verdict_on_a_version_stands():
    told = StatusCondition("Accepted", "False", "Invalid", "slow", NOW, 2)
    known = StatusFields(observed_generation=2, conditions=(told,))
    assert conditions({}, view(), known)["Accepted"] == ("False", "Invalid", "slow")
    earlier = StatusFields(observed_generation=1, conditions=(msgspec.structs.replace(told, observed_generation=1),))
    assert conditions({}, view(), earlier)["Accepted"][0] == "True"


FAILED = FailingPod("shop/b", "failed", "no certificate")
PENDING = FailingPod("shop/a", "pending", "")


@pytest.mark.parametrize(
    ("nodes", "own", "status", "reason", "message"),
    [
        ({}, view(), "False", "NoPods", "it selects no pod that a node daemon serves"),
        ({}, view(accepted=False, problem="x"), "False", "NotAccepted", "no version of it is in force"),
        ({"a": entry(programmed=2), "b": entry()}, view(), "True", "Programmed", "on 3 of 3 pods"),
        (
            {"a": entry(), "b": entry(programmed=0, failing=2, failing_pods=(PENDING, FAILED))},
            view(),
            "False",
            "Failing",
            "on 1 of 3 pods; shop/b is failed: no certificate",
        ),
        (
            {"a": entry(programmed=0, failing=1, failing_pods=(PENDING,))},
            view(),
            "False",
            "Pending",
            "on 0 of 1 pod; shop/a is pending",
        ),
        (
            {"a": entry(), "b": entry(observed_generation=1)},
            view(),
            "False",
            "Pending",
            "on 2 of 2 pods; a node has not taken the latest version yet",
        ),
        (
            {"a": entry(accepted=False, problem="slow")},
            view(),
            "False",
            "NotAccepted",
            "an earlier version: on 1 of 1 pod",
        ),
    ],
)
def test_programmed(nodes, own, status, reason, message):
    assert conditions(nodes, own)["Programmed"] == (status, reason, message)


def test_conflicted():
    assert conditions({"a": entry()})["Conflicted"] == ("False", "NoConflict", "nothing contradicts it")
    found = conditions({"a": entry(conflicts=("one", "two")), "b": entry(conflicts=("three",))})["Conflicted"]
    assert found == ("True", "InterceptRefused", "one (and 2 more)")


def test_who_conflicts():
    key = PodKey("shop", "a")
    refused = Condition(ConditionType.POLICY_ENFORCED, "pod shop/a port 8443", "no")
    other = Condition(ConditionType.NO_APP, "pod shop/a port 8080", "no")
    plan = Plan(inspected={key: {8443: ("base", "shop/p"), 8080: ("shop/p",)}}, conditions={key: (refused, other)})
    views = [view(), view(namespace="", name="base", mode="Detect")]
    assert conflicts_of(plan, views) == {"shop/p": ["an intercept of pod shop/a port 8443 is refused"]}


def test_a_condition_keeps_its_time_while_its_status_stays():
    first = aggregate(observed(), view(), {"a": entry()}, now=NOW)
    status = msgspec.convert({**first, "nodes": {}}, StatusFields)
    assert not differs(first, status, with_counts=True)
    nodes = {"a": entry(programmed=0, failing=1, failing_pods=(PENDING,), bypassed={"tls": 3})}
    second = aggregate(observed(status), view(), nodes, now=LATER)
    times = {each["type"]: each["lastTransitionTime"] for each in second["conditions"]}
    assert times == {"Accepted": NOW, "Programmed": LATER, "Conflicted": NOW}
    assert second["bypassed"] == 3
    assert differs(second, status, with_counts=False)
    counted = aggregate(observed(status), view(), {"a": entry(bypassed={"tls": 3})}, now=LATER)
    assert differs(counted, status, with_counts=True)
    assert not differs(counted, status, with_counts=False)


def test_a_real_plan_says_who_conflicts():
    policies = (enforced("p"), policy("q"), enforced("r", ports=(8080,)))
    taken = intercept("whole", port="8443", filter=GLOBAL)
    views = [view(name="p"), view(name="q", mode="Detect"), view(name="r")]
    assert conflicts_of(planned(*policies, intercepts=[taken]), views) == {
        "shop/p": ["an intercept of pod shop/orders-1 port 8443 is refused"]
    }
    assert conflicts_of(planned(*policies), views) == {}


def test_rules_of_engines_are_told_once_they_were_missing():
    assert "RulesLoaded" not in conditions({"a": entry()})
    bad = entry(rules_problem="ids: there is no ConfigMap shop/rules")
    assert conditions({"a": entry(), "b": bad})["RulesLoaded"] == ("False", "Invalid", bad.rules_problem)
    before = StatusFields(conditions=(StatusCondition("RulesLoaded", "False", "Invalid", "x", NOW),))
    assert conditions({"a": entry()}, status=before)["RulesLoaded"] == ("True", "Loaded", "its engines have its rules")
    made = entry_of(view(programmed=("shop/a",), rules_problem="a\x1bb"), 2, OWN, ())
    assert made.rules_problem == "a\\x1bb"
