"""What the kernel is told to steer: never less than the destinations of all policies, and nothing internal unasked."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from sidestep.model.egress import EVERYTHING, Destination, Quic
from sidestep.model.inspection import Egress, FailurePolicy, InspectionPolicy, Mode
from sidestep.model.pod import PodKey
from sidestep.model.waf import Waf
from sidestep.node.planning.egress import MAX_NETWORKS, MAX_PORTS, outward, steered, with_credentials
from sidestep.node.planning.inspection import MAX_BYTES, PlannedPolicy
from sidestep.policy.egress import INTERNAL, EgressPolicies, compile_egress
from sidestep.policy.egress_rows import from_egress_snapshot, to_egress_snapshot
from sidestep.policy.inspection_rows import to_snapshot
from sidestep.policy.seclang import custom_rules, rule_id
from sidestep.policy.waf import PolicyWaf
from sidestep.steering import EgressConfig
from tests.effort import examples


def snapshot(*destinations, **fields):
    egress = Egress(destinations or EVERYTHING, **fields)
    return to_egress_snapshot(InspectionPolicy("p", "shop", mode=Mode.ENFORCE, egress=egress))


def selects(found, address, port):
    """What the kernel does: the longest prefix, and the port."""
    if found.ports is not None and port not in found.ports:
        return False
    matching = [(each.prefixlen, each in found.steered) for each in (*found.steered, *found.passed) if address in each]
    return bool(matching) and max(matching)[1]


@pytest.mark.parametrize(
    ("destinations", "address", "port", "selected"),
    [
        ((), "203.0.113.1", 443, True),
        ((), "10.0.0.1", 443, False),
        ((), "2001:db8::1", 25, True),
        ((), "fd00::1", 25, False),
        ((Destination("a", networks=(ip_network("10.1.0.0/16"),)),), "10.1.2.3", 443, True),
        ((Destination("a", networks=(ip_network("10.1.0.0/16"),)),), "203.0.113.1", 443, False),
        ((Destination("a", networks=(ip_network("10.0.0.0/8"),)), Destination("b")), "10.1.2.3", 443, True),
        ((Destination("a", networks=(ip_network("10.0.0.0/7"),)), Destination("b")), "10.1.2.3", 443, True),
        ((Destination("a", networks=(ip_network("0.0.0.0/0"),)), Destination("b")), "192.168.1.1", 443, True),
        ((Destination("a", networks=(ip_network("10.1.0.0/16"),)), Destination("b")), "10.2.0.1", 443, False),
        ((Destination("a", ports=(443,)),), "203.0.113.1", 80, False),
        ((Destination("a", ports=(443,)), Destination("b", ports=(80,))), "203.0.113.1", 80, True),
        ((Destination("a", ports=(443,)), Destination("b")), "203.0.113.1", 22, True),
    ],
)
def test_what_is_steered(destinations, address, port, selected):
    assert selects(steered([snapshot(*destinations)]), ip_address(address), port) is selected


_NETWORKS = st.lists(
    st.sampled_from([*INTERNAL, *map(ip_network, ("203.0.113.0/24", "10.1.0.0/16", "8.0.0.0/6", "0.0.0.0/0", "::/0"))]),
    max_size=3,
).map(tuple)
_DESTINATIONS = st.builds(
    Destination,
    st.just("d"),
    names=st.sampled_from([(), ("a.test",)]),
    networks=_NETWORKS,
    ports=st.lists(st.sampled_from([80, 443]), max_size=1).map(tuple),
)


@settings(max_examples=examples(300), deadline=None)
@given(
    st.lists(st.lists(_DESTINATIONS, min_size=1, max_size=2), min_size=1, max_size=3),
    st.sampled_from(["203.0.113.1", "10.1.2.3", "10.2.2.3", "192.168.0.1", "9.1.1.1", "2001:db8::1", "fd00::1"]),
    st.sampled_from([80, 443, 22]),
)
def test_whatever_a_policy_is_about_is_steered(written, address, port):
    snapshots = [snapshot(*destinations) for destinations in written]
    found = steered(snapshots)
    EgressConfig(steered=found.steered, passed=found.passed, ports=found.ports)
    policies = EgressPolicies([compile_egress(*from_egress_snapshot(each)) for each in snapshots])
    if policies.steers(ip_address(address), port):
        assert selects(found, ip_address(address), port)


def test_what_is_listened_to_is_everything_external_and_what_policies_mean():
    private = snapshot(Destination("a", networks=(ip_network("10.1.0.0/16"),), ports=(443,)))
    for policies in ((), (private,)):
        found = steered(policies, listened=True)
        assert selects(found, ip_address("203.0.113.1"), 25)
        assert selects(found, ip_address("2001:db8::1"), 25)
        assert selects(found, ip_address("10.1.2.3"), 443) is bool(policies)
        assert not selects(found, ip_address("10.2.0.1"), 443)
        EgressConfig(found.steered, found.passed, found.ports)


@pytest.mark.parametrize("refusing", [{"failure_policy": FailurePolicy.FAIL}, {"quic": Quic.BLOCK}])
def test_who_listens_has_nothing_refused_that_no_policy_means(refusing):
    policy = snapshot(Destination("a", networks=(ip_network("10.1.0.0/16"),), ports=(443,)), **refusing)
    assert steered([policy], listened=True) == steered([policy])


def test_more_ports_than_the_kernel_tells_apart_are_all_steered():
    many = [
        snapshot(
            *(Destination(f"d{n}", ports=tuple(range(1 + 64 * n, 65 + 64 * n))) for n in range(MAX_PORTS // 64 + 1))
        )
    ]
    assert steered(many).ports is None


def planned(name, count):
    networks = tuple(ip_network((0x08000000 + (at << 8), 24)) for at in range(count))
    destinations = tuple(Destination(f"d{at}", networks=networks[at : at + 256]) for at in range(0, count, 256))
    made = InspectionPolicy(name, "shop", egress=Egress(destinations))
    return PlannedPolicy(made, to_snapshot(made), 1, egress=to_egress_snapshot(made))


def test_firewalls_have_custom_rules_with_ids_of_their_own():
    custom = custom_rules('SecRule ARGS:a "@streq 1" "id:7,phase:2,deny"')
    policies = [
        replace(planned(name, 1), egress_waf=PolicyWaf(f"shop/{name}", True, False, Waf(), custom)) for name in "ab"
    ]
    told = with_credentials(PodKey("shop", "orders-1"), [planned("none", 1), *policies], {})
    assert [each.waf and each.waf.names for each in told] == [None, ("shop/a",), ("shop/b",)]
    for place, each in enumerate(told[1:]):
        assert f"id:{rule_id(place, 7)}" in each.waf.profile.custom
    big = replace(policies[0], egress_waf=replace(policies[0].egress_waf, custom=_Large()))
    assert outward([big, policies[1]])[0] == (policies[1],)


class _Large:
    """Custom rules beyond what a pod is told."""

    size = MAX_BYTES


def test_networks_are_bounded():
    first, second = planned("a", MAX_NETWORKS), planned("b", 1)
    applying, problems = outward([first, second])
    assert applying == (first,)
    [(reason, names)] = problems.items()
    assert (names, "too large together" in reason) == (["shop/b"], True)
    assert outward([second, planned("c", MAX_NETWORKS - 1)])[1] == {}
