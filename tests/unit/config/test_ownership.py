"""Who owns a pod: by reference, else by selector."""

from sidestep.config.ownership import MAX_OWNERS, link_owners
from sidestep.model.pod import Pod, PodKey
from sidestep.model.workload import LabelSelector, OwnerReference, Workload, WorkloadKey

POD = Pod(PodKey("shop", "orders-1"), "uid", labels={"app": "orders"})
EVERY = LabelSelector({"app": "orders"})
NONE = LabelSelector({"app": "another"})


def workloads(*found):
    return {each.key: each for each in found}


def workload(kind, name, *, selector=NONE, namespace="shop", owners=()):
    return Workload(WorkloadKey(kind, namespace, name), {"a": name}, selector, tuple(owners))


def owners(references, found):
    return [(owner.kind, owner.name, dict(owner.annotations)) for owner in link_owners(POD, references, found).owners]


def test_references_are_followed_nearest_first():
    found = workloads(
        workload("replicaset", "orders-5f", owners=[OwnerReference("deployment", "orders")]),
        workload("deployment", "orders"),
    )
    assert owners([OwnerReference("replicaset", "orders-5f")], found) == [
        ("replicaset", "orders-5f", {"a": "orders-5f"}),
        ("deployment", "orders", {"a": "orders"}),
    ]


def test_an_owner_that_nobody_described_stays_without_annotations():
    assert owners([OwnerReference("rollout", "orders")], {}) == [("rollout", "orders", {})]


def test_without_references_selectors_decide_one_workload_of_a_kind():
    found = workloads(
        workload("deployment", "b", selector=EVERY),
        workload("deployment", "a", selector=EVERY),
        workload("replicaset", "r", selector=EVERY),
        workload("statefulset", "other"),
        workload("deployment", "0", selector=EVERY, namespace="elsewhere"),
    )
    assert [each[:2] for each in owners([], found)] == [("replicaset", "r"), ("deployment", "a")]


def test_a_replicaset_that_nobody_described_is_completed_by_its_deployment_only():
    found = workloads(workload("deployment", "a", selector=EVERY), workload("statefulset", "s", selector=EVERY))
    reference = OwnerReference("replicaset", "r")
    assert [each[:2] for each in owners([reference], found)] == [("replicaset", "r"), ("deployment", "a")]


def test_references_in_a_circle_and_long_chains_end():
    a, b = OwnerReference("replicaset", "a"), OwnerReference("deployment", "b")
    circle = workloads(workload("replicaset", "a", owners=[b]), workload("deployment", "b", owners=[a]))
    assert [each[:2] for each in owners([a], circle)] == [("replicaset", "a"), ("deployment", "b")]
    chain = workloads(
        *(workload("job", str(number), owners=[OwnerReference("job", str(number + 1))]) for number in range(20))
    )
    assert len(owners([OwnerReference("job", "0")], chain)) == MAX_OWNERS
