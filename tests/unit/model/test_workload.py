"""Selectors of workloads."""

from __future__ import annotations

import pytest

from sidestep.model.workload import LabelRequirement, LabelSelector, SelectorOperator, WorkloadKey

LABELS = {"app": "orders", "tier": "2"}
IN, NOT_IN, EXISTS, ABSENT = (
    SelectorOperator.IN,
    SelectorOperator.NOT_IN,
    SelectorOperator.EXISTS,
    SelectorOperator.DOES_NOT_EXIST,
)


@pytest.mark.parametrize(
    ("key", "operator", "values", "holds"),
    [
        ("app", IN, {"orders", "carts"}, True),
        ("app", IN, {"carts"}, False),
        ("zone", IN, {"a"}, False),
        ("app", NOT_IN, {"carts"}, True),
        ("app", NOT_IN, {"orders"}, False),
        ("zone", NOT_IN, {"a"}, True),
        ("app", EXISTS, set(), True),
        ("zone", EXISTS, set(), False),
        ("app", ABSENT, set(), False),
        ("zone", ABSENT, set(), True),
    ],
)
def test_requirements(key, operator, values, holds):
    assert LabelRequirement(key, operator, frozenset(values)).holds(LABELS) is holds


@pytest.mark.parametrize(
    ("labels", "expressions", "matches"),
    [
        ({}, (), False),
        ({"app": "orders"}, (), True),
        ({"app": "orders", "zone": "a"}, (), False),
        ({}, (LabelRequirement("tier", EXISTS),), True),
        ({"app": "orders"}, (LabelRequirement("tier", EXISTS), LabelRequirement("app", ABSENT)), False),
    ],
)
def test_labels_and_expressions_are_and_ed_and_an_empty_selector_selects_nothing(labels, expressions, matches):
    assert LabelSelector(labels, expressions).matches(LABELS) is matches


def test_a_workload_is_named_for_people():
    assert str(WorkloadKey("deployment", "shop", "orders")) == "deployment shop/orders"
