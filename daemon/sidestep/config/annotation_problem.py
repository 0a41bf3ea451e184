"""A problem with one annotation, as a value: the reader goes on with the next annotation, a person gets one line."""

from __future__ import annotations

from dataclasses import dataclass

from sidestep.model.condition import Condition, ConditionType

MAX_SHOWN = 120
"""Characters of a name or value that a text repeats; the rest is replaced by an ellipsis."""


@dataclass(frozen=True, slots=True)
class AnnotationProblem:
    """`subject` is what the annotation is wrong for ("pod shop/orders-1", "node n1"); `origin` is the object that it
    stands on, when that is another one ("deployment shop/orders"). `value` is as written, of any length and content."""

    annotation: str
    value: str
    reason: str
    subject: str
    origin: str = ""

    @property
    def text(self) -> str:
        """One line naming annotation, value, subject and reason; control characters escaped, long values cut."""
        inherited = f" (set on {self.origin})" if self.origin and self.origin != self.subject else ""
        name = self.annotation if self.annotation.isprintable() else repr(self.annotation)
        return f"annotation {_cut(name)} {_cut(self.value)!r} of {self.subject}{inherited}: {self.reason}"

    def condition(self) -> Condition:
        """The condition that `status` and Events show."""
        return Condition(ConditionType.ANNOTATION_INVALID, self.subject, self.text)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"
