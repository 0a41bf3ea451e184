"""Accesses to pods in plans: who is a target by them, who waits, who is refused."""

import pytest
from msgspec.structs import replace

from sidestep.config.node_settings import NodeSettings
from sidestep.model.errors import RefusedError
from sidestep.model.filter import Filter
from sidestep.model.intercept import Allow, Kind
from sidestep.model.pod import Location, PodKey
from sidestep.node.planning.admission import admit
from sidestep.node.planning.planner import plan
from sidestep.snapshots.access import AccessSnapshot
from tests.unit.node.scenes import intercept, inventory, pod

POD = PodKey("shop", "orders-1")


def access(uid="u1", *allow, **fields):
    return intercept(
        uid, kind=Kind.WIRETAP, port="", filter=Filter(), allow=frozenset(allow or (Allow.ENVIRONMENT,)), **fields
    )


def running(**fields):
    where = Location(netns="/proc/7/ns/net", pids={"app": 7}, searched=True)
    return replace(pod(), location=where, **fields)


def planned(*intercepts, there=None, settings=None):
    return plan(inventory(there or running()), intercepts, settings or NodeSettings(), {}, node_annotations={})


def test_variables_and_files_need_no_proxy():
    found = planned(access("u1", Allow.ENVIRONMENT, Allow.FILES))
    assert (found.pods, found.coverage) == ({}, {"u1": (POD,)})
    assert (found.refusals, found.pending) == ({}, {})


def test_connections_make_a_target_of_a_pod_without_steered_ports():
    found = planned(access("u1", Allow.NETWORK, allow_loopback=True), access("u2", Allow.NETWORK, created=2.0))
    [target] = found.pods.values()
    assert (target.ports, target.egress, target.outbound) == ((), (), None)
    assert target.access == (AccessSnapshot("u1", True), AccessSnapshot("u2", False))
    assert target.uids == {"u1", "u2"}
    assert found.certificates == ()


def test_it_stands_beside_a_global_intercept():
    found = planned(intercept("u1", filter=Filter()), access("u2", Allow.NETWORK, created=2.0))
    assert found.refusals == {}
    [target] = found.pods.values()
    assert ([port.number for port in target.ports], target.access) == ([8443], (AccessSnapshot("u2"),))


def test_it_waits_for_a_container():
    idle = replace(running(), location=Location(netns="/proc/7/ns/net", searched=True))
    found = planned(access(), there=idle)
    assert found.pending == {("u1", POD): "container app does not run"}


@pytest.mark.parametrize(
    ("there", "settings", "told"),
    [
        (running(host_network=True), None, "host's network"),
        (running(), NodeSettings(enabled=False), "sidestep.dev/enabled"),
        (running(), NodeSettings(namespaces=("other",)), "sidestep.dev/namespaces"),
    ],
)
def test_where_nothing_may_be_steered_nothing_is_given(there, settings, told):
    found = planned(access("u1", *Allow), there=there, settings=settings)
    assert told in found.refusals["u1", POD]
    assert found.pods == {}
    with pytest.raises(RefusedError, match=told):
        admit(access(), (), inventory(there), settings or NodeSettings(), {}, node_annotations={})


def test_an_unknown_container_is_refused():
    found = planned(access(container="db"))
    assert "no container db" in found.refusals["u1", POD]
    with pytest.raises(RefusedError, match="no container db"):
        admit(access(container="db"), (), inventory(running()), NodeSettings(), {}, node_annotations={})
    assert admit(access(), (), inventory(running()), NodeSettings(), {}, node_annotations={}) == (running(),)
