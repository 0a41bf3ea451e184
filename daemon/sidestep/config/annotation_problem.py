"""A problem with one annotation, as a value. The parser collects problems and continues; each is shown as one line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import msgspec

from sidestep.model.condition import Condition, ConditionType

if TYPE_CHECKING:
    from sidestep.model.pod import Pod

MAX_SHOWN = 120
"""Characters of a name or value that an error text shows; a longer one is cut and ends with an ellipsis."""


def origins(pod: Pod) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Yield what carries annotations for this pod alone, nearest first: itself and its owners, each by its name as
    `AnnotationProblem.origin`, with its annotations."""
    yield f"pod {pod.key}", pod.annotations
    for owner in pod.owners:
        yield f"{owner.kind} {pod.key.namespace}/{owner.name}", owner.annotations


class AnnotationProblem(msgspec.Struct, frozen=True):
    """One annotation that cannot be used.

    `subject` is the object that is affected ("pod shop/orders-1", "node n1"). `origin` is the object that carries the
    annotation when it is another one ("deployment shop/orders"). `value` is the value as written, of any length and
    content.
    """

    annotation: str
    value: str
    reason: str
    subject: str
    origin: str = ""

    @property
    def text(self) -> str:
        """One line with annotation, value, subject and reason. Escapes control characters and cuts long values."""
        inherited = f" (set on {self.origin})" if self.origin and self.origin != self.subject else ""
        name = self.annotation if self.annotation.isprintable() else repr(self.annotation)
        return f"annotation {_cut(name)} {_cut(self.value)!r} of {self.subject}{inherited}: {self.reason}"

    def condition(self) -> Condition:
        """The condition that `sidestep status` and Events show for this problem."""
        return Condition(ConditionType.ANNOTATION_INVALID, self.subject, self.text)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"
