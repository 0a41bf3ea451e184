"""Links to one peer - a rule's handler, or the app - and the exchanges that wait for one of them.

A request gets a stream only on a link whose peer has sent its SETTINGS, and no more at once than these allow: what a
peer cannot take now waits here, in the order in which the client asked. Links are opened as they are needed:

    no link takes more                      one is opened
    every link is as full as it may be      another one, up to `links`; a peer that allows none while it serves none
                                            is waited for
    a link was left (GOAWAY, lost)          another one, if something waits
    a second one has been idle for a while  it is closed

Waiting has an end: `settle_ticks` for the SETTINGS of a peer, `wait_ticks` without any request having got its stream.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sidestep.engine.http2.exchange import Exchange
    from sidestep.engine.http2.link import Link
    from sidestep.protocols.http2 import Http2Limits


class Pool:
    """See the module. `open_link` makes a link and asks for its connection."""

    __slots__ = ("_limits", "_open", "_sorted", "_stalled", "links", "waiting")

    def __init__(self, open_link: Callable[[], Link], limits: Http2Limits) -> None:
        self._open = open_link
        self._limits = limits
        self._sorted = True
        self._stalled = 0
        self.links: list[Link] = []
        self.waiting: dict[Exchange, None] = {}

    def take(self, exchange: Exchange) -> None:
        """Have a new exchange answered."""
        self.waiting[exchange] = None

    def take_back(self, exchange: Exchange) -> None:
        """Have an exchange answered that a link has given back: before those that came later."""
        self.waiting[exchange] = None
        self._sorted = False

    @property
    def has_link(self) -> bool:
        """Whether a link takes more, or will."""
        return any(link.takes_more for link in self.links)

    def pump(self) -> None:
        """Give waiting exchanges to links, and let these send."""
        if self.waiting:
            self._place()
        for link in [*self.links]:
            link.pump()

    def _place(self) -> None:
        if not self._sorted:
            self.waiting = dict.fromkeys(sorted(self.waiting, key=lambda each: each.stream))
            self._sorted = True
        for exchange in [*self.waiting]:
            link = self._vacant()
            if link is None:
                return
            del self.waiting[exchange]
            link.take(exchange)
            self._stalled = 0

    def _vacant(self) -> Link | None:
        """A link with room for one stream more; None, and maybe another one on its way."""
        takers = []
        for link in self.links:
            if link.takes_more:
                if link.settled and link.vacancies > 0:
                    return link
                takers.append(link)
        may_open = len(takers) < self._limits.links and len(self.links) < self._limits.all_links
        if may_open and all(link.settled and not link.is_idle for link in takers):
            self.links.append(self._open())
        return None

    # --- time -------------------------------------------------------------------------------------------------------

    @property
    def wants_time(self) -> bool:
        """Whether anything here ends with time."""
        return bool(self.waiting) or len(self.links) > 1 or any(not link.settled for link in self.links)

    def tick(self) -> tuple[list[Link], bool]:
        """A tick has passed: the links whose peers said nothing, or that are not needed any more; whether waiting
        has taken too long."""
        if self.waiting:
            self._stalled += 1
        over = []
        spare = sum(link.takes_more for link in self.links) - 1
        for link in self.links:
            link.age = 0 if link.settled and not link.is_idle else link.age + 1
            if link.opened and not link.settled and link.age > self._limits.settle_ticks:
                over.append(link)
            elif link.settled and spare > 0 and not self.waiting and link.age > self._limits.spare_ticks:
                spare -= 1
                over.append(link)
        return over, self._stalled > self._limits.wait_ticks
