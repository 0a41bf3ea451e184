"""The socket to an inspector: questions and verdicts, deadlines, inspectors that end, when answers are given out."""

from __future__ import annotations

import contextlib
import socket
import time
from collections import Counter

import msgspec
import pytest

from sidestep.engine.inspection.asking import SENT, Reason, Subject
from sidestep.protocols.waf_messages import (
    MAX_PROFILES,
    Configure,
    Configured,
    Outcome,
    Question,
    Several,
    ToInspector,
    Verdict,
)
from sidestep.proxy.connection.inspector_link import PASSED, InspectorLink
from sidestep.snapshots.waf import PortWaf, Profile
from tests.unit.proxy.looping import Stepped, run_until

PROFILE = Profile(1, 5, 256)
PORT = PortWaf(("shop/a",), PROFILE, 65536, 0.25, True, True, False, "shop/a", "shop/a")
SUBJECT = Subject(PROFILE, b"GET", b"/", "1.1", ((b"host", b"shop"),), ("10.0.0.9", 1), ("10.0.0.2", 2))
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(ToInspector).decode


class Scene:
    """A link, and the inspector's end of its socket."""

    def __init__(self, loop, *, enforces=True):
        self.loop = loop
        self.port = msgspec.structs.replace(PORT, enforces=enforces)
        self.late = 0
        self.counters = Counter()
        self.answers = []
        self.link = InspectorLink(loop, self._is_late)
        self.link.configure([self.port, None])
        self.inspector = None

    def _is_late(self):
        self.late += 1

    def connect(self):
        ours, self.inspector = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.inspector.setblocking(False)
        self.link.replace(ours.detach())

    def ask(self, seconds=30.0):
        self.link.ask(self.counters, SUBJECT, seconds=seconds, on_answer=self.answers.append)

    def read(self):
        """The messages that have come to the inspector."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while packet := self.inspector.recv(1 << 17):
                message = _decode(packet)
                found.extend(message.questions if isinstance(message, Several) else [message])
        return found

    def say(self, message):
        self.inspector.send(_encode(message))

    def serve(self):
        self.connect()
        assert [type(each) for each in self.read()] == [Configure]
        self.say(Configured())


@pytest.fixture
def stepped():
    made = Stepped()
    yield made
    made.loop.close()
    assert made.crashes == []


@contextlib.contextmanager
def linked(stepped, *, enforces):
    made = Scene(stepped.loop, enforces=enforces)
    yield made
    if made.inspector is not None:
        made.inspector.close()
        run_until(stepped.loop, lambda: not len(stepped.loop))


@pytest.fixture(params=[True, False], ids=["enforces", "detects"])
def scene(stepped, request):
    with linked(stepped, enforces=request.param) as made:
        yield made


@pytest.fixture
def enforcing(stepped):
    """A scene in which requests wait for their verdicts."""
    with linked(stepped, enforces=True) as made:
        yield made


@pytest.fixture
def detecting(stepped):
    """A scene in which nobody waits for a verdict."""
    with linked(stepped, enforces=False) as made:
        yield made


def questions(stepped, scene, count=1):
    found = []

    def look():
        found.extend(each for each in scene.read() if isinstance(each, Question))
        return len(found) >= count

    run_until(stepped.loop, look)
    return found


def test_a_question_gets_its_verdict_and_the_time_is_counted(stepped, scene):
    scene.serve()
    scene.ask()
    [question] = questions(stepped, scene)
    assert (question.method, question.target, question.profile) == (b"GET", b"/", 0)
    verdict = Verdict(question.id, Outcome.BLOCK, (942100,), 5)
    scene.say(verdict)
    run_until(stepped.loop, lambda: scene.answers)
    assert scene.answers == [verdict]
    assert sum(scene.counters.values()) == 1
    assert next(iter(scene.counters)).startswith("waf_verdicts_")


def test_questions_are_sent_at_once_where_somebody_waits(stepped, enforcing):
    enforcing.serve()
    run_until(stepped.loop, lambda: not enforcing.link.is_configuring)
    for _ in range(SENT + 2):
        enforcing.ask()
    assert len(enforcing.read()) == SENT


def test_questions_are_collected_where_nobody_waits(stepped, detecting):
    detecting.serve()
    run_until(stepped.loop, lambda: not detecting.link.is_configuring)
    for _ in range(SENT + 2):
        detecting.ask()
    assert detecting.read() == []
    found = questions(stepped, detecting, SENT + 2)
    for question in found:
        detecting.say(Verdict(question.id, Outcome.PASS))
    run_until(stepped.loop, lambda: len(detecting.answers) == len(found))
    assert not detecting.late


def test_a_question_with_little_time_does_not_wait_for_one_with_much(stepped, scene, monkeypatch):
    monkeypatch.setattr("sidestep.proxy.connection.inspector_link.PACE", 600.0)
    scene.serve()
    run_until(stepped.loop, lambda: not scene.link.is_configuring)
    scene.ask(seconds=6000.0)
    scene.ask(seconds=3.0)
    assert len(questions(stepped, scene, 2)) == 2


class Passed:
    """A request that was forwarded."""

    def __init__(self, answers, subject=SUBJECT):
        self._subject = subject
        self.answered = answers.append
        self.settings = PORT

    def subject(self):
        return self._subject


def test_requests_that_have_passed_are_asked_about_together(stepped, scene):
    scene.serve()
    run_until(stepped.loop, lambda: not scene.link.is_configuring)
    for _ in range(SENT):
        scene.link.pass_by(scene.counters, Passed(scene.answers))
    scene.link.pass_by(scene.counters, Passed(scene.answers, None))  # it was over a limit
    if scene.port.enforces:
        found = scene.read()  # one at a time, so that those who wait for an answer get theirs in between
        assert len(found) == SENT
    else:
        assert scene.read() == []
        found = questions(stepped, scene, SENT)
    for question in found:
        scene.say(Verdict(question.id, Outcome.PASS))
    run_until(stepped.loop, lambda: len(scene.answers) == SENT)
    assert sum(scene.counters.values()) == SENT
    assert not scene.late


def test_more_requests_than_can_wait_are_answered_at_once(stepped, detecting):
    detecting.serve()
    run_until(stepped.loop, lambda: not detecting.link.is_configuring)
    for _ in range(PASSED + 3):
        detecting.link.pass_by(detecting.counters, Passed(detecting.answers))
    assert detecting.answers == [Reason.BUSY] * 3
    found = questions(stepped, detecting, PASSED)
    for question in found:
        detecting.say(Verdict(question.id, Outcome.PASS))
    run_until(stepped.loop, lambda: len(detecting.answers) == PASSED + 3)
    assert not detecting.late


def test_what_has_passed_is_asked_about_once_a_port_enforces(stepped, scene):
    scene.serve()
    run_until(stepped.loop, lambda: not scene.link.is_configuring)
    scene.link.pass_by(scene.counters, Passed(scene.answers))
    scene.link.configure([msgspec.structs.replace(PORT, enforces=True)])
    [question] = questions(stepped, scene)
    scene.say(Verdict(question.id, Outcome.PASS))
    run_until(stepped.loop, lambda: scene.answers)


@pytest.fixture
def standstill(monkeypatch):
    """Has a minute go by in which the proxy does nothing."""
    real = time.monotonic
    return lambda: monkeypatch.setattr(time, "monotonic", lambda: real() + 60)


def test_a_proxy_that_stood_still_blames_no_inspector(stepped, scene, standstill):
    """The verdict has come in time, and is read when it should have been there long ago."""
    scene.serve()
    run_until(stepped.loop, lambda: not scene.link.is_configuring)
    scene.ask(30.0)
    [question] = questions(stepped, scene)
    scene.say(Verdict(question.id, Outcome.PASS))
    standstill()
    stepped.loop._take_turn()  # timers come first in the midst of much else
    run_until(stepped.loop, lambda: scene.answers)
    assert [getattr(each, "outcome", each) for each in scene.answers] == [Outcome.PASS]
    assert not scene.late


def test_a_proxy_that_stood_still_before_it_sent_blames_no_inspector(stepped, detecting, standstill):
    """Where requests wait for their verdicts, both are sent at once."""
    detecting.serve()
    run_until(stepped.loop, lambda: not detecting.link.is_configuring)
    detecting.ask(30.0)
    detecting.ask(3000.0)
    standstill()
    [question] = questions(stepped, detecting)
    detecting.say(Verdict(question.id, Outcome.PASS))
    run_until(stepped.loop, lambda: len(detecting.answers) == 2)
    assert detecting.answers[0] is Reason.DEADLINE
    assert detecting.answers[1].outcome is Outcome.PASS
    assert not detecting.late


def test_nothing_is_collected_any_more_once_a_port_enforces(stepped, scene):
    scene.serve()
    run_until(stepped.loop, lambda: not scene.link.is_configuring)
    scene.ask()
    scene.link.configure([msgspec.structs.replace(PORT, enforces=True)])
    assert [type(each) for each in scene.read()] == [Question]
    scene.ask()
    assert [type(each) for each in scene.read()] == [Question]


def test_nobody_is_answered_while_asking(stepped, scene):
    scene.link.configure([])
    scene.serve()
    for _ in range(200):
        scene.ask()
    assert scene.answers == []
    run_until(stepped.loop, lambda: scene.answers)
    assert set(scene.answers) <= {Reason.BUSY, Reason.ABSENT}


def test_without_an_inspector_a_question_waits_until_it_is_due(stepped, scene):
    scene.ask(0.02)
    run_until(stepped.loop, lambda: scene.answers)
    assert scene.answers == [Reason.ABSENT]
    assert not scene.counters


def test_one_that_comes_in_time_is_asked(stepped, scene):
    scene.ask()
    scene.serve()
    [question] = questions(stepped, scene)
    scene.say(Verdict(question.id, Outcome.PASS))
    run_until(stepped.loop, lambda: scene.answers)
    assert scene.answers[0].outcome is Outcome.PASS


def test_one_that_misses_a_deadline_is_let_go_and_told(stepped, scene):
    scene.serve()
    scene.ask(0.05)
    questions(stepped, scene)
    run_until(stepped.loop, lambda: scene.late and scene.answers)
    assert scene.answers == [Reason.DEADLINE]
    assert scene.late == 1
    assert scene.inspector.recv(10) == b""


def test_one_that_ends_fails_only_what_it_was_judging(stepped, scene):
    scene.serve()
    scene.ask()
    scene.ask()
    questions(stepped, scene, 2)
    scene.inspector.close()
    run_until(stepped.loop, lambda: scene.answers)
    assert scene.answers == [Reason.CRASH]
    scene.serve()
    [question] = questions(stepped, scene)
    scene.say(Verdict(question.id, Outcome.PASS))
    run_until(stepped.loop, lambda: len(scene.answers) == 2)
    assert scene.late == 0


@pytest.mark.parametrize("packet", [b"\xc1", _encode(Verdict(99, Outcome.PASS))], ids=["garbage", "no such question"])
def test_one_that_breaks_the_protocol_is_let_go(stepped, scene, packet):
    scene.serve()
    scene.ask()
    questions(stepped, scene)
    scene.inspector.send(packet)
    run_until(stepped.loop, lambda: scene.late)
    run_until(stepped.loop, lambda: scene.answers)
    assert scene.answers == [Reason.CRASH]


def test_an_answer_that_raises_takes_nobody_elses(stepped, scene):
    def fail(_answer):
        raise ValueError("a bug")

    scene.link.ask(scene.counters, SUBJECT, seconds=0.02, on_answer=fail)
    scene.ask(0.02)
    run_until(stepped.loop, lambda: scene.answers)
    assert scene.answers == [Reason.ABSENT]
    assert [str(error) for error in stepped.crashes] == ["a bug"]
    stepped.crashes.clear()


def test_a_newer_inspector_takes_the_place_of_the_one_before(stepped, scene):
    scene.serve()
    scene.ask()
    [question] = questions(stepped, scene)
    scene.say(Verdict(question.id, Outcome.PASS))
    run_until(stepped.loop, lambda: scene.answers)
    with scene.inspector as before:
        scene.serve()
        assert before.recv(10) == b""
    scene.ask()
    assert len(questions(stepped, scene)) == 1


def test_other_profiles_are_sent(stepped, scene):
    scene.serve()
    other = msgspec.structs.replace(PORT, profile=Profile(2, 5, 256))
    scene.link.configure([PORT, other, PORT])
    found = []
    run_until(stepped.loop, lambda: found.extend(scene.read()) or found)
    run_until(stepped.loop, lambda: found.extend(scene.read()) or len(found) == 2)
    assert [each.profiles for each in found] == [(PROFILE,), (Profile(2, 5, 256),)]


def test_more_profiles_than_an_inspector_takes_are_left_out(scene):
    many = [msgspec.structs.replace(PORT, profile=Profile(1, at, 256)) for at in range(1, MAX_PROFILES + 2)]
    scene.link.configure(many)
    scene.connect()
    told = scene.read()
    assert [each.profiles[0].threshold for each in told] == [*range(1, MAX_PROFILES + 1)]
    assert [each.more for each in told] == [True] * (MAX_PROFILES - 1) + [False]
