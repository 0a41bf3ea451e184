"""The socket to the pod's inspector, on the event loop: writes and reads the packets that `engine.inspection.asking`
decides about, keeps its time, and hands out answers.

The daemon hands over a socket for each inspector that it makes (`messages.UseInspector`), and is told when one misses a
deadline (`messages.InspectorLate`): only the daemon can end it. Without an inspector questions wait until they are due.

Answers are never given out while somebody asks: who asks is in the middle of a decision about its connection. They are
given out at the end of the callback in which they came, else by a timer that is due at once.

While no port enforces, nobody waits for an answer, so questions are collected: a timer, due after PACE seconds at most,
reads all verdicts that have come and sends all questions that were asked since it was set, many in a packet. Otherwise
each question wakes the process up twice, which takes three times the CPU. Of requests that were forwarded before
(`inspection.passed`) more are collected, because the time until there must be a verdict counts from the sending. Where
some port enforces they are asked about at once: many of them would keep those waiting that are held.
"""

from __future__ import annotations

import os
import socket
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Final

from sidestep.engine.inspection.asking import SENT, WAITING, Answer, Asking, Reason, Subject
from sidestep.protocols.waf_messages import MAX_PROFILES
from sidestep.proxy.io.loop import BROKEN, READ, WRITE, Loop, Timer

if TYPE_CHECKING:
    from sidestep.engine.inspection.firewall import Forwarded
    from sidestep.snapshots.waf import PortWaf, Profile

MAX_ANSWER: Final = 8192
"""Bytes of a packet of the inspector."""
PACKETS: Final = 256
"""Packets that are read at once: more than there can be answers."""
COLLECTED: Final = 128
"""Questions that may be sent and not answered while they are collected."""
PASSED: Final = 128
"""Requests that were forwarded and wait to be asked about."""
PACE: Final = 0.2
"""Seconds during which questions are collected ..."""
SHARE: Final = 0.1
"""... but no more than this share of the time within which a question is to be answered that was asked already."""
EARLY: Final = 0.005
"""Seconds by which a timer may be due after a deadline: the loop's clock stands still during a batch of events."""
BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Milliseconds: the upper bounds of the counters of verdict times, beside one for all that took longer."""
_COUNTERS: Final = (*(f"waf_verdicts_{each}ms" for each in BUCKETS), "waf_verdicts_longer")


class InspectorLink:
    """See the module. `on_late` is called when the inspector has to be ended."""

    def __init__(self, loop: Loop, on_late: Callable[[], None]) -> None:
        self._loop = loop
        self._on_late = on_late
        self._asking = Asking()
        self._sock: socket.socket | None = None
        self._timer: Timer | None = None
        self._profiles: tuple[Profile, ...] = ()
        self._answers: deque[Callable[[], None]] = deque()
        self._is_handing_out = False
        """Answers that come are given out without a timer being set."""
        self._is_collecting = self._asking.collects = True
        self._passed: list[tuple[Counter[str], Forwarded]] = []
        self._pace = PACE
        self._collection: Timer | None = None

    @property
    def is_configuring(self) -> bool:
        """Whether the inspector has been sent profiles and has not answered."""
        return self._asking.is_configuring

    def configure(self, ports: Iterable[PortWaf | None]) -> None:
        """Use what applies to all ports from now on. Questions about profiles beyond MAX_PROFILES find no inspector."""
        wanted = [port for port in ports if port is not None]
        profiles = tuple(dict.fromkeys(port.profile for port in wanted))[:MAX_PROFILES]
        self._is_collecting = self._asking.collects = not any(port.enforces for port in wanted)
        self._asking.most_sent = COLLECTED if self._is_collecting else SENT
        self._asking.most_waiting = WAITING + PASSED if self._is_collecting else WAITING
        if profiles != self._profiles:
            self._profiles = profiles
            self._asking.configure(profiles)
        if not self._is_collecting:
            self._asking.proceed(self._loop.now)
        self._advance()

    def replace(self, fd: int) -> None:
        """Ask the inspector behind this socket from now on. Takes the descriptor. Raises OSError."""
        try:
            sock = socket.socket(fileno=fd)
        except OSError:
            os.close(fd)
            raise
        self._lose()
        sock.setblocking(False)
        try:
            self._loop.add(sock.fileno(), self._ready, READ)
        except OSError:
            sock.close()
            raise
        self._sock = sock
        self._asking.connected()
        self._advance()

    def ask(
        self, counters: Counter[str], subject: Subject, *, seconds: float, on_answer: Callable[[Answer], None]
    ) -> None:
        """As `engine.inspection.firewall.Ask`; the time until there is a verdict is counted in `counters`."""
        now = self._loop.now
        answered = partial(self._answered, counters, now, on_answer)
        self._asking.ask(subject, seconds=seconds, on_answer=answered, now=now)
        if not self._is_collecting:
            self._advance()
            return
        self._pace = min(PACE, SHARE * seconds)
        if self._collection is not None and now + self._pace < self._collection.when:
            self._collection.cancel()  # questions of another port have more time
            self._collection = None
        if self._collection is None:
            self._collection = self._loop.later(self._pace, self._collect)

    def pass_by(self, counters: Counter[str], passed: Forwarded) -> None:
        """Ask about a request that was forwarded, at the next collection. Hot path."""
        if not self._is_collecting:
            self._ask_about(counters, passed)
            self._advance()
            return
        if len(self._passed) >= PASSED:
            passed.answered(Reason.BUSY)
            return
        self._passed.append((counters, passed))
        if self._collection is None:
            self._pace = PACE
            self._collection = self._loop.later(PACE, self._collect)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _answered(
        self, counters: Counter[str], began: float, on_answer: Callable[[Answer], None], answer: Answer
    ) -> None:
        if not isinstance(answer, Reason):
            counters[_COUNTERS[bisect_left(BUCKETS, (self._loop.now - began) * 1000)]] += 1
        self._answers.append(partial(on_answer, answer))
        self._hand_out_later()

    def _hand_out_later(self) -> None:
        if self._answers and not self._is_handing_out:
            self._is_handing_out = True
            self._loop.later(0.0, self._hand_out)

    def _hand_out(self) -> None:
        try:
            while self._answers:
                self._answers.popleft()()
        finally:  # a bug ends the connection that it is in, and takes nobody else's answer
            self._is_handing_out = False
            self._hand_out_later()

    def _ready(self, events: int) -> None:
        self._is_handing_out = True
        try:
            self._read(events)
            self._advance()
        finally:
            self._hand_out()

    def _collect(self) -> None:
        """Read verdicts, send questions, and see which are due."""
        self._collection = None
        self._is_handing_out = True
        try:
            self._read(READ)
            self._ask_about_passed()
            self._asking.tick(self._loop.now)
            self._advance()
        finally:
            self._hand_out()

    def _ask_about_passed(self) -> None:
        passed, self._passed = self._passed, []
        for counters, each in passed:
            self._ask_about(counters, each)

    def _ask_about(self, counters: Counter[str], passed: Forwarded) -> None:
        subject, now = passed.subject(), self._loop.now
        if subject is not None:
            answered = partial(self._answered, counters, now, passed.answered)
            self._asking.ask(subject, seconds=passed.settings.seconds, on_answer=answered, now=now)

    def _read(self, events: int) -> None:
        sock, asking = self._sock, self._asking
        if sock is None:
            return
        try:
            for _ in range(PACKETS):
                packet = sock.recv(MAX_ANSWER)
                if not packet:
                    self._lose()
                    break
                asking.received(packet, self._loop.now)
                if not asking.expects:
                    break
        except BlockingIOError:
            if events & BROKEN and not events & READ:
                self._lose()
        except OSError:
            self._lose()

    def _advance(self) -> None:
        """Write what is to be sent, let go of an inspector that is late, and set the timers."""
        self._write()
        asking = self._asking
        if asking.is_late:
            self._on_late()
            self._lose()
            self._write()
        if self._is_collecting:
            if self._collection is None and asking.is_busy:
                self._collection = self._loop.later(self._pace, self._collect)
            return
        deadline = asking.deadline
        if deadline is None:
            return
        if self._timer is not None and deadline < self._timer.when - EARLY:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:  # else it is due before, and sees then what is due next
            self._timer = self._loop.later(max(0.0, deadline - self._loop.now), self._tick)

    def _write(self) -> None:
        sock, outgoing = self._sock, self._asking.outgoing
        if sock is None:
            return
        try:
            while outgoing:
                sock.send(outgoing[0])
                outgoing.popleft()
        except BlockingIOError:
            pass
        except OSError:
            self._lose()
            return
        listens = READ if not self._is_collecting or self.is_configuring else 0
        self._loop.modify(sock.fileno(), listens | (WRITE if outgoing else 0))

    def _tick(self) -> None:
        self._timer = None
        self._is_handing_out = True
        try:
            self._read(READ)  # what has come may be older than the time that is up
            self._asking.tick(self._loop.now)
            self._advance()
        finally:
            self._hand_out()

    def _lose(self) -> None:
        """The inspector has ended, or is not asked any more."""
        sock, self._sock = self._sock, None
        if sock is not None:
            self._loop.remove(sock.fileno())
            sock.close()
            self._asking.lost(self._loop.now)
