"""Earlier requests: `--since` and `--last` of `flows`, `intercept` and `wiretap`.

The pod proxy keeps them where that is asked for (docs/wiretap.md) and tells them to the session at its beginning. An
intercept has no right to requests of others, so it is shown them by flows of its own, which end when they are told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from sidestep.aio.time_limit import time_limit
from sidestep.config.shown import since_of
from sidestep.model.errors import ConfigurationError
from sidestep.model.shown import MAX_LAST
from sidestep.tunnel.messages import Earlier, State

if TYPE_CHECKING:
    from sidestep.tunnel.messages import AnyEvent

F = TypeVar("F", bound=Callable[..., Any])

PATIENCE: Final = 10.0
"""Seconds for pods to tell their earlier requests."""


class SinceType(click.ParamType[float]):
    """A duration, in seconds."""

    name = "DURATION"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """As click.ParamType.convert."""
        if isinstance(value, float):
            return value
        if not value:
            self.fail("a duration such as 10m or 30s is wanted", param, ctx)
        try:
            return since_of(str(value), subject="")
        except ConfigurationError as error:
            self.fail(str(error), param, ctx)


def earlier_options(command: F) -> F:
    """Add `--since` and `--last`; the command receives `since`, in seconds, and `last`; 0 without them."""
    command = click.option(
        "--last",
        type=click.IntRange(1, MAX_LAST),
        default=None,
        callback=lambda _context, _parameter, value: value or 0,
        metavar="NUMBER",
        help="Show at most so many earlier requests first, if the pods keep them.",
    )(command)
    return click.option(
        "--since",
        type=SinceType(),
        default=None,
        callback=lambda _context, _parameter, value: value or 0.0,
        metavar="DURATION",
        help="Show earlier requests first, not older than this (10m), if the pods keep them.",
    )(command)


def earlier_text(event: Earlier) -> str:
    """What is to be said when a pod has told its earlier requests; "" where they speak for themselves."""
    if event.count:
        return ""
    where = f"of port {event.port} of pod {event.pod}"
    if event.kept:
        return f"No earlier request {where} matches."
    return f"No earlier requests {where} are kept: sidestep.dev/recent-requests.{event.port}: enabled would keep them."


class EarlierTold:
    """Waits until the pods of a session have told their earlier requests: a `foreground.Limit`."""

    def __init__(self) -> None:
        self.is_over = False
        """Whether it was waited for to the end."""
        self._pods: set[str] = set()
        self._told: set[str] = set()
        self._changed = asyncio.Event()

    def event(self, event: AnyEvent) -> None:
        """Take an event of the session."""
        if isinstance(event, State):
            self._pods = {each.pod for each in event.pods if each.state in {"active", "attached"}}
        elif isinstance(event, Earlier):
            self._told.add(event.pod)
        self._changed.set()

    async def reached(self) -> None:
        """Return when all pods have told, or when that has taken PATIENCE seconds."""
        try:
            async with time_limit(PATIENCE):
                while not self._pods or not self._pods <= self._told:
                    await self._changed.wait()
                    self._changed.clear()
        except TimeoutError:
            pass
        self.is_over = True

    async def aclose(self) -> None:
        """As `foreground.Limit`: nothing is left to do."""
