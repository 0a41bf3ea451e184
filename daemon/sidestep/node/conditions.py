"""What a person should know now: the conditions of this node, each kept under the *source* that stated it.

A source (a check of one pod, the manifests, one port of one proxy) states its conditions whole and thereby takes back
what it stated before; nobody clears another's. A pod that leaves takes its sources with it. Readers get the union,
sorted and without repetition, so that two reads of the same state are equal. Appearing and disappearing is logged once
each, not at every restatement.

Texts may stem from a pod proxy, which a client could have taken over: one line, bounded, at most `MAX_PER_SOURCE` of
them per source.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sidestep.model.condition import Condition
from sidestep.observability.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sidestep.model.pod import PodKey

MAX_PER_SOURCE = 128
"""Conditions one source may state; what is beyond is dropped."""

MAX_TEXT = 500
"""Characters of one condition's text."""


@dataclass(frozen=True, slots=True)
class Source:
    """Who states conditions: `check` is a short constant ("plan", "target", "proxy"), narrowed to a pod and a port."""

    check: str
    pod: PodKey | None = None
    port: int | None = None
    detail: str = ""


class Conditions:
    """The store. `on_change` is called after every change of the union."""

    def __init__(self, *, on_change: Callable[[], None] | None = None) -> None:
        self._stated: dict[Source, tuple[Condition, ...]] = {}
        self._on_change = on_change
        self._log = get_logger("conditions")

    def state(self, source: Source, conditions: Iterable[Condition]) -> None:
        """Replace everything `source` stated before; nothing given takes it all back."""
        before = self._stated.get(source, ())
        after = tuple(dict.fromkeys(_bounded(condition) for condition in conditions))[:MAX_PER_SOURCE]
        if after == before:
            return
        if after:
            self._stated[source] = after
        else:
            del self._stated[source]
        for condition in after:
            if condition not in before:
                self._log.warning(
                    "condition", type=condition.type.value, subject=condition.subject, text=condition.text
                )
        for condition in before:
            if condition not in after:
                self._log.info(
                    "condition cleared", type=condition.type.value, subject=condition.subject, text=condition.text
                )
        if self._on_change is not None:
            self._on_change()

    def forget(self, pod: PodKey, *, check: str | None = None, port: int | None = None) -> None:
        """Take back everything stated about `pod`, what one check stated about it, or only about a port of it."""
        for source in [held for held in self._stated if held.pod == pod and check in (None, held.check)]:
            if port in (None, source.port):
                self.state(source, ())

    def of(self, pod: PodKey) -> tuple[Condition, ...]:
        """Everything stated about one pod."""
        return _union(stated for source, stated in self._stated.items() if source.pod == pod)

    def all(self) -> tuple[Condition, ...]:
        """Everything stated."""
        return _union(self._stated.values())


class Statements:
    """What the target of one pod states about it, between `begin` and `end`.

    A target that is being released has no say any more: another one of the same pod may have begun.
    """

    def __init__(self, conditions: Conditions, pod: PodKey) -> None:
        self._conditions = conditions
        self._pod = pod
        self._open = False

    def begin(self) -> None:
        """From now on the target is the one that speaks for the pod."""
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
        """Take everything back and be silent."""
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
