"""Requests and their answers as people read them: lines of text, coloured on a terminal.

A line that is coloured is made of parts: text from the network has its control characters escaped before a colour is
put around it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import click
import msgspec

from sidestep.cli.output import json_line
from sidestep.config.shown import STATUS
from sidestep.model import shown
from sidestep.model.text import harmless
from sidestep.tunnel.messages import Answer, Answered, Event, Request

F = TypeVar("F", bound=Callable[..., Any])

_COLOURS = {"1": "36", "2": "32", "3": "36", "4": "33", "5": "31"}
"""First digit of a status -> SGR parameters (ECMA-48, 8.3.117): cyan, green, cyan, yellow, red."""
_NOT_ANSWERED = "35"
_DIM = "2"
_UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


class StatusType(click.ParamType[str]):
    """A status (`404`), a class of them (`5xx`), or `none`: not answered."""

    name = "STATUS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """As click.ParamType.convert."""
        text = str(value).lower()
        if STATUS.fullmatch(text) is None:
            self.fail(
                f"{value!r}: a status such as 404, a class such as 5xx, or none for requests not answered", param, ctx
            )
        return text


def answer_options(command: F) -> F:
    """Add `--http-status` and `--no-color`; the command receives `statuses` and `no_color`."""
    command = click.option(
        "--no-color", is_flag=True, help="Print no colours. [default: colours on a terminal, unless NO_COLOR is set]"
    )(command)
    return click.option(
        "--http-status",
        "statuses",
        type=StatusType(),
        multiple=True,
        metavar="STATUS",
        help="Print only requests that were answered so: 404, 5xx, none; more are OR-ed.",
    )(command)


def is_wanted(answer: Answer | None, statuses: tuple[str, ...]) -> bool:
    """Whether one of the statuses is that of the answer; without any, all are."""
    return shown.is_wanted(0 if answer is None else answer.status, statuses)


def uses_colour(*, no_color: bool, descriptor: int) -> bool:
    """Whether lines are coloured: on a terminal that can, unless somebody has said no (https://no-color.org)."""
    if no_color or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not os.isatty(descriptor):
        return False
    return os.name != "nt" or bool(os.environ.get("WT_SESSION") or os.environ.get("TERM"))


class RequestText:
    """Makes the lines of requests. `coloured`: with colours."""

    def __init__(self, *, coloured: bool) -> None:
        self._coloured = coloured

    def line(self, time: str, request: str, answer: str, rest: str, *, status: int | None) -> str:
        """Return a line of these parts; `status` is None where the answer is not known yet."""
        if not self._coloured:
            return harmless("  ".join(part for part in (time, request, answer, rest) if part))
        colour = _DIM if status is None else _COLOURS.get(str(status)[0], _NOT_ANSWERED)
        parts = [harmless(time), harmless(request)]
        if answer:
            parts.append(f"\x1b[{colour}m{harmless(answer)}\x1b[0m")
        parts.append(f"\x1b[{_DIM}m{harmless(rest)}\x1b[0m")
        return "  ".join(parts)


def answer_text(answer: Answer | None) -> str:
    """Describe an answer: status, who has answered, how long it took, and its size."""
    if answer is None:
        return ""
    took = duration(answer.seconds)
    if not answer.status:
        return f"no answer, {took}" if took else "no answer"
    who = {"handler": f"handler of {answer.handler}", "sidestep": "Sidestep"}.get(answer.by, answer.by or "?")
    parts = [f"{answer.status} by {who}", took or "0.0 ms", size(answer.received)]
    if answer.sent:
        parts.append(f"sent {size(answer.sent)}")
    if not answer.whole:
        parts.append("broken off")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Format a duration for people; "" for none."""
    if seconds <= 0:
        return ""
    if seconds < 0.01:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds // 60)} min {int(seconds % 60)} s"


def size(count: int) -> str:
    """Format a number of bytes for people."""
    for unit, name in _UNITS:
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} B"


def answer_fields(answer: Answer) -> list[tuple[str, str]]:
    """Return the fields of an answer's head: names in lower case."""
    fields = [line.partition(":") for line in answer.head.split("\r\n") if line]
    return [(name.strip().lower(), value.strip()) for name, _, value in fields]


def event_line(event: Event) -> str:
    """Encode an event as one line of JSON; answers have their `fields` in place of the field lines."""
    answer = event.answer if isinstance(event, Request | Answered) else None
    if answer is None:
        return json_line(event)
    shown = msgspec.to_builtins(event)
    del shown["answer"]["head"]
    shown["answer"]["fields"] = answer_fields(answer)
    return json_line(shown)
