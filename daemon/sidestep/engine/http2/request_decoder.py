"""The HPACK context of the client's encoder.

Blocks are decoded through a memo that all connections of the process share. `decode` leaves the context as it is: the
caller stores the state that follows the block in `state` once the block has been dealt with, because a block that has
to wait is decoded again later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sidestep.engine.rewriting import RewritingMemo
from sidestep.protocols.hpack import INITIAL, Block, Memo, State
from sidestep.protocols.http2 import DEFAULT_LIMITS

if TYPE_CHECKING:
    from sidestep.engine.rewriting import Rewriter
    from sidestep.protocols.http2 import Http2Limits

REQUESTS: Final = Memo(DEFAULT_LIMITS.memo)
"""Request blocks seen by any connection of this process: a pure cache, bounded in bytes."""


class RequestDecoder:
    """Decodes the header blocks of one client; with a rewriter, blocks come out rewritten."""

    __slots__ = ("_limits", "memo", "state")

    def __init__(self, limits: Http2Limits, rewriter: Rewriter | None) -> None:
        memo = REQUESTS if limits is DEFAULT_LIMITS else Memo(limits.memo)
        self.memo = memo if rewriter is None else RewritingMemo(memo, rewriter)
        self._limits = limits
        self.state: State = INITIAL

    def decode(self, fragment: bytes) -> Block:
        """Decode a whole block. Raises HpackError; ListTooLargeError, which carries the state that follows."""
        limits = self._limits
        return self.memo.decode(self.state, fragment, list_limit=limits.passed_list, table_limit=limits.table)

    def allow(self, table: int) -> None:
        """Let the encoder use a table of `table` bytes: the client has acknowledged that SETTINGS_HEADER_TABLE_SIZE."""
        self.state = self.memo.with_allowed(self.state, table)
