"""Links to one peer - a rule's handler, or the app - and the exchanges that wait for one of them.

An exchange goes to a link only when the peer has sent its SETTINGS and they allow one more stream. What a peer cannot
take now waits here, in the order in which the client asked. Links are opened as they are needed:

    no link accepts streams                 one is opened
    every link is as full as it may be      another one, up to `links`; none while a peer that allows no stream at all
                                            has no exchange
    a link leaves (GOAWAY, lost)            another one, if something waits
    a second one is idle                    it is closed after `spare_ticks`

Waiting ends after `settings_ticks` for the SETTINGS of a peer, and after `wait_ticks` in which no exchange has got a
stream.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sidestep.engine.http2.exchange import Exchange
    from sidestep.engine.http2.link import Link
    from sidestep.protocols.http2 import Http2Limits


class LinkPool:
    """See the module. `open_link` makes a link and asks the shell for its connection."""

    __slots__ = ("_limits", "_open", "_sorted", "_stalled", "links", "waiting")

    def __init__(self, open_link: Callable[[], Link], limits: Http2Limits) -> None:
        self._open = open_link
        self._limits = limits
        self._sorted = True
        self._stalled = 0
        self.links: list[Link] = []
        self.waiting: dict[Exchange, None] = {}

    def add(self, exchange: Exchange) -> None:
        """Have a new exchange carried by one of the links."""
        self.waiting[exchange] = None

    def requeue(self, exchange: Exchange) -> None:
        """Have an exchange carried that a link has given back: before those that came later."""
        self.waiting[exchange] = None
        self._sorted = False

    @property
    def has_link(self) -> bool:
        """Whether a link accepts streams now, or will once it is connected."""
        return any(link.accepts_streams for link in self.links)

    def pump(self) -> None:
        """Give waiting exchanges to links, and let the links send."""
        if self.waiting:
            self._assign()
        for link in [*self.links]:
            link.pump()

    def _assign(self) -> None:
        if not self._sorted:
            self.waiting = dict.fromkeys(sorted(self.waiting, key=lambda each: each.stream))
            self._sorted = True
        for exchange in [*self.waiting]:
            link = self._link_with_room()
            if link is None:
                return
            del self.waiting[exchange]
            link.assign(exchange)
            self._stalled = 0

    def _link_with_room(self) -> Link | None:
        """A link with room for one more stream. None if there is none; then another one may have been opened."""
        takers = []
        for link in self.links:
            if link.accepts_streams:
                if link.has_settings and link.free_streams > 0:
                    return link
                takers.append(link)
        may_open = len(takers) < self._limits.links and len(self.links) < self._limits.all_links
        if may_open and all(link.has_settings and not link.is_idle for link in takers):
            self.links.append(self._open())
        return None

    # --- time -------------------------------------------------------------------------------------------------------

    @property
    def wants_time(self) -> bool:
        """Whether ticks are needed."""
        links = self.links
        return bool(self.waiting) or len(links) > 1 or (bool(links) and not links[0].has_settings)

    def tick(self) -> tuple[list[Link], bool]:
        """Learn that a tick has passed.

        Returns the links that are over (silent peers, spare links) and whether waiting has taken too long.
        """
        if self.waiting:
            self._stalled += 1
        over = []
        spare = sum(link.accepts_streams for link in self.links) - 1
        for link in self.links:
            link.age = 0 if link.has_settings and not link.is_idle else link.age + 1
            if link.opened and not link.has_settings and link.age > self._limits.settings_ticks:
                over.append(link)
            elif link.has_settings and spare > 0 and not self.waiting and link.age > self._limits.spare_ticks:
                spare -= 1
                over.append(link)
        return over, self._stalled > self._limits.wait_ticks
