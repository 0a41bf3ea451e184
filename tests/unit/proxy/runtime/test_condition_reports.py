"""When the daemon is told of a condition, and when it is taken back."""

import pytest

from sidestep.model.condition import ConditionType
from sidestep.proxy.connection.live_ports import LivePort
from sidestep.proxy.runtime.condition_reports import MAX_TEXT, PAUSE, ConditionReports
from sidestep.snapshots.ports import PortSnapshot
from tests.unit.proxy.control.test_pending_calls import Clock

KIND = ConditionType.UPSTREAM_TLS_FAILED
OTHER = ConditionType.UPSTREAM_UNVERIFIED


class Link:
    """Keeps reports; `takes`: whether there is room for them."""

    def __init__(self):
        self.told = []
        self.takes = True

    def next_seq(self):
        return 1

    def advise(self, message):
        if self.takes:
            self.told.append((message.type, message.text))
        return self.takes


class Scene:
    """One port."""

    def __init__(self):
        self.clock, self.link = Clock(), Link()
        self.clock.now = 100.0
        self.reports = ConditionReports(self.clock, self.link)
        self.port = LivePort(PortSnapshot(number=80, transport="tcp", tls="never", http2="never", rules=()))

    def report(self, text, kind=KIND):
        self.reports.report(self.port, kind, text)
        return [text for told, text in self.link.told if told == kind.value]


@pytest.fixture
def scene():
    return Scene()


def test_a_condition_is_told_once(scene):
    for _ in range(3):
        assert scene.report("it fails") == ["it fails"]
    assert scene.port.conditions == {KIND: "it fails"}


def test_nothing_is_taken_back_that_was_not_told(scene):
    assert scene.report("") == []
    assert not scene.clock.timers


def test_a_condition_is_taken_back_after_the_pause(scene):
    scene.report("it fails")
    scene.clock.advance(PAUSE)
    assert scene.report("") == ["it fails", ""]
    assert not scene.port.conditions


def test_a_condition_that_comes_and_goes_is_told_once_and_taken_back_once(scene):
    for _ in range(1000):
        scene.report("it fails")
        told = scene.report("")
    assert told == ["it fails"]
    scene.clock.advance(2 * PAUSE)
    assert scene.link.told == [(KIND.value, "it fails"), (KIND.value, "")]


def test_a_condition_that_is_met_again_in_the_pause_is_not_taken_back(scene):
    scene.report("it fails")
    scene.report("")
    scene.report("it fails")
    scene.clock.advance(10 * PAUSE)
    assert scene.link.told == [(KIND.value, "it fails")]


def test_another_text_is_told_after_the_pause(scene):
    scene.report("one")
    assert scene.report("two") == ["one"]
    scene.clock.advance(PAUSE)
    assert scene.report("two") == ["one", "two"]


def test_conditions_do_not_wait_for_each_other(scene):
    scene.report("one")
    assert scene.report("two", OTHER) == ["two"]


def test_a_report_that_is_not_sent_is_told_by_the_next_connection(scene):
    scene.link.takes = False
    assert scene.report("it fails") == []
    scene.link.takes = True
    assert scene.report("it fails") == ["it fails"]


@pytest.mark.parametrize(
    ("text", "told"),
    [("a\nb\x1b[1m", "a?b?[1m"), ("é", "é"), ("x" * (MAX_TEXT + 1), "x" * MAX_TEXT), ("\u202e", "?")],
)
def test_what_clients_said_is_bounded_and_printable(scene, text, told):
    assert scene.report(text) == [told]
