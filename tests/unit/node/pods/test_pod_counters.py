"""The counters of a pod proxy, from its heartbeats."""

from __future__ import annotations

from sidestep.node.pods.pod_counters import PodCounters
from sidestep.proxy.control.messages import OUTBOUND, Heartbeat


def beat(connections=0, ports=None, anomalies=None):
    return Heartbeat(0, connections, ports or {}, anomalies or {})


def test_ports_that_are_not_mentioned_keep_their_counters():
    counters = PodCounters()
    counters.update(beat(2, {80: {"accepted": 1}, 443: {"accepted": 0}}, {"head": 1}), ports={80, 443})
    counters.update(beat(3, {443: {"accepted": 5}}, {"head": 2}), ports={80, 443})
    assert counters.ports == {80: {"accepted": 1}, 443: {"accepted": 5}}
    assert (counters.connections, counters.anomalies) == (3, {"head": 2})


def test_ports_that_are_gone_are_forgotten():
    counters = PodCounters()
    counters.update(beat(0, {80: {"accepted": 1}, 81: {"accepted": 1}}), ports={80})
    assert counters.ports == {80: {"accepted": 1}}


def test_datagrams_are_counted_under_port_zero():
    counters = PodCounters()
    assert not counters.update(beat(0, {0: {"flows": 0}}), ports=())
    assert counters.update(beat(0, {0: {"flows": 2}}), ports=())
    assert counters.datagrams == {"flows": 2}
    assert counters.ports == {}


def test_connections_that_the_pod_makes_are_counted_apart():
    counters = PodCounters()
    assert not counters.update(beat(0, {OUTBOUND: {"outbound": 0}}), ports=())
    assert counters.update(beat(0, {OUTBOUND: {"outbound": 2}}), ports=())
    counters.update(beat(0, {}), ports=())
    assert (counters.outbound, counters.ports) == ({"outbound": 2}, {})


def test_something_has_arrived_once_a_connection_was_accepted():
    counters = PodCounters()
    assert not counters.update(beat(0, {80: {"accepted": 0}}), ports={80})
    assert counters.update(beat(0, {80: {"accepted": 1}}), ports={80})
    assert counters.update(beat(), ports={80})


def test_counters_of_an_engine_are_added_up_over_ports_and_connections_that_the_pod_makes():
    counters = PodCounters()
    told = {80: {"ids_fed": 1, "accepted": 9}, 443: {"ids_fed": 2, "ids_cut": 1}, OUTBOUND: {"ids_fed": 4}}
    counters.update(beat(0, told), ports={80, 443})
    assert counters.of_engine("ids") == {"fed": 7, "cut": 1}
    assert counters.of_engine("waf") == {}
