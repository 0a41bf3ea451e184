"""The conditions of this node: what a person should know now, each kept under the *source* that stated it.

A source (a check of one pod, the manifests, one port of one proxy) states all its conditions at once, which replaces
those that it stated before; no source can clear another's. A pod that leaves takes its sources with it. Readers get the
union, sorted and without repetition, so that two reads of the same state are equal. A condition is logged when it
appears and when it disappears, not when it is stated again; of changes about one pod, `LOGGED_BURST` are logged, then
`LOGGED_RATE` a second, and the next line says how many were left out.

Texts may come from a pod proxy, which is not trusted: each is cut to one line of `MAX_TEXT` characters, and a source
has at most `MAX_PER_SOURCE` conditions.
"""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING

import msgspec

from sidestep.aio.token_bucket import TokenBuckets
from sidestep.model.condition import Condition
from sidestep.observability.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sidestep.model.pod import PodKey

MAX_PER_SOURCE = 128
"""Conditions one source may state; what is beyond is dropped."""

MAX_TEXT = 500
"""Characters of one condition's text."""

LOGGED_BURST, LOGGED_RATE = 256.0, 1.0
"""Changes about one pod that are logged at once, and a second after that."""
LOGGED_PODS = 1024
"""Pods that are told apart there."""


class Source(msgspec.Struct, frozen=True):
    """Who states conditions: `check` is a short constant ("plan", "target", "proxy"), narrowed to a pod and a port."""

    check: str
    pod: PodKey | None = None
    port: int | None = None
    detail: str = ""


class Conditions:
    """The store. `on_change` is called after every change of the union."""

    def __init__(
        self, *, on_change: Callable[[], None] | None = None, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._stated: dict[PodKey | None, dict[Source, tuple[Condition, ...]]] = {}
        self._union: tuple[Condition, ...] | None = ()
        self._by_subject: dict[str, list[Condition]] | None = {}
        self._on_change = on_change
        self._now = now
        self._logged = TokenBuckets(rate=LOGGED_RATE, burst=LOGGED_BURST, size=LOGGED_PODS)
        self._unlogged = 0
        self._log = get_logger("conditions")

    def state(self, source: Source, conditions: Iterable[Condition]) -> None:
        """Replace everything `source` stated before; nothing given takes it all back."""
        of_pod = self._stated.get(source.pod, {})
        before = of_pod.get(source, ())
        given = itertools.islice(dict.fromkeys(conditions), MAX_PER_SOURCE)
        after = tuple(dict.fromkeys(_bounded(condition) for condition in given))
        if after == before:
            return
        if after:
            self._stated.setdefault(source.pod, of_pod)[source] = after
        else:
            del of_pod[source]
            if not of_pod:
                del self._stated[source.pod]
        self._union = self._by_subject = None
        known, now = frozenset(before), frozenset(after)
        self._tell(source.pod, "condition", (each for each in after if each not in known))
        self._tell(source.pod, "condition cleared", (each for each in before if each not in now))
        if self._on_change is not None:
            self._on_change()

    def _tell(self, pod: PodKey | None, event: str, conditions: Iterable[Condition]) -> None:
        for each in conditions:
            if not self._logged.take(pod, self._now()):
                self._unlogged += 1
                continue
            log = self._log.bind(unlogged=self._unlogged) if self._unlogged else self._log
            self._unlogged = 0
            write = log.warning if event == "condition" else log.info
            write(event, type=each.type.value, subject=each.subject, text=each.text)

    def forget(self, pod: PodKey, *, check: str | None = None, port: int | None = None) -> None:
        """Take back everything stated about `pod`, what one check stated about it, or only about a port of it."""
        for source in list(self._stated.get(pod, ())):
            if check in (None, source.check) and port in (None, source.port):
                self.state(source, ())

    def of(self, pod: PodKey) -> tuple[Condition, ...]:
        """Everything stated about one pod."""
        return _union(self._stated.get(pod, {}).values())

    def about(self, subject: str) -> tuple[Condition, ...]:
        """Everything stated with this subject."""
        if self._by_subject is None:
            self._by_subject = {}
            for condition in self.all():
                self._by_subject.setdefault(condition.subject, []).append(condition)
        return tuple(self._by_subject.get(subject, ()))

    def all(self) -> tuple[Condition, ...]:
        """Everything stated. The union is made once between two changes."""
        if self._union is None:
            self._union = _union(stated for of_pod in self._stated.values() for stated in of_pod.values())
        return self._union


class Statements:
    """What the target of one pod states about it, between `begin` and `end`.

    A target that is being released states nothing, because another one of the same pod may have begun.
    """

    def __init__(self, conditions: Conditions, pod: PodKey) -> None:
        self._conditions = conditions
        self._pod = pod
        self._open = False

    def begin(self) -> None:
        """State conditions of the pod from now on."""
        self._open = True

    def state(self, port: int | None, detail: str, conditions: Iterable[Condition]) -> None:
        """Replace what was stated before in the same matter (`detail`) of a port, or of the whole pod."""
        if self._open:
            self._conditions.state(Source("proxy", self._pod, port, detail), conditions)

    def forget(self, port: int) -> None:
        """Take back everything about a port."""
        if self._open:
            self._conditions.forget(self._pod, check="proxy", port=port)

    def end(self) -> None:
        """Take everything back, and state nothing from now on."""
        if self._open:
            self._open = False
            self._conditions.forget(self._pod, check="proxy")


def _bounded(condition: Condition) -> Condition:
    subject, line = _encodable(condition.subject), _encodable(" ".join(condition.text.split()))
    if len(line) > MAX_TEXT:
        line = line[:MAX_TEXT] + "…"
    if (subject, line) == (condition.subject, condition.text):
        return condition
    return Condition(condition.type, subject, line)


def _encodable(text: str) -> str:
    """Names of files need not be UTF-8 (PEP 383); what is shown goes out as JSON and must be."""
    return text.encode("utf-8", "backslashreplace").decode()


def _union(stated: Iterable[tuple[Condition, ...]]) -> tuple[Condition, ...]:
    held = {condition for conditions in stated for condition in conditions}
    return tuple(sorted(held, key=lambda condition: (condition.subject, condition.type.value, condition.text)))
