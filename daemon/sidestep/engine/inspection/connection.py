"""What exchanges take from the gate of their connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidestep.engine.inspection.limits import InspectionLimits
    from sidestep.engine.inspection.records import Observer
    from sidestep.engine.memory_budget import Account


class Messages(Protocol):
    """The messages of a protocol that an exchange has switched to."""

    def close(self) -> None:
        """Learn that no direction goes on: judge what has come of a message that has not ended."""


class Unfinished(Protocol):
    """An exchange of which a part has begun and not ended."""

    refusal: str | None

    def break_off(self) -> bool:
        """As `Judged.break_off`."""

    def abandon(self) -> None:
        """As `Judged.abandon`."""


class Connection(Protocol):
    """What an exchange takes from the gate of its connection."""

    observer: Observer
    new_id: Callable[[], str]
    limits: InspectionLimits
    memory: Account
    closes: bool
    unfinished: dict[Unfinished, None]
    """Exchanges of which a part has begun and not ended."""

    @property
    def closing_policy(self) -> str:
        """The first policy that closes what cannot be inspected."""

    @property
    def now(self) -> float:
        """The time of the input that is being handled (monotonic seconds)."""

    def firewall_answered(self, call: Callable[[], None]) -> None:
        """Have the relay called, and what it decides carried out."""
