"""What the parts of one relayed HTTP/2 connection share: its mode, its streams, its limits.

A connection is in one of two modes:

    transparent   `mixed` is False. Both directions carry the original bytes; the peers' HPACK contexts are what they
                  would be without a relay, so the connection can become a wire (raw relay) at any point
    mixed         `mixed` is True. The client reads frames of the app and frames of ours; the app misses the header
                  blocks of diverted streams, and gets all others re-encoded once those it has missed matter to them
                  (`to_app`)

    transparent -- first diverted stream, or the client's preface when a rewriter is set --> mixed

The change is final: after it the two peers' streams differ, and their HPACK contexts may, so the connection cannot
become a wire any more.

The states of the other parts are listed where they are kept: streams in `streams`, the app's connection in
`app_connection`, a diverted stream in `exchange`, a connection to a handler in `link`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidestep.engine.http2.streams import Streams

if TYPE_CHECKING:
    from sidestep.protocols.http2 import Http2Limits


class ConnectionState:
    """See the module."""

    __slots__ = ("limits", "mixed", "streams")

    def __init__(self, limits: Http2Limits) -> None:
        self.limits = limits
        self.mixed = False
        self.streams = Streams(limits.remembered)
