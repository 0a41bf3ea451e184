"""`egress` of policies as snapshots: there and back, over the wire."""

from ipaddress import ip_network

import msgspec
import pytest
from msgspec.structs import replace

from sidestep.model.egress import Destination, EgressMode, Quic, SecretRef
from sidestep.model.errors import ConfigurationError
from sidestep.model.inspection import Action, Egress, FailurePolicy, InspectionPolicy, Match, Mode, Redaction, Rule
from sidestep.policy.egress_rows import from_egress_snapshot, to_egress_snapshot
from sidestep.snapshots.egress import EgressSnapshot

FULL = InspectionPolicy(
    "out",
    "shop",
    mode=Mode.ENFORCE,
    rules=(Rule("inward", Action.LOG),),
    redaction=Redaction(query_values=False, headers=("x-key",)),
    egress=Egress(
        (
            Destination("a", EgressMode.ORIGINATE, ("a.test", "*.b.test"), (ip_network("2001:db8::/32"),), (80,)),
            Destination("b", EgressMode.DECRYPT),
        ),
        (Rule("outward", Action.BLOCK, match=Match(networks=(ip_network("192.0.2.0/24"),), ports=(443,))),),
        FailurePolicy.FAIL,
        Quic.BLOCK,
        SecretRef("shop", "ca"),
        SecretRef("shop", "roots"),
    ),
)


def test_there_and_back():
    data = msgspec.msgpack.encode(to_egress_snapshot(FULL))
    policy, egress = from_egress_snapshot(msgspec.msgpack.decode(data, type=EgressSnapshot))
    assert egress == replace(FULL.egress, issuer=None, trust=None)
    assert policy == FULL.outward
    assert policy.closes


def test_defaults():
    policy, egress = from_egress_snapshot(to_egress_snapshot(InspectionPolicy("p", egress=Egress())))
    assert egress == Egress()
    assert not policy.closes


def test_a_policy_that_says_nothing_of_them():
    assert to_egress_snapshot(replace(FULL, egress=None)) is None


def test_credentials():
    snapshot = msgspec.structs.replace(to_egress_snapshot(FULL), issuer="identity:1", trust="trust:2")
    assert snapshot.credentials == {"identity:1": "issuer", "trust:2": "trust"}
    assert to_egress_snapshot(FULL).credentials == {}
    bare = snapshot.without_credentials()
    assert (bare.credentials, bare.opens, snapshot.opens) == ({}, False, True)


def test_what_cannot_be_read():
    snapshot = to_egress_snapshot(FULL)
    [first, _] = snapshot.destinations
    for wrong in (msgspec.structs.replace(first, mode="Open"), msgspec.structs.replace(first, networks=("x",))):
        with pytest.raises(ConfigurationError, match="cannot be read"):
            from_egress_snapshot(msgspec.structs.replace(snapshot, destinations=(wrong,)))
