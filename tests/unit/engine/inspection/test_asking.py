"""Questions to an inspector: order, deadlines, ends, bounds. The inspector is played by hand, or by chance."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sidestep.engine.inspection.asking import BYTES, SENT, TOGETHER, WAITING, Asking, Reason, Subject
from sidestep.model.waf import MAX_EXEMPTIONS
from sidestep.protocols.waf_messages import (
    MAX_FIELDS,
    MAX_HEAD,
    MAX_PACKET,
    MAX_SEVERAL,
    PART,
    Configure,
    Configured,
    Outcome,
    Part,
    Question,
    Several,
    ToInspector,
    Verdict,
)
from sidestep.snapshots.waf import MAX_CUSTOM, MAX_REGEXES, Exemption, Profile

PROFILE = Profile(1, 5, 256)
OTHER = Profile(2, 5, 256)
encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(ToInspector).decode


class Scene:
    """An asker, and the inspector at the other end."""

    def __init__(self, *, serving=True):
        self.asking = Asking()
        self.asking.configure((PROFILE,))
        self.now = 100.0
        self.answers = {}
        self.asked = 0
        if serving:
            self.connect()

    def connect(self):
        """A new inspector takes the profiles."""
        self.asking.connected()
        assert decode(self.asking.outgoing.popleft()) == Configure((PROFILE,))
        self.say(Configured())

    def ask(self, body=b"", seconds=0.25, profile=PROFILE, fields=()):
        """Ask; returns the number of the question, by which its answer is found."""
        self.asked += 1
        number = self.asked
        subject = Subject(profile, b"GET", b"/", "1.1", tuple(fields), ("10.0.0.1", 1), ("10.0.0.2", 2), body)

        def on_answer(answer):
            assert number not in self.answers
            self.answers[number] = answer

        self.asking.ask(subject, seconds=seconds, on_answer=on_answer, now=self.now)
        return number

    def read(self):
        """What the inspector gets."""
        packets = [decode(packet) for packet in self.asking.outgoing]
        assert all(len(packet) <= MAX_PACKET for packet in self.asking.outgoing)
        self.asking.outgoing.clear()
        return [each for packet in packets for each in (packet.questions if isinstance(packet, Several) else [packet])]

    def say(self, message):
        """The inspector says something."""
        self.asking.received(message if isinstance(message, bytes) else encode(message), self.now)

    def wait(self, seconds):
        """Time goes by, with a tick at each deadline."""
        until = self.now + seconds
        while (at := self.asking.deadline) is not None and at <= until and not self.asking.is_late:
            self.now = max(self.now, at)
            self.asking.tick(self.now)
        self.now = until


def test_a_question_is_sent_and_its_verdict_told():
    scene = Scene()
    number = scene.ask(b"body")
    (question,) = scene.read()
    assert (question.profile, question.body, question.more, question.expires) == (0, b"body", False, 100.25)
    verdict = Verdict(question.id, Outcome.BLOCK, (942100,), 5)
    scene.say(verdict)
    assert scene.answers == {number: verdict}
    assert scene.asking.deadline is None


@pytest.mark.parametrize("size", [PART - 1, PART, PART + 1, 2 * PART, 2 * PART + 1])
def test_a_long_body_is_sent_in_parts(size):
    scene = Scene()
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    scene.ask(body)
    question, *parts = scene.read()
    assert isinstance(question, Question)
    assert all(isinstance(part, Part) and part.id == question.id for part in parts)
    assert question.body + b"".join(part.body for part in parts) == body
    assert [each.more for each in (question, *parts)] == [True] * len(parts) + [False]


LARGE = [((b"a", b"x" * (MAX_HEAD - 2)),), ((b"a", b"x" * 120),) * MAX_FIELDS, ((b"", b""),) * MAX_FIELDS]


@pytest.mark.parametrize("fields", LARGE, ids=["a long field", "many fields", "many empty fields"])
@pytest.mark.parametrize("size", [0, 1, PART, 1024 * 1024])
def test_no_packet_is_too_long(fields, size):
    """`Scene.read` looks at the lengths."""
    scene = Scene()
    scene.ask(b"x" * size, fields=fields)
    question, *parts = scene.read()
    assert question.fields == fields
    assert len(question.body + b"".join(part.body for part in parts)) == size
    assert not (parts or [question])[-1].more


def test_questions_that_are_collected_share_packets_and_keep_their_order():
    scene = Scene()
    scene.asking.collects, scene.asking.most_sent = True, WAITING
    sizes = [10] * 20 + [TOGETHER] + [10] * 5 + [TOGETHER // 2] * 3 + [2 * PART] + [10] * 10
    numbers = [scene.ask(b"x" * size) for size in sizes]
    assert not scene.asking.outgoing
    scene.asking.tick(scene.now)
    assert len(scene.asking.outgoing) < len(sizes) / 2
    found = [each for each in scene.read() if isinstance(each, Question)]
    assert [each.id for each in found] == numbers
    for each in found:
        scene.say(Verdict(each.id, Outcome.PASS))
    assert sorted(scene.answers) == numbers


def test_many_tiny_questions_fit_their_packets():
    scene = Scene()
    scene.asking.collects, scene.asking.most_sent = True, WAITING
    for _ in range(MAX_SEVERAL):
        scene.ask(fields=((b"a", b""),) * 100)
    scene.asking.tick(scene.now)
    assert len(scene.read()) == MAX_SEVERAL


def test_what_waits_for_the_next_collection_is_sent_once_nothing_is_collected_any_more():
    scene = Scene()
    scene.asking.collects = True
    scene.ask()
    scene.asking.collects = False
    scene.asking.proceed(scene.now)
    assert [each.id for each in scene.read()] == [1]


def test_the_longest_profile_fits_a_packet():
    exemptions = tuple(Exemption(942_100, "/" + "a" * 61, True, "b" * 2) for _ in range(MAX_EXEMPTIONS))
    regexes = tuple("r" * 47 for _ in range(MAX_REGEXES))
    largest = Profile(1, 5, 256, tuple(range(958_000, 958_256)), "c" * MAX_CUSTOM, regexes, True, exemptions)
    scene = Scene()
    scene.asking.configure((largest,) * 3)
    assert [each.more for each in scene.read()] == [True, True, False]


def test_few_questions_are_sent_at_a_time_and_the_others_in_order():
    scene = Scene()
    for _ in range(SENT + 2):
        scene.ask()
    first = scene.read()
    assert [each.id for each in first] == [1, 2, 3, 4]
    scene.say(Verdict(1, Outcome.PASS))
    assert [each.id for each in scene.read()] == [5]


def test_more_questions_than_there_is_room_for_are_answered_at_once():
    scene = Scene(serving=False)
    numbers = [scene.ask() for _ in range(WAITING + 1)]
    assert scene.answers == {numbers[-1]: Reason.BUSY}


def test_more_bytes_than_there_is_room_for_are_answered_at_once():
    scene = Scene(serving=False)
    scene.ask(b"x" * (BYTES - 1000))
    assert scene.answers == {}
    assert scene.answers.get(scene.ask(b"x" * 1000)) is Reason.BUSY
    scene.wait(1)
    assert scene.ask(b"x" * 100) not in scene.answers


def test_a_question_without_an_inspector_waits_for_one_until_its_deadline():
    scene = Scene(serving=False)
    first = scene.ask()
    scene.wait(0.2)
    scene.connect()
    (question,) = scene.read()
    scene.say(Verdict(question.id, Outcome.PASS))
    assert scene.answers[first].outcome is Outcome.PASS
    scene.asking.lost(scene.now)
    second = scene.ask()
    scene.wait(0.3)
    assert scene.answers[second] is Reason.ABSENT


def test_an_inspector_that_does_not_answer_is_late_and_the_question_behind_goes_to_the_next():
    scene = Scene()
    first, second = scene.ask(), scene.ask(seconds=10)
    scene.read()
    scene.wait(0.25)
    assert scene.answers == {first: Reason.DEADLINE}
    assert scene.asking.is_late
    scene.asking.lost(scene.now)
    scene.connect()
    assert [each.id for each in scene.read()] == [2]
    scene.say(Verdict(2, Outcome.PASS))
    assert scene.answers[second].outcome is Outcome.PASS


def test_a_question_that_waited_behind_another_has_its_time_with_the_inspector():
    """The first takes long, but not too long; the second is abandoned, and nobody is killed for it."""
    scene = Scene()
    first, second = scene.ask(), scene.ask()
    scene.wait(0.2)
    scene.say(Verdict(1, Outcome.PASS))
    scene.wait(0.1)
    assert scene.answers[first].outcome is Outcome.PASS
    assert scene.answers[second] is Reason.DEADLINE
    assert not scene.asking.is_late
    scene.say(Verdict(2, Outcome.EXPIRED))
    assert not scene.asking.is_late
    scene.wait(1)
    assert not scene.asking.is_late


def test_a_crash_answers_the_question_that_was_judged_and_no_other():
    scene = Scene()
    first, second = scene.ask(), scene.ask()
    scene.asking.lost(scene.now)
    assert scene.answers == {first: Reason.CRASH}
    scene.connect()
    assert [each.id for each in scene.read()] == [2]
    scene.say(Verdict(2, Outcome.BLOCK))
    assert scene.answers[second].outcome is Outcome.BLOCK


@pytest.mark.parametrize(
    "message", [b"\xc1", Verdict(2, Outcome.PASS), Configured(), Verdict(7, Outcome.PASS)], ids=str
)  # fmt: skip
def test_an_inspector_that_breaks_the_protocol_is_ended(message):
    scene = Scene()
    number = scene.ask()
    scene.ask()
    scene.say(message)
    assert scene.asking.is_late
    scene.say(Verdict(1, Outcome.PASS))
    assert scene.answers == {}
    scene.asking.lost(scene.now)
    assert scene.answers == {number: Reason.CRASH}


def test_other_profiles_are_told_and_questions_name_them_by_their_new_places():
    scene = Scene()
    scene.asking.configure((OTHER, PROFILE))
    number = scene.ask()
    assert scene.read() == [Configure((OTHER,), more=True), Configure((PROFILE,))]
    scene.say(Configured())
    (question,) = scene.read()
    assert question.profile == 1
    scene.say(Verdict(question.id, Outcome.PASS))
    assert number in scene.answers
    gone = scene.ask(profile=Profile(4, 1, 1))
    assert scene.answers[gone] is Reason.ABSENT


def test_an_inspector_that_refuses_the_profiles_is_not_asked():
    scene = Scene(serving=False)
    scene.asking.connected()
    scene.say(Configured(0, "no"))
    number = scene.ask()
    scene.wait(0.3)
    assert scene.answers == {number: Reason.ABSENT}


def test_answers_may_lead_to_further_questions():
    """Each answer asks the next one, while answers are given for any reason."""
    scene = Scene()
    left = [20]

    def again(_answer):
        if left[0]:
            left[0] -= 1
            subject = Subject(PROFILE, b"GET", b"/", "1.1", (), ("10.0.0.1", 1), ("10.0.0.2", 2))
            scene.asking.ask(subject, seconds=0.1, on_answer=again, now=scene.now)

    for _ in range(SENT + 3):
        again(None)
    scene.wait(0.1)
    scene.asking.lost(scene.now)
    scene.connect()
    scene.asking.lost(scene.now)
    scene.wait(1)
    assert left == [0]
    assert scene.asking.deadline is None


class Chance(RuleBasedStateMachine):
    """Whatever happens in whatever order: one answer for each question, in time, and no more kept than allowed."""

    def __init__(self):
        super().__init__()
        self.scene = Scene(serving=False)
        self.inbox = []
        self.due = {}

    @rule(size=st.integers(0, 3 * PART), seconds=st.floats(0.01, 1))
    def ask(self, size, seconds):
        due = self.scene.now + seconds
        self.due[self.scene.ask(b"x" * size, seconds=seconds)] = due

    @precondition(lambda self: not self.scene.asking._is_connected)
    @rule()
    def connect(self):
        self.scene.asking.connected()

    @precondition(lambda self: self.scene.asking._is_connected)
    @rule()
    def lose(self):
        self.scene.asking.lost(self.scene.now)
        self.inbox.clear()

    @rule(seconds=st.floats(0, 0.5))
    def wait(self, seconds):
        self.scene.wait(seconds)

    @precondition(lambda self: self.scene.asking._is_connected)
    @rule(outcome=st.sampled_from(Outcome))
    def answer(self, outcome):
        self.inbox += self.scene.read()
        while self.inbox:
            message = self.inbox.pop(0)
            if isinstance(message, Configure):
                if message.more:
                    continue
                self.scene.say(Configured())
                return
            if isinstance(message, Question):
                while self.inbox and isinstance(self.inbox[0], Part):
                    self.inbox.pop(0)
                self.scene.say(Verdict(message.id, outcome))
                return

    @invariant()
    def all_is_told_in_time(self):
        asking = self.scene.asking
        if asking.is_late:
            self.lose()
        assert all(number in self.scene.answers for number, due in self.due.items() if due <= self.scene.now)
        assert len(asking._sent) <= SENT
        assert asking._size == sum(each.size for each in (*asking._waiting, *asking._sent)) <= BYTES


TestChance = Chance.TestCase
TestChance.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
