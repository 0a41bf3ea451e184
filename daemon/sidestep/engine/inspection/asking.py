"""Questions to a pod's inspector: which packets are sent when, who gets which answer, who waits how long.

Pure: packets and the time come in; packets (`outgoing`), answers and the wish to have the inspector ended (`is_late`)
go out. The shell connects it to a socket, writes what is outgoing, calls `tick` at `deadline`, and tells the daemon.

States of the inspector, as seen from here

    absent        there is none: `connected` has not been called, or `lost` has
    configuring   it was sent the profiles
    serving       it has taken them: questions are sent, at most `most_sent` at a time, so that few wait where nobody
                  can take them back
    unusable      it has refused the profiles; only other profiles change that

States of a question

    waiting       not sent: there is no inspector, enough is sent, or questions are collected (`collects`) until the
                  next `tick`. Sent in the order of asking
    sent          the first of these is being judged, the others wait in the socket
    abandoned     sent, but its time is up; its answer is read and dropped
    over          answered, once

Invariants

  * Each question is answered exactly once, not later than its deadline: with a verdict, or with a reason why there is
    none. The time counts from the asking, whatever it waits for.
  * An inspector that judges one question for longer than that question may take is late: it is ended, and so is one
    that breaks the protocol. The time begins when the question is written, so a shell has to write what is outgoing
    before it does anything else, and to read what has come before it calls `tick`: else one that was not scheduled for
    a while would blame the inspector.
  * If the inspector ends, the question that it was judging is answered with CRASH: asked again, it might end the next
    one. Those behind it are sent to the next inspector.
  * At most `most_waiting` questions and BYTES of them are kept; more are answered at once with BUSY.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Final

import msgspec

from sidestep.protocols.waf_messages import (
    MAX_SEVERAL,
    PART,
    Configure,
    Configured,
    FromInspector,
    Head,
    Outcome,
    Part,
    Question,
    Several,
    Verdict,
)
from sidestep.snapshots.waf import Profile

SENT: Final = 4
"""Questions that are sent and not answered, while somebody waits for answers."""
TOGETHER: Final = 16 * 1024
"""Bytes of questions that share a packet; one that is larger has its own."""
FRAME: Final = 256
"""Bytes of a question beside texts of the client: numbers, version, addresses."""
FIELD: Final = 11
"""Bytes of a field beside its name and value."""
WAITING: Final = 64
BYTES: Final = 4 * 1024 * 1024

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[FromInspector] = msgspec.msgpack.Decoder(FromInspector)


class Reason(enum.StrEnum):
    """Why there is no verdict; also the names by which it is counted."""

    DEADLINE = "deadline"
    CRASH = "crash"
    BUSY = "busy"
    ABSENT = "absent"
    """There was no inspector until the deadline, or it takes no profiles."""


class Subject(msgspec.Struct, frozen=True):
    """A request to be judged, or with a `status` a response. Fields as `waf_messages.Question` has them."""

    profile: Profile
    method: bytes
    target: bytes
    version: str
    fields: tuple[tuple[bytes, bytes], ...]
    client: tuple[str, int]
    server: tuple[str, int]
    body: bytes = b""
    status: int = 0

    @property
    def head_size(self) -> int:
        """Bytes of its head in a packet, at most: each text has up to five bytes in front of it (MessagePack)."""
        texts = sum(map(len, chain.from_iterable(self.fields)))
        return FRAME + len(self.method) + len(self.target) + texts + FIELD * len(self.fields)

    def message(self, number: int, place: int, expires: float) -> Question:
        """The question, with the first PART bytes of the body."""
        body = self.body
        return Question(
            number, place, expires, self.method, self.target, self.version, self.fields, self.client, self.server,
            body[:PART], len(body) > PART, self.status,
        )  # fmt: skip


class HeadSubject(msgspec.Struct, frozen=True):
    """A request of HTTP/1 without a body: its head as it was sent, which the inspector reads."""

    profile: Profile
    head: bytes
    client: tuple[str, int]
    server: tuple[str, int]
    body: bytes = b""

    @property
    def head_size(self) -> int:
        """As `Subject.head_size`."""
        return FRAME + len(self.head)

    def message(self, number: int, place: int, expires: float) -> Head:
        """As `Subject.message`."""
        return Head(number, place, expires, self.head, self.client, self.server)


Answer = Verdict | Reason


class _Question:
    """One question that is not over."""

    __slots__ = ("began", "expires", "id", "on_answer", "seconds", "size", "subject")

    def __init__(
        self,
        number: int,
        subject: Subject | HeadSubject,
        seconds: float,
        on_answer: Callable[[Answer], None],
        now: float,
    ) -> None:
        self.id = number
        self.subject = subject
        self.size = subject.head_size + len(subject.body)
        self.seconds = seconds
        self.expires = now + seconds
        self.on_answer: Callable[[Answer], None] | None = on_answer
        """None: it is abandoned."""
        self.began = now
        """Since when it is first of those that are sent."""


class Asking:
    """See the module. `now` is in monotonic seconds of the clock that the inspector has, too."""

    def __init__(self) -> None:
        self._profiles: tuple[Profile, ...] = ()
        self._waiting: deque[_Question] = deque()
        self._sent: deque[_Question] = deque()
        self._size = 0
        """Bytes of all questions that are not over."""
        self._number = 0
        self._is_connected = False
        self._is_serving = False
        self._unanswered = 0
        """Configure messages that are."""
        self.outgoing: deque[bytes] = deque()
        """Packets to be sent, in order; the shell takes them out."""
        self.most_sent = SENT
        """Questions that may be sent and not answered."""
        self.most_waiting = WAITING
        """Questions that may wait."""
        self.collects = False
        """Questions are sent at the next `tick`, many in a packet, instead of at once."""
        self.is_late = False
        """The inspector has to be ended; the shell closes the socket, tells the daemon, and calls `lost`."""

    @property
    def expects(self) -> bool:
        """Whether the inspector has anything to answer."""
        return bool(self._sent or self._unanswered)

    @property
    def is_configuring(self) -> bool:
        """Whether the inspector has been sent profiles and has not answered."""
        return self._unanswered > 0

    @property
    def is_busy(self) -> bool:
        """Whether any question is not over, or abandoned."""
        return bool(self._sent or self._waiting)

    @property
    def deadline(self) -> float | None:
        """When `tick` has to be called next; None while nothing waits."""
        times = [each.expires for each in (*self._waiting, *self._sent) if each.on_answer is not None]
        if self._sent:
            times.append(self._sent[0].began + self._sent[0].seconds)
        return min(times, default=None)

    def configure(self, profiles: Sequence[Profile]) -> None:
        """Use these profiles from now on; questions about others are answered with ABSENT when they are due."""
        self._profiles = tuple(profiles)
        if self._is_connected:
            self._send_profiles()

    def ask(
        self, subject: Subject | HeadSubject, *, seconds: float, on_answer: Callable[[Answer], None], now: float
    ) -> None:
        """Have a request judged within so many seconds; `on_answer` may be called before this returns."""
        question = _Question(self._number + 1, subject, seconds, on_answer, now)
        if len(self._waiting) >= self.most_waiting or self._size + question.size > BYTES:
            on_answer(Reason.BUSY)
            return
        self._number += 1
        self._size += question.size
        self._waiting.append(question)
        if not self.collects:
            self.proceed(now)

    def connected(self) -> None:
        """There is an inspector, which has said that it is ready."""
        self._is_connected = True
        self._send_profiles()

    def lost(self, now: float) -> None:
        """The inspector has ended, or is not used any more."""
        self._is_connected = self._is_serving = self.is_late = False
        self._unanswered = 0
        self.outgoing.clear()
        sent, self._sent = self._sent, deque()
        if sent:
            self._answer(sent.popleft(), Reason.CRASH)
        for question in sent:
            if question.on_answer is None:
                self._size -= question.size
        self._waiting.extendleft(reversed([each for each in sent if each.on_answer is not None]))
        self.tick(now)

    def received(self, packet: bytes, now: float) -> None:
        """Take a packet of the inspector."""
        if self.is_late or not self._is_connected:
            return
        try:
            message = _decoder.decode(packet)
        except msgspec.DecodeError:
            self.is_late = True
            return
        if isinstance(message, Configured) and self._unanswered:
            self._unanswered -= 1
            if not self._unanswered:
                self._is_serving = message.error is None
        elif isinstance(message, Verdict) and self._sent and self._sent[0].id == message.id:
            self._answer(self._sent.popleft(), Reason.DEADLINE if message.outcome is Outcome.EXPIRED else message)
            if self._sent:
                self._sent[0].began = now
        else:
            self.is_late = True
        if not self.collects:
            self.proceed(now)

    def tick(self, now: float) -> None:
        """Answer questions whose time is up, see whether the inspector is late, and send what may be sent."""
        due = [each for each in self._waiting if each.expires <= now]
        self._waiting = deque(each for each in self._waiting if each.expires > now)
        # An answer may lead to the next question.
        for question in due:
            self._answer(question, Reason.DEADLINE if self._is_serving else Reason.ABSENT)
        for question in [*self._sent]:
            if question.on_answer is not None and question.expires <= now:
                on_answer, question.on_answer = question.on_answer, None
                on_answer(Reason.DEADLINE)
        if self._sent and self._sent[0].began + self._sent[0].seconds <= now:
            self.is_late = True
        self.proceed(now)

    def proceed(self, now: float) -> None:
        """Send what may be sent; short questions that follow each other share a packet."""
        together: list[Question | Head] = []
        unknown: list[_Question] = []
        size = 0
        while self._is_serving and not self.is_late and self._waiting and len(self._sent) < self.most_sent:
            question = self._waiting.popleft()
            try:
                place = self._profiles.index(question.subject.profile)
            except ValueError:
                unknown.append(question)
                continue
            question.began = now
            self._sent.append(question)
            if together and (size + question.size > TOGETHER or len(together) == MAX_SEVERAL):
                self._send_together(together)
                together, size = [], 0
            message = question.subject.message(question.id, place, question.expires)
            if question.size > TOGETHER:
                self._send_long(message, question.subject.body)
            else:
                together.append(message)
                size += question.size
        if together:
            self._send_together(together)
        for question in unknown:
            self._answer(question, Reason.ABSENT)  # which may lead to the next question

    # --- inside -----------------------------------------------------------------------------------------------------

    def _send_profiles(self) -> None:
        self._is_serving = False
        self._unanswered += 1
        last = len(self._profiles) - 1
        for place, profile in enumerate(self._profiles):
            self.outgoing.append(_encoder.encode(Configure((profile,), more=place < last)))
        if not self._profiles:
            self.outgoing.append(_encoder.encode(Configure(())))

    def _send_together(self, questions: list[Question | Head]) -> None:
        self.outgoing.append(_encoder.encode(questions[0] if len(questions) == 1 else Several(tuple(questions))))

    def _send_long(self, first: Question | Head, body: bytes) -> None:
        self.outgoing.append(_encoder.encode(first))
        for begin in range(PART, len(body), PART):
            part = Part(first.id, body[begin : begin + PART], begin + PART < len(body))
            self.outgoing.append(_encoder.encode(part))

    def _answer(self, question: _Question, answer: Answer) -> None:
        self._size -= question.size
        on_answer, question.on_answer = question.on_answer, None
        if on_answer is not None:
            on_answer(answer)
