"""Memory that diverted and copied traffic may hold in one pod proxy, all connections together.

A handler may pause for minutes (a breakpoint) and a client may not read, so bytes of diverted requests and responses
wait in the proxy, and so do copies and datagrams. 64 MiB may wait in all:

    DIVERTED    requests and responses of diverted HTTP/2 streams: one `Budget` per process, an `Account` of it for each
                connection
    COPIES      copies for wiretaps (`engine.taps.Ledger`)
    DATAGRAMS   datagrams for handlers (`proxy.datagrams`)

Nobody takes another part's room: a hung wiretap costs no intercept. Within a part a holder may hold as many bytes as
are still free (a dynamic threshold, Choudhury and Hahne 1998): one alone gets half of it, n equal ones get 1/(n+1) of
it each, and some always stays free for the next. No holder needs to know of another.

The app's own traffic, and wires to a handler, are not counted: their buffers are bounded per connection, and drained by
back-pressure.
"""

from __future__ import annotations

from typing import Final

MIB: Final = 1024 * 1024
TOTAL: Final = 64 * MIB
"""Bytes; a pod proxy may have 1 GiB in all (`node.incarnation`), most of which is for the app's connections."""
COPIES: Final = 16 * MIB
DATAGRAMS: Final = 8 * MIB
DIVERTED: Final = TOTAL - COPIES - DATAGRAMS


class Budget:
    """One per process. `held` is what all accounts hold (bytes)."""

    __slots__ = ("held", "total")

    def __init__(self, total: int = DIVERTED) -> None:
        self.total = total
        self.held = 0

    @property
    def free(self) -> int:
        """Bytes that nobody holds; negative when more is held than there should be."""
        return self.total - self.held


class Account:
    """What one connection holds. It is given back when the account is dropped, however the connection ended."""

    __slots__ = ("budget", "held")

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.held = 0

    def __del__(self) -> None:
        self.budget.held -= self.held

    def change(self, size: int) -> None:
        """Hold so many bytes more, or less if negative."""
        self.held += size
        self.budget.held += size

    @property
    def is_over(self) -> bool:
        """Whether this connection holds more than its share."""
        return self.held > self.budget.free

    @property
    def is_tight(self) -> bool:
        """Whether it holds more than half of that."""
        return self.held * 2 > self.budget.free
