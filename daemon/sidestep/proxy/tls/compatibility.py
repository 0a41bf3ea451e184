"""Whether a port's certificate suits a client: a check in memory, before a byte of the client is consumed.

A client may be able to speak TLS with the app and not with the proxy: it knows no signature, curve or cipher that goes
with the port's certificate, while the app has another certificate as well. Its handshake with the proxy would fail. So
the server side of that handshake is begun between two memory BIOs, with the client's own ClientHello; when it fails,
TLS is passed through.

The check costs as much as half a handshake, but clients come in a few shapes, and a shape that passed is remembered.
Failures are not cached: one malformed ClientHello must not disable interception for its shape.
"""

from __future__ import annotations

import ssl
from typing import Final
from weakref import WeakKeyDictionary

MAX_SHAPES: Final = 256
"""Shapes remembered per context; browsers vary theirs on purpose (RFC 8701), a few hundred ways each."""

Shape = tuple[bytes, ...]
"""What of a ClientHello decides the check; see `ClientHello.shape`."""


class CompatibilityCheck:
    """The shapes that passed, for each server context; they go with the context."""

    def __init__(self) -> None:
        self._suited: WeakKeyDictionary[ssl.SSLContext, set[Shape]] = WeakKeyDictionary()

    def is_compatible(self, context: ssl.SSLContext, hello: bytes, shape: Shape) -> bool:
        """Whether `context` can answer a whole ClientHello, given as the records it came in. Never raises."""
        suited = self._suited.setdefault(context, set())
        if shape in suited:
            return True
        if not _answers(context, hello):
            return False
        if len(suited) >= MAX_SHAPES:
            suited.clear()
        suited.add(shape)
        return True


def _answers(context: ssl.SSLContext, hello: bytes) -> bool:
    incoming = ssl.MemoryBIO()
    incoming.write(hello)
    try:
        context.wrap_bio(incoming, ssl.MemoryBIO(), server_side=True).do_handshake()
    except ssl.SSLWantReadError:
        pass  # the server has answered and waits for the client
    except ssl.SSLError:
        return False
    return True
