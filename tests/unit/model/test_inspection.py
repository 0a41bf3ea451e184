"""Inspection policies as values: what selectors select."""

import pytest

from sidestep.model.inspection import Builtin, InspectionPolicy, Pattern, selects
from sidestep.model.workload import LabelRequirement, LabelSelector, SelectorOperator


@pytest.mark.parametrize(
    ("selector", "labels", "expected"),
    [
        (LabelSelector(), {}, True),
        (LabelSelector(), {"app": "orders"}, True),
        (LabelSelector({"app": "orders"}), {"app": "orders", "tier": "back"}, True),
        (LabelSelector({"app": "orders"}), {"app": "payments"}, False),
        (LabelSelector({"app": "orders"}), {}, False),
        (LabelSelector({}, (LabelRequirement("app", SelectorOperator.EXISTS),)), {}, False),
        (LabelSelector({}, (LabelRequirement("app", SelectorOperator.DOES_NOT_EXIST),)), {}, True),
    ],
)
def test_an_empty_selector_of_a_policy_selects_everything(selector, labels, expected):
    assert selects(selector, labels) is expected


def test_names():
    assert InspectionPolicy("base").display == "base"
    assert InspectionPolicy("orders", "shop").display == "shop/orders"
    assert str(Pattern(Builtin.JWT)) == "Jwt"
    assert str(Pattern(regex="a+")) == "regex a+"
