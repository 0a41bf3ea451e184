"""Decides for one HTTP/1 head where its request goes, at the least cost that is certain.

Three ways, the cheapest first: the head was met under this route and is remembered (`Route.memo`); it contains none of
the bytes without which no rule matches, and is skimmed; it is read into fields and the route is asked. The memo belongs
to the route, so a new route begins with an empty one; its size is bounded in entries and in bytes of each.

Hot path: the relay looks heads up in the memo itself and knows `PLAIN` by identity.
"""

from __future__ import annotations

from typing import Final

from sidestep.engine.http1_exchange import Judged
from sidestep.policy.route import TO_APP, SteeredPort
from sidestep.protocols.http1 import CONNECT, HEAD, UPGRADE, Http1Limits, RequestHead, parse_request
from sidestep.protocols.http1_skim import skim

SWITCHES: Final = CONNECT | UPGRADE
"""Flags of a request after whose answer the connection may speak another protocol."""

ANSWERED_BY: Final = HEAD | SWITCHES
"""Request flags that the reading of an answer depends on."""

PLAIN: Final = Judged(TO_APP, RequestHead(b"", b"", b"", [], 0, 0))
"""Stands in the memo for every head that goes to the app, has no body and an answer like any other."""


class Judging:
    """One per client connection."""

    __slots__ = ("_limits", "_port", "_skimmed")

    def __init__(self, port: SteeredPort, limits: Http1Limits) -> None:
        self._port = port
        self._limits = limits
        self._skimmed = b""
        """The last head that was skimmed."""

    def judge(self, head: bytes) -> Judged | str:
        """Decide for one head, once per route while it is remembered; a text says why it cannot be read."""
        route = self._port.route
        memo = route.memo
        judged: Judged | None = memo.get(head)
        if judged is not None:
            return judged
        needles = route.needles
        if needles is not None:
            length = skim(head, needles, route.headless, self._limits)
            if length is not None:
                return self._skim_over(head, length)
        parsed = parse_request(head, self._limits)
        if isinstance(parsed, str):
            return parsed
        decision = route.decide(parsed.method, parsed.target, parsed.fields)
        if decision is TO_APP and not parsed.body and not parsed.flags & ANSWERED_BY:
            judged = PLAIN
        else:
            judged = Judged(decision, parsed)
        self._remember(head, judged)
        return judged

    def _skim_over(self, head: bytes, length: int) -> Judged:
        """A head for the app that was not read into fields; remembered when it comes twice in a row."""
        if length:
            return Judged(TO_APP, RequestHead(b"", b"", b"", [], length, 0))
        if head == self._skimmed:
            self._remember(head, PLAIN)
        self._skimmed = head
        return PLAIN

    def _remember(self, head: bytes, judged: Judged) -> None:
        if len(head) <= self._limits.memo_head:
            memo = self._port.route.memo
            if len(memo) >= self._limits.memo_entries:
                memo.clear()
            memo[head] = judged
