"""Policies as snapshots: there and back, over the wire."""

from ipaddress import ip_network

import msgspec
import pytest

from sidestep.model.errors import ConfigurationError
from sidestep.model.filter import Filter, HeaderCondition, HeaderTest, PathCondition, PathTest
from sidestep.model.inspection import (
    Action,
    Builtin,
    Direction,
    ExistingConnections,
    FailurePolicy,
    InspectionPolicy,
    Match,
    Mode,
    ParameterCondition,
    Pattern,
    RateLimit,
    Redaction,
    Rule,
    Threshold,
)
from sidestep.policy.inspection_rows import from_snapshot, to_snapshot
from sidestep.snapshots.inspection import PolicySnapshot

MATCH = Match(
    Filter(
        (HeaderCondition("x-a", HeaderTest.EXACT, "1"), HeaderCondition("x-b", HeaderTest.PRESENT)),
        ("GET", "PUT"),
        (PathCondition(PathTest.PREFIX, "/a"), PathCondition(PathTest.REGEX, "^/b")),
    ),
    (ParameterCondition("q", HeaderTest.REGEX, "x+"),),
    ("*.shop.test",),
    (ip_network("10.0.0.0/8"), ip_network("2001:db8::/32")),
    ("CN=ada*",),
    (ip_network("203.0.113.0/24"),),
    (443, 8443),
    ("t13d1516h2_8daaf6152771_e5627efa2ab1",),
)
POLICIES = [
    InspectionPolicy("empty"),
    InspectionPolicy(
        "full",
        "shop",
        mode=Mode.ENFORCE,
        failure_policy=FailurePolicy.FAIL,
        existing_connections=ExistingConnections.RESET,
        sample_percent=12.5,
        rules=(
            Rule("a", Action.LOG),
            Rule(
                "b",
                Action.BLOCK,
                Direction.RESPONSE,
                MATCH,
                Match(sources=(ip_network("192.0.2.7/32"),)),
                (Pattern(Builtin.CARD_NUMBER), Pattern(regex="sk_live")),
                Threshold(5, 60.0),
                RateLimit(2, 1.5),
            ),
        ),
        redaction=Redaction(query_values=False, headers=("x-key",)),
    ),
]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_there_and_back(policy):
    data = msgspec.msgpack.encode(to_snapshot(policy))
    assert from_snapshot(msgspec.msgpack.decode(data, type=PolicySnapshot)) == policy


def test_what_cannot_be_read():
    snapshot = to_snapshot(POLICIES[1])
    with pytest.raises(ConfigurationError, match="cannot be read"):
        from_snapshot(msgspec.structs.replace(snapshot, mode="Sometimes"))
