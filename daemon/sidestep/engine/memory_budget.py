"""Bounds the memory of waiting bytes in one pod proxy, over all its connections.

A handler may pause for minutes (a breakpoint) and a client may not read, so bytes wait in the proxy. Each kind has a
part of its own that no other kind can use, so that a hung wiretap does not disturb an intercept.

    DIVERTED    64 MiB, with the next two: requests and responses of diverted HTTP/2 streams; one `Budget` per process,
                an `Account` of it for each connection
    COPIES      copies for wiretaps (`engine.mirror.ledger.Ledger`)
    DATAGRAMS   datagrams for handlers (`proxy.connection.datagrams`)
    INSPECTION  what exchanges keep for a verdict (`engine.inspection.judged`): decoders, text that is being searched,
                bodies of HTTP/1 that are held, heads of HTTP/2 streams that are read on their way
    BACKLOG     bytes queued towards clients, apps and handlers that do not read (`proxy.connection.conductor`)

DIVERTED, INSPECTION: a connection may hold as many bytes as are still free (a dynamic threshold, Choudhury and Hahne
1998): one alone gets half of the budget, n equal ones get 1/(n+1) of it each, and some always stays free for the next.

BACKLOG: the peers of a leg are not read while more than `high_water` is queued towards it. That is 256 KiB while little
waits in all, and falls with what is free: 3,000 slow readers get some 56 KiB each. When nothing is free, a connection
reads again only once its queue is written to the end, so that it holds one read at most (64 KiB; TLS 16 KiB).

Not counted: heads, and bodies for handlers, that an HTTP/1 connection keeps until their side is known or open (64 KiB
and one read per connection), and the kernel's pipes of spliced wires.
"""

from __future__ import annotations

from typing import Final

MIB: Final = 1024 * 1024
TOTAL: Final = 64 * MIB
"""Bytes of diverted and copied traffic; a pod proxy may have 1 GiB in all (`node.proxies.proxy_process`)."""
COPIES: Final = 16 * MIB
DATAGRAMS: Final = 8 * MIB
DIVERTED: Final = TOTAL - COPIES - DATAGRAMS
BACKLOG: Final = 192 * MIB
INSPECTION: Final = 64 * MIB
_SHARE: Final = 512
"""Part of the free backlog (one 512th) that may be queued towards one leg."""


class Budget:
    """One per process and part. `held` is what all connections hold (bytes)."""

    __slots__ = ("held", "total")

    def __init__(self, total: int = DIVERTED) -> None:
        self.total = total
        self.held = 0

    @property
    def free(self) -> int:
        """Bytes that nobody holds; negative when more is held than there should be."""
        return self.total - self.held


def high_water(backlog: Budget) -> int:
    """Bytes queued towards one leg above which its sources are not read, never negative."""
    return max(0, backlog.free // _SHARE)


class Account:
    """What one connection holds (bytes). It is given back when the account is dropped, however the connection ended."""

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


class Share:
    """What one exchange holds of its connection's account (bytes). It is given back when the share is dropped."""

    __slots__ = ("account", "held")

    def __init__(self, account: Account) -> None:
        self.account = account
        self.held = 0

    def __del__(self) -> None:
        self.account.change(-self.held)

    def set(self, size: int) -> None:
        """Hold so many bytes."""
        if size != self.held:
            self.account.change(size - self.held)
            self.held = size
