"""Pods that leave a policy by their labels, and those that leave it otherwise."""

from sidestep.model.pod import Pod, PodKey
from sidestep.node.cluster.departures import Departure, Departures
from sidestep.node.planning.plan import Plan
from sidestep.policy.survey import PodSurvey

KEY = PodKey("shop", "a")
ALL = frozenset({"base", "shop/p"})


def plan(*policies, refused=(), uid="1", tier="", **labels):
    pod = Pod(KEY, uid=uid, labels=labels)
    return Plan(
        surveys={KEY: PodSurvey(pod, ())},
        inspected={KEY: {8080: policies}} if policies else {},
        not_inspected={(name, KEY): "no certificate" for name in refused},
        namespace_labels={"shop": {"tier": tier}} if tier else {},
    )


def found(*plans, policies=ALL):
    departures = Departures()
    return [departures.look(each, policies) for each in plans][-1]


def test_a_pod_that_is_relabelled_out_of_a_selector():
    before, after = plan("base", "shop/p", app="orders"), plan("base", app="other")
    assert found(before, after) == [Departure(KEY, "1", "shop/p")]
    assert found(before, after, plan("base", app="other")) == [], "it is told once"


def test_a_pod_whose_namespace_is_relabelled_out_of_a_selector():
    before, after = plan("base", "shop/p", tier="web"), plan("shop/p", tier="other")
    assert found(before, after) == [Departure(KEY, "1", "base")]
    assert found(before, plan("shop/p", tier="web")) == [], "the policy has changed"


def test_also_one_that_was_not_inspected():
    assert found(plan(refused=["shop/p"], app="orders"), plan(app="other")) == [Departure(KEY, "1", "shop/p")]


def test_what_is_no_departure():
    before = plan("shop/p", app="orders")
    assert found(before, before) == []
    assert found(before, plan(app="orders")) == [], "the policy has changed"
    assert found(before, plan(app="other"), policies=frozenset()) == [], "the policy is gone"
    assert found(before, plan(app="other", uid="2")) == [], "another pod of the same name"
    assert found(before, Plan()) == []
    assert found(before, plan("shop/p", app="orders", version="2")) == []
    assert found(before, plan(refused=["shop/p"], app="orders", version="2")) == []
