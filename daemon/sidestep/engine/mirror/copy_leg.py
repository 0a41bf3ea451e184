"""A connection of a sink to a handler, and who is told of it."""

from __future__ import annotations

from typing import Protocol

from sidestep.engine.leg import Leg, Role
from sidestep.policy.route import Rule


class LegOwner(Protocol):
    """A sink, or a part of one, that has legs. The shell tells it what becomes of them."""

    def opened(self, leg: CopyLeg) -> None:
        """The handler is connected."""

    def receive(self, leg: CopyLeg, data: bytes) -> None:
        """The handler says something."""

    def receive_eof(self, leg: CopyLeg) -> None:
        """The handler has finished speaking; it may go on reading."""

    def drained(self, leg: CopyLeg) -> None:
        """Everything queued was written."""

    def lost(self, leg: CopyLeg) -> None:
        """The handler refused, or the connection broke."""

    def reads(self, leg: CopyLeg) -> bool:
        """Whether the shell should read from the leg now."""


class CopyLeg(Leg):
    """The connection that carries a copy, or several. It is no leg of a relay.

    `protocol` is what its handler is spoken to in, None for what the shell began the client's connection with.
    `answered` tells whether the handler has answered as its protocol demands: None while nothing is known, or nobody
    can tell.
    """

    __slots__ = ("answered", "owner", "protocol", "uid")

    def __init__(self, rule: Rule, owner: LegOwner, protocol: str | None) -> None:
        super().__init__(Role.HANDLER, rule)
        self.uid = rule.uid
        self.owner = owner
        self.protocol = protocol
        self.answered: bool | None = None
