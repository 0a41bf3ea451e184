"""What the live page does with flows that are chosen on it: a HAR file of them, and their requests again.

Both are what `--save` and `sidestep replay --compare` do. The page of a wiretap has the bodies of requests
(`flow_ring`). A request whose body was not recorded, or not whole, is not sent again, which is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from typing import Final

import msgspec

from sidestep import __version__
from sidestep.cli.har_entries import entry_of
from sidestep.laptop.page.flow_ring import ShownFlow
from sidestep.laptop.replay.recorded import Recorded, hidden_fields, recorded
from sidestep.laptop.replay.sending import send_all
from sidestep.laptop.replay.target import parse_target
from sidestep.model.text import harmless
from sidestep.protocols import har

TIMEOUT: Final = 10.0
"""Seconds for the answer to one request."""
PATIENCE: Final = 5
"""Requests without an answer, one after the other, after which no more are sent: the server is not there."""
MAX_LINES: Final = 200
"""Differences that are told."""


class Replayed(msgspec.Struct):
    """How a replay went. `text` sums it up, `lines` say what differs and what was not sent."""

    text: str
    lines: list[str]


def har_of(flows: Sequence[ShownFlow]) -> bytes:
    """A HAR file of these flows."""
    entries = [har.encode(entry_of(flow.request, flow.body), first=not index) for index, flow in enumerate(flows)]
    return b"".join([har.head(__version__), *entries, har.TAIL])


async def replay_flows(flows: Sequence[ShownFlow], to: str) -> Replayed:
    """Send the requests of these flows, one after the other, and compare the answers.

    Raises ConfigurationError for an address that cannot be one.
    """
    target = parse_target(to, ca=None, insecure=False)
    requests = [recorded(number, entry_of(flow.request, flow.body), {}) for number, flow in enumerate(flows, start=1)]
    lines: list[str] = []
    answered = different = failures = 0
    async with aclosing(send_all(requests, target, seconds=TIMEOUT)) as replayed:
        async for each in replayed:
            if each.failed:
                failures += 1
                lines.append(f"{_name(each.recorded)}: {each.problem}")
                left = len(requests) - each.recorded.number
                if failures >= PATIENCE and left:
                    lines.append(f"{left} more are not sent: {target} does not answer")
                    break
            elif each.answer is None:
                lines.append(f"{_name(each.recorded)}: not sent: {each.problem}")
            else:
                failures = 0
                answered += 1
                if each.found:
                    different += 1
                    lines.append(f"{_name(each.recorded)}: {'; '.join(each.found)}")
    if len(lines) > MAX_LINES:
        lines[MAX_LINES:] = [f"{len(lines) - MAX_LINES} more"]
    if hidden := hidden_fields(requests):
        lines.insert(0, hidden)
    text = f"{different} of {answered} answers differ."
    if answered < len(requests):
        text += f" {len(requests) - answered} requests have no answer."
    return Replayed(text, [harmless(line) for line in lines])


def _name(each: Recorded) -> str:
    return f"{each.entry.request.method} {each.entry.request.url}"
