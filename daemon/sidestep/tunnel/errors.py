"""What can go wrong in a tunnel, as its users see it."""

from __future__ import annotations

from sidestep.model.errors import PeerError


class StreamResetError(PeerError):
    """The peer reset this stream; `code` is the HTTP/2 error code (RFC 9113 section 7)."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the other end reset the stream (code {code})", code=code)


class TunnelClosedError(PeerError):
    """The tunnel is gone, and every stream with it."""


class TunnelSilentError(TunnelClosedError):
    """The tunnel was given up because its other end said nothing for too long."""


class ChannelBrokenError(PeerError):
    """A socket at the end of a stream broke: reset by its peer, or TLS failed on it."""
