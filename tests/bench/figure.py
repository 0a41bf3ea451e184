"""One measured value, with its budget if it has one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """`budget` is what `value` may be at most (`at_least`: must be at least); None: for information."""

    name: str
    value: float
    unit: str
    budget: float | None = None
    at_least: bool = False

    @property
    def ok(self) -> bool:
        if self.budget is None:
            return True
        return self.value >= self.budget if self.at_least else self.value <= self.budget

    def line(self) -> str:
        """The row of the text table."""
        text = f"{self.name:48} {self.value:9.2f} {self.unit:6}"
        if self.budget is None:
            return text.rstrip()
        return f"{text} budget {'>=' if self.at_least else '<='} {self.budget:g} {'ok' if self.ok else 'MISS'}"
