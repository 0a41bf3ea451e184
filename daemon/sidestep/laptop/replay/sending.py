"""Sends recorded requests again, one after the other, and compares the answers.

not sent   the recording has no request that could be sent: `problem` says why
failed     it was sent, and there was no answer: likewise
answered   `found` says in what the answer differs from the recorded one, if there is one and it is compared
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from typing import TYPE_CHECKING

import msgspec

from sidestep.laptop.replay.comparison import differences
from sidestep.laptop.replay.message import ReplayError
from sidestep.laptop.replay.sender import Sender

if TYPE_CHECKING:
    from sidestep.laptop.replay.message import Incoming
    from sidestep.laptop.replay.recorded import Recorded
    from sidestep.laptop.replay.target import Target


class Sent(msgspec.Struct, frozen=True):
    """What became of one recorded request."""

    recorded: Recorded
    answer: Incoming | None = None
    problem: str = ""
    found: list[str] = msgspec.field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether it was sent in vain."""
        return self.answer is None and self.recorded.request is not None


async def send_all(
    recorded: Iterable[Recorded], target: Target, *, seconds: float, h2: bool | None = None, compare: bool = True
) -> AsyncGenerator[Sent, None]:
    """Send them; yield what became of each as soon as that is known. `seconds`: for each answer.

    Whoever leaves the loop early closes the generator (`contextlib.aclosing`), which closes the connections.
    """
    sender = Sender(target, timeout=seconds, h2=h2)
    try:
        for each in recorded:
            if each.request is None:
                yield Sent(each, problem=each.reason)
                continue
            try:
                answer = await sender.send(each.request)
            except ReplayError as error:
                yield Sent(each, problem=str(error))
                continue
            before = each.entry.response
            yield Sent(each, answer, found=differences(before, answer) if compare and before is not None else [])
    finally:
        await sender.aclose()
