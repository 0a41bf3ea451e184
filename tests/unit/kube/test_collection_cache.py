"""What a collection keeps, and when what is made of collections is made anew."""

import pytest

from sidestep.config.field_error import FieldError
from sidestep.kube.collection_cache import CollectionCache
from sidestep.kube.conversion import ENDPOINT_SLICES, NAMESPACES, NODES, PODS, POLICIES, SERVICES, WORKLOADS
from sidestep.kube.inventory_builder import InventoryBuilder
from sidestep.model.pod import Location, PodKey


class Counting:
    """A converter that says how often it was asked."""

    def __init__(self):
        self.asked = 0

    def __call__(self, value):
        self.asked += 1
        if value["spec"] == "bad":
            raise FieldError("spec", "is bad")
        return {"spec": value["spec"]}


def value(name, spec):
    return {"metadata": {"uid": name, "name": name, "namespace": "n"}, "spec": spec}


@pytest.fixture
def convert():
    return Counting()


@pytest.fixture
def collected(convert):
    return CollectionCache(convert, lambda: None)


def test_many_events_of_one_object_are_converted_once(collected, convert):
    for number in range(1000):
        collected.apply(value("a", number))
    assert convert.asked == 0
    assert collected.found == {"a": {"spec": 999}}
    assert (convert.asked, collected.revision) == (1, 1)


def test_what_means_the_same_stays_the_same(collected):
    collected.replace([value("a", 1), value("b", 2)])
    first, revision = dict(collected.found), collected.revision
    collected.apply(value("a", 1))
    collected.replace([value("b", 2), value("a", 1)])
    assert all(collected.found[name] is first[name] for name in first)
    assert collected.revision == revision
    collected.replace([value("a", 1)])
    assert set(collected.found) == {"a"}
    assert collected.revision > revision


def test_what_is_bad_is_told_until_it_is_mended_or_gone(collected):
    collected.replace([value("a", "bad")])
    assert (collected.found, list(collected.bad)) == ({}, ["a"])
    collected.apply(value("a", 1))
    assert (collected.found, collected.bad) == ({"a": {"spec": 1}}, {})
    collected.apply(value("a", "bad"))
    assert (collected.found, list(collected.bad)) == ({}, ["a"])
    collected.remove(value("a", "bad"))
    assert (collected.found, collected.bad) == ({}, {})
    collected.apply(value("b", 1))
    collected.remove(value("b", 1))
    assert collected.found == {}


def pod(name, **metadata):
    return {
        "metadata": {"name": name, "namespace": "shop", "uid": f"uid-{name}", "labels": {"app": "x"}, **metadata},
        "spec": {"nodeName": "n1", "containers": [{"name": "app"}]},
        "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}]},
    }


def deployment(name, **annotations):
    metadata = {"name": name, "namespace": "shop", "uid": f"uid-{name}", "annotations": annotations}
    return {"metadata": metadata, "spec": {"selector": {"matchLabels": {"app": "x"}}}}


RULE = {"name": "a", "action": "Log"}


def test_an_inventory_is_made_anew_in_parts():
    collections = {
        each.name: CollectionCache(each.convert, lambda: None)
        for each in (PODS, SERVICES, ENDPOINT_SLICES, NAMESPACES, NODES, *WORKLOADS, *POLICIES)
    }
    joined = InventoryBuilder(collections)
    collections["pods"].replace([pod("a"), pod("b")])
    first = joined.inventory({}, {})
    collections["pods"].apply(pod("a", annotations={"example.com/x": "1"}))
    assert joined.inventory({}, {}) is first, "nothing that is kept has changed"
    collections["pods"].apply(pod("a", annotations={"sidestep.dev/downstream-client-auth.1": "none"}))
    second = joined.inventory({}, {})
    assert second.pods[PodKey("shop", "b")] is first.pods[PodKey("shop", "b")]
    assert second.pods[PodKey("shop", "a")] != first.pods[PodKey("shop", "a")]
    location = Location(netns="/run/netns/a")
    third = joined.inventory({"uid-a": location}, {})
    assert third.pods[PodKey("shop", "a")].location.netns == "/run/netns/a"
    assert joined.inventory({"uid-a": location}, {}) is third
    collections["deployments"].apply(deployment("d", **{"sidestep.dev/enabled": "true"}))
    fourth = joined.inventory({"uid-a": location}, {})
    assert [owner.name for owner in fourth.pods[PodKey("shop", "b")].owners] == ["d"]
    assert joined.inventory({"uid-a": location}, {("shop", "s"): "1"}).secrets
    with_policy = {
        "metadata": {"name": "p", "namespace": "shop", "uid": "1"},
        "spec": {"podSelector": {}, "rules": [RULE]},
    }
    collections["inspectionpolicies"].apply(with_policy)
    fifth = joined.inventory({"uid-a": location}, {})
    assert [policy.display for policy in fifth.policies] == ["shop/p"]
    collections["inspectionpolicies"].apply(with_policy | {"status": {"observedGeneration": 1}})
    assert joined.inventory({"uid-a": location}, {}) is fifth, "a status is no part of an inventory"
    collections["pods"].remove(pod("b"))
    assert set(joined.inventory({"uid-a": location}, {}).pods) == {PodKey("shop", "a")}
