"""Inspection policies as values: what selectors select."""

import pytest

from sidestep.model.inspection import Action, Builtin, Egress, FailurePolicy, InspectionPolicy, Pattern, Rule, selects
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


@pytest.mark.parametrize(
    ("inward", "outward", "rules", "shown"),
    [
        (FailurePolicy.IGNORE, FailurePolicy.FAIL, (), "Fail"),
        (FailurePolicy.IGNORE, FailurePolicy.FAIL, (Rule("a", Action.LOG),), "Ignore, egress Fail"),
        (FailurePolicy.FAIL, FailurePolicy.FAIL, (Rule("a", Action.LOG),), "Fail"),
        (FailurePolicy.FAIL, None, (Rule("a", Action.LOG),), "Fail"),
    ],
)
def test_how_a_policy_fails_is_shown_for_what_it_is_about(inward, outward, rules, shown):
    egress = None if outward is None else Egress(failure_policy=outward)
    assert (
        InspectionPolicy("p", "shop", failure_policy=inward, rules=rules, egress=egress).shown_failure_policy == shown
    )
