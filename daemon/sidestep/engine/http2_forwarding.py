"""The HTTP/2 relay of a port whose requests tell the app who their client proved to be (see `client_certificate`).

The app gets other header blocks than the client sent, so the connection is *mixed* from the client's preface on: every
block for the app is written anew, and what cannot be read ends the connection instead of making it a wire - which is
what such a port wants anyway. Rewriting happens where blocks are decoded: whoever asks for a block gets it without the
client's own field and, if it is a request's, with ours. Nothing of this is paid for where it is switched off.
"""

from __future__ import annotations

from sidestep.engine.http2 import Http2Relay
from sidestep.engine.http2_from_client import FromClient
from sidestep.engine.relay import Ending
from sidestep.engine.taps import Ledger
from sidestep.policy.route import SteeredPort
from sidestep.protocols.client_certificate import is_forwarded, rewrite_fields
from sidestep.protocols.hpack import NONE, Block, Memo, State
from sidestep.protocols.http2 import DEFAULT_LIMITS, Http2Limits


class _Rewriting(Memo):
    """The client's blocks, remembered as they came, handed out rewritten. It has every method that is used."""

    __slots__ = ("_inner", "_value")

    def __init__(self, inner: Memo, value: bytes | None) -> None:
        super().__init__(inner.limit)
        self._inner = inner
        self._value = value

    def decode(self, state: State, data: bytes, *, list_limit: int, table_limit: int) -> Block:
        """As `Memo.decode`. Raises HpackError."""
        block = self._inner.decode(state, data, list_limit=list_limit, table_limit=table_limit)
        fields = block.fields
        value = self._value if any(name == b":method" for name, _ in fields) else None
        if value is None and not any(is_forwarded(name) for name, _ in fields):
            return block
        never = NONE
        if block.never:
            kept = [position for position, (name, _) in enumerate(fields) if not is_forwarded(name)]
            never = frozenset(new for new, old in enumerate(kept) if old in block.never)
        rewritten = Block(rewrite_fields(fields, value), never, block.updates, block.state)
        rewritten.large = block.large
        return rewritten

    def with_allowed(self, state: State, allowed: int) -> State:
        """As `Memo.with_allowed`."""
        return self._inner.with_allowed(state, allowed)


class _FromClient(FromClient):
    """Begins to write blocks anew as soon as the client is known to speak HTTP/2."""

    __slots__ = ()

    def _preface(self, data: bytes) -> bool:
        if not super()._preface(data):
            return False
        self._connection.mixed = True
        self._held = []
        return True


class ForwardingHttp2Relay(Http2Relay):
    """See the module. `value` is the field's value, None when the client proved nothing: then only spoofs go."""

    __slots__ = ()

    def __init__(
        self,
        port: SteeredPort,
        *,
        tls: bool,
        value: bytes | None,
        limits: Http2Limits = DEFAULT_LIMITS,
        ledger: Ledger | None = None,
    ) -> None:
        super().__init__(port, tls=tls, limits=limits, ledger=ledger)
        connection = self._connection
        connection.memo = _Rewriting(connection.memo, value)
        connection.from_client = _FromClient(connection)

    def _wire(self, reason: str) -> None:
        """Close instead."""
        self.anomaly = reason
        self._connection.diversion.abandon()
        self.client.end(Ending.CLOSE)
        self.app.end(Ending.CLOSE)
        self.done = True
