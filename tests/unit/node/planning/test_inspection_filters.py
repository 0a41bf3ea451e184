"""Filters of inspections that would tell what the records of the port hide: refused where a policy hides it."""

from __future__ import annotations

import pytest

from sidestep.config.node_settings import NodeSettings
from sidestep.model.errors import RefusedError
from sidestep.model.filter import Filter, HeaderCondition, HeaderTest
from sidestep.model.inspection import Redaction
from sidestep.model.intercept import Kind, Live
from sidestep.node.planning.admission import admit
from sidestep.node.planning.inspection import placed
from tests.unit.node.planning.test_inspection import GOOD, POD, planned, policy
from tests.unit.node.scenes import intercept, inventory


def asking(name, test=HeaderTest.EXACT, **fields):
    """A session whose filter asks for a header."""
    fields = {"kind": Kind.WIRETAP, "records": Live.ALL, **fields}
    return intercept(filter=Filter((HeaderCondition(name, test, "v"),)), **fields)


HIDING = {"redaction": Redaction(headers=("x-api-key",))}


@pytest.mark.parametrize(
    ("session", "is_refused"),
    [
        (asking("x-api-key"), True),
        (asking("x-api-key", HeaderTest.REGEX), True),
        (asking("x_api_key", HeaderTest.REGEX), True),
        (asking("x-api-key", records=Live.ALERTS), True),
        (asking("x-api-key", HeaderTest.PRESENT), False),
        (asking("x-other"), False),
        (asking("x-api-key", records=Live.NOTHING), False),
        (asking("x-api-key", records=Live.NOTHING, kind=Kind.INTERCEPT), False),
        (asking("x-api-key", port="8080"), False),
    ],
)
def test_an_inspection_may_not_ask_for_what_a_policy_redacts(session, is_refused):
    stock = inventory()
    hiding = policy("hides", ports=(8443,), **HIDING)
    result = planned(policy(), hiding, intercepts=[session], stock=stock)
    found = placed(stock, (policy(), hiding))
    arguments = (session, (), stock, NodeSettings(), GOOD)
    if is_refused:
        assert "inspection policy shop/hides redacts x-api-key on port 8443" in result.refusals["u1", POD]
        assert not any("u1" in port.uids for port in result.pods[POD].ports)
        with pytest.raises(RefusedError, match="redacts x-api-key"):
            admit(*arguments, node_annotations={}, policies=found)
    else:
        assert result.refusals == {}
        assert any("u1" in port.uids for port in result.pods[POD].ports)
        admit(*arguments, node_annotations={}, policies=found)
    assert planned(policy(), intercepts=[session]).refusals == {}
