"""Errors of a tunnel."""

from __future__ import annotations

from sidestep.model.errors import PeerError


class StreamResetError(PeerError):
    """The peer has reset this stream. `code` is the HTTP/2 error code (RFC 9113 section 7)."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the other end reset the stream (code {code})", code=code)


class TunnelClosedError(PeerError):
    """The tunnel has ended, and every stream with it."""


class TunnelSilentError(TunnelClosedError):
    """The tunnel was closed because its other end sent nothing for too long."""


class ChannelBrokenError(PeerError):
    """A socket at the end of a stream broke: its peer reset it, or TLS failed."""
