"""Lookups over an inventory."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from sidestep.model.inventory import Inventory, Secret
from sidestep.model.inventory_index import Memo
from sidestep.model.pod import Owner, Pod, PodKey, Service
from sidestep.model.workload import Workload, WorkloadKey


def pod(name, *, namespace="shop", labels=None, owners=("deployment", "replicaset"), ended=False):
    return Pod(
        PodKey(namespace, name),
        name,
        labels={"app": "orders"} if labels is None else labels,
        owners=tuple(Owner(kind, "orders") for kind in owners),
        ended=ended,
    )


ONE, TWO, OTHER, ENDED = pod("one"), pod("two"), pod("other", namespace="store"), pod("ended", ended=True)
JOB = Workload(WorkloadKey("job", "shop", "nightly"))
LABELLED = Service("shop", "b-labelled", {"app": "orders"})
ELSEWHERE = Service("store", "elsewhere", {"app": "orders"})
TWO_LABELS = Service("shop", "two-labels", {"app": "orders", "tier": "2"})
GIVEN = Service("shop", "a-given", {}, pods=frozenset({ONE.key, OTHER.key}))
STOCK = Inventory(
    pods={each.key: each for each in (TWO, ONE, OTHER, ENDED)},
    services=(LABELLED, ELSEWHERE, TWO_LABELS, GIVEN),
    workloads={JOB.key: JOB},
    secrets={("shop", "tls"): Secret("shop", "tls")},
    namespaces={"shop": {"a": "1"}},
    nodes={"n1": {"b": "2"}},
)


def test_pods_that_have_ended_are_left_out():
    assert STOCK.index.living == (ONE, TWO, OTHER)


@pytest.mark.parametrize(
    ("kind", "name", "pods"),
    [
        ("deployment", "orders", (ONE, TWO)),
        ("replicaset", "orders", (ONE, TWO)),
        ("pod", "one", (ONE,)),
        ("pod", "ended", ()),
        ("job", "nightly", ()),
        ("deployment", "carts", ()),
    ],
)
def test_the_pods_of_a_workload(kind, name, pods):
    assert STOCK.index.covered("shop", kind, name) == pods


def test_a_controller_that_is_there_twice_counts_once():
    twice = pod("twice", owners=("deployment", "deployment"))
    assert Inventory(pods={twice.key: twice}).index.covered("shop", "deployment", "orders") == (twice,)


def test_the_names_of_what_can_be_intercepted():
    assert STOCK.index.kinds("shop", "orders") == {"deployment", "replicaset"}
    assert STOCK.index.kinds("shop", "nightly") == {"job"}
    assert STOCK.index.kinds("shop", "nobody") == frozenset()
    assert STOCK.index.names("shop") == (
        "deployment/orders", "job/nightly", "pod/one", "pod/two", "replicaset/orders",
    )  # fmt: skip
    assert STOCK.index.names("nowhere") == ()


def test_services_by_labels_and_by_pods_given_to_them():
    assert STOCK.services_of(ONE) == (GIVEN, LABELLED)
    assert STOCK.services_of(TWO) == (LABELLED,)
    assert STOCK.services_of(OTHER) == (ELSEWHERE,)
    assert STOCK.services_of(ONE) is STOCK.services_of(ONE)


def test_a_pod_that_is_not_in_the_inventory_is_not_remembered():
    tier = replace(ONE, labels={"app": "orders", "tier": "2"})
    assert STOCK.services_of(tier) == (GIVEN, LABELLED, TWO_LABELS)
    assert STOCK.services_of(ONE) == (GIVEN, LABELLED)
    assert Inventory(services=(LABELLED,)).services_of(ONE) == (LABELLED,)


def test_what_is_written_about_secrets_namespaces_and_nodes():
    assert STOCK.secret("shop", "tls") == Secret("shop", "tls")
    assert STOCK.secret("shop", "other") is None
    assert STOCK.namespace_annotations("shop") == {"a": "1"}
    assert STOCK.namespace_annotations("store") == {}
    assert STOCK.node_annotations("n1") == STOCK.node_annotations() == {"b": "2"}
    assert STOCK.node_annotations("n2") == {}
    assert Inventory(nodes={"n1": {}, "n2": {"b": "2"}}).node_annotations() == {}


class TestMemo:
    def test_a_value_is_made_once(self):
        memo, made = Memo[str, str](), []
        for _ in range(2):
            assert memo.get("a", lambda: made.append(1) or "x") == "x"
        assert made == [1]

    def test_everything_is_forgotten_when_it_weighs_too_much(self):
        memo, made = Memo[str, str](max_weight=5), []

        def get(key):
            return memo.get(key, lambda: made.append(key) or key, weight=len)

        get("aa")
        get("b")
        assert made == ["aa", "b"]
        get("c")
        get("c")
        get("b")
        assert made == ["aa", "b", "c", "b"]
