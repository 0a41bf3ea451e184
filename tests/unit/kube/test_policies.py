"""Policies as an API server sends them: read whatever they hold, by their identity, with the reason if they are bad."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidestep.config.field_error import FieldError
from sidestep.kube import policies
from sidestep.kube.policies import PLURALS, ObservedPolicy, StatusFields, collection_path, policy_observer
from tests.effort import examples

RULES = [{"name": "a", "action": "Log"}]
METADATA = {"name": "p", "namespace": "shop", "uid": "1", "generation": 4, "resourceVersion": "9"}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def observe(value, kind="InspectionPolicy"):
    return policy_observer(kind)(value)


def test_a_policy_and_its_identity():
    found = observe({"metadata": METADATA, "spec": {"podSelector": {}, "rules": RULES}})
    assert (found.key, found.uid, found.generation, found.resource_version) == (("shop", "p"), "1", 4, "9")
    assert found.policy.display == "shop/p"
    assert found.problem == ""
    assert found.path == "/apis/sidestep.dev/v1alpha1/namespaces/shop/inspectionpolicies/p"


def test_one_of_the_cluster():
    spec = {"namespaceSelector": {}, "podSelector": {}, "rules": RULES}
    found = observe({"metadata": {"name": "base", "uid": "2"}, "spec": spec}, "ClusterInspectionPolicy")
    assert (found.key, found.policy.display) == (("", "base"), "base")
    assert found.path == "/apis/sidestep.dev/v1alpha1/clusterinspectionpolicies/base"
    assert {collection_path(kind) for kind in PLURALS} == {
        f"/apis/sidestep.dev/v1alpha1/{plural}" for plural in PLURALS.values()
    }


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        (None, "spec"),
        ({"podSelector": {}, "rules": RULES, "mode": "Strict"}, "spec.mode: "),
        ({"podSelector": {}, "rules": RULES, "namespaceSelector": {}}, "spec.namespaceSelector: only"),
        ({"podSelector": {}, "rules": RULES, "waf": {"paranoiaLevel": 9}}, "spec.waf.paranoiaLevel"),
    ],
)
def test_one_that_is_bad_is_kept_with_the_reason(spec, problem):
    found = observe({"metadata": METADATA, "spec": spec})
    assert found.policy is None
    assert found.problem.startswith(problem)


def test_a_document_is_parsed_once_however_often_its_status_changes(monkeypatch):
    monkeypatch.setattr(policies, "MAX_PARSED", 2)
    see = policy_observer("InspectionPolicy")

    def seen(name="p", *, rule="a", status=None, **metadata):
        spec = {"podSelector": {}, "rules": [{"name": rule, "action": "Log"}]}
        return see({"metadata": {**METADATA, "name": name, "uid": name, **metadata}, "spec": spec, "status": status})

    first = seen()
    again = seen(status={"observedGeneration": 7}, resourceVersion="10")
    assert again.policy is first.policy
    assert (again.status.observed_generation, again.resource_version) == (7, "10")
    edited = seen(rule="b")
    assert edited.policy.rules[0].name == "b"
    assert seen(namespace="carts").policy.namespace == "carts"
    seen("q"), seen("r")
    assert seen(namespace="carts").policy == seen(namespace="carts").policy
    bad = {"metadata": METADATA, "spec": {"rules": []}}
    assert see(bad).problem == see(bad).problem != ""


@pytest.mark.parametrize("status", [3, [], {"nodes": []}, {"nodes": {"n1": {}}}, {"conditions": [{}]}])
def test_a_status_of_another_form_counts_as_none(status):
    found = observe({"metadata": METADATA, "spec": {"podSelector": {}, "rules": RULES}, "status": status})
    assert found.status == StatusFields()


@settings(max_examples=examples(200), deadline=None)
@given(JSON, JSON, st.sampled_from([*PLURALS]))
def test_hostile_objects(spec, status, kind):
    found = observe({"metadata": METADATA, "spec": spec, "status": status}, kind)
    assert isinstance(found, ObservedPolicy)
    assert found.policy is None
    assert found.problem


@given(JSON)
def test_one_without_an_identity_is_no_policy(metadata):
    try:
        found = observe({"metadata": metadata, "spec": {}})
    except FieldError:
        return
    assert found.name
    assert found.uid
