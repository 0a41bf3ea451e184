"""What several processes of one proxy say of themselves, as the pod's owner hears it."""

import pytest

from sidestep.model.condition import ConditionType
from sidestep.node.proxies.merged_reports import MergedReports
from sidestep.proxy.control.messages import Heartbeat, Report
from sidestep.snapshots.hindrance import Hindrance

PORTS = {80, 81}
FULL = Hindrance("no-room")
KIND = ConditionType.UPSTREAM_TLS_FAILED.value


class Owner:
    """Notes what it is told last."""

    def __init__(self):
        self.beat = None
        self.hindrances = ()
        self.conditions = {}

    def on_heartbeat(self, beat):
        self.beat = beat

    def on_hindered(self, hindrances):
        self.hindrances = hindrances

    def on_report(self, report):
        self.conditions[report.port, report.type] = report.text


@pytest.fixture
def owner():
    return Owner()


@pytest.fixture
def merged(owner):
    return MergedReports(owner)


def beat(merged, worker, connections, anomalies=0, **ports):
    counted = {int(name[1:]): {"accepted": count} for name, count in ports.items()}
    merged.heartbeat(worker, Heartbeat(0, connections, counted, {"odd": anomalies} if anomalies else {}), ports=PORTS)


def test_one_process_is_heard_as_it_speaks(merged, owner):
    told = Heartbeat(7, 3, {80: {"accepted": 5}}, {"odd": 1})
    merged.heartbeat(0, told, ports=PORTS)
    assert owner.beat is told


def test_counters_are_summed_by_port_and_those_of_the_dead_stay(merged, owner):
    beat(merged, 0, 3, anomalies=1, p80=10, p81=1)
    beat(merged, 1, 2, anomalies=2, p80=5)
    assert (owner.beat.connections, owner.beat.ports, owner.beat.anomalies) == (5, {80: {"accepted": 15}}, {"odd": 3})
    merged.process_ended(1, others=True)
    assert (owner.beat.connections, owner.beat.ports, owner.beat.anomalies) == (3, {80: {"accepted": 15}}, {"odd": 3})
    beat(merged, 1, 1, p80=1)
    assert (owner.beat.connections, owner.beat.ports) == (4, {80: {"accepted": 16}})
    beat(merged, 0, 3, anomalies=1, p81=2)
    assert owner.beat.ports == {81: {"accepted": 2}}


def test_when_the_last_has_ended_counting_begins_anew(merged, owner):
    for worker in (0, 1):
        beat(merged, worker, 1, p80=10)
    merged.process_ended(0, others=True)
    merged.process_ended(1, others=False)
    beat(merged, 0, 1, p80=1)
    assert owner.beat.ports == {80: {"accepted": 1}}


def test_a_port_that_is_not_served_any_more_is_forgotten(merged, owner):
    beat(merged, 0, 0, p80=1, p81=1)
    merged.heartbeat(0, Heartbeat(0, 0, {}, {}), ports={81})
    assert set(merged._counts[0].ports) == {81}
    assert owner.beat.ports == {}


def test_what_hinders_any_hinders_the_pod_until_it_has_ended(merged, owner):
    here, there = Hindrance("cannot-dial", 80), Hindrance("cannot-accept", 81)
    merged.workers(serving={0, 1}, leaving=())
    merged.hindered(0, (here,))
    merged.hindered(1, (here, there))
    assert set(owner.hindrances) == {here, there}
    merged.process_ended(1, others=True)
    assert owner.hindrances == (here,)
    merged.hindered(0, ())
    assert owner.hindrances == ()


def test_what_hinders_a_whole_process_hinders_the_pod_when_all_that_serve_have_it(merged, owner):
    merged.hindered(0, (FULL,))
    assert owner.hindrances == (FULL,)  # before it runs, as later
    merged.workers(serving={0}, leaving=())
    assert owner.hindrances == (FULL,)
    merged.workers(serving={0, 1}, leaving=())
    assert owner.hindrances == ()
    merged.hindered(1, (Hindrance("no-room", error=24),))
    assert [each.kind for each in owner.hindrances] == ["no-room"]
    merged.process_ended(1, others=True)
    merged.workers(serving={0}, leaving=())
    assert owner.hindrances == (FULL,)
    merged.hindered(0, ())
    assert owner.hindrances == ()


def test_of_one_that_leaves_neither_hindrances_nor_conditions_count_and_counters_do(merged, owner):
    merged.workers(serving={0, 1}, leaving=())
    merged.hindered(1, (Hindrance("cannot-dial", 80),))
    merged.report(1, Report(0, 80, KIND, "no trust"), ports=PORTS)
    merged.workers(serving={0}, leaving={1})
    assert owner.hindrances == ()
    assert owner.conditions == {(80, KIND): ""}
    merged.hindered(1, (FULL,))
    merged.report(1, Report(0, 81, KIND, "no trust"), ports=PORTS)
    assert owner.hindrances == ()
    assert owner.conditions == {(80, KIND): ""}
    beat(merged, 0, 1, p80=1)
    beat(merged, 1, 1, p80=1)
    assert owner.beat.connections == 2


def test_one_that_ends_before_it_serves_leaves_no_hindrance(merged, owner):
    """Its successor, which has none, says nothing."""
    for others in (False, True):
        merged.hindered(0, (FULL,))
        merged.process_ended(0, others=others)
        assert owner.hindrances == ()


def test_the_owner_is_not_told_that_a_process_is_unhindered_which_served_alone_and_has_ended(merged, owner):
    merged.workers(serving={0}, leaving=())
    merged.hindered(0, (FULL,))
    merged.process_ended(0, others=False)
    merged.workers(serving=(), leaving=())
    merged.workers(serving={0}, leaving=())
    assert owner.hindrances == (FULL,)


def test_what_hindered_a_port_that_is_not_served_any_more_does_not_come_back_with_it(merged, owner):
    merged.hindered(0, (Hindrance("cannot-dial", 80), Hindrance("cannot-dial", 81)))
    merged.keep_ports({81})
    assert owner.hindrances == (Hindrance("cannot-dial", 81),)
    merged.keep_ports(PORTS)
    merged.hindered(1, (Hindrance("cannot-dial", 81),))
    assert owner.hindrances == (Hindrance("cannot-dial", 81),)


def test_a_condition_stands_until_no_living_process_states_it(merged, owner):
    for worker, text in ((0, "no trust"), (1, "no trust at all")):
        merged.report(worker, Report(0, 80, KIND, text), ports=PORTS)
    merged.report(1, Report(0, 80, KIND, ""), ports=PORTS)
    assert owner.conditions == {(80, KIND): "no trust"}
    merged.process_ended(0, others=True)
    assert owner.conditions == {(80, KIND): ""}


def test_conditions_of_other_ports_and_of_no_known_kind_are_dropped(merged, owner):
    merged.report(0, Report(0, 82, KIND, "text"), ports=PORTS)
    merged.report(0, Report(0, 80, "Made up", "text"), ports=PORTS)
    assert owner.conditions == {}
    assert merged._conditions == {}
