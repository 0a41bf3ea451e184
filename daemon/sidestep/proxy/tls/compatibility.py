"""Whether a port's certificate suits a client, tried in memory while nothing of the client has been consumed.

A client may speak TLS with the app and be unable to with us: it knows no signature, curve or cipher that goes with the
certificate of the port, while the app has another one as well. Its handshake would fail in our hands. So our side of it
is begun between two memory BIOs with the very ClientHello; what fails there is carried end to end.

That costs as much as half a handshake, but clients come in a few shapes, and a shape that was answered once is
remembered. One that was not is tried again each time: a broken hello must not speak for the sound ones of its shape.
"""

from __future__ import annotations

import ssl
from typing import Final
from weakref import WeakKeyDictionary

MAX_SHAPES: Final = 256
"""Shapes remembered per context; browsers vary theirs on purpose (RFC 8701), a few hundred ways each."""

Shape = tuple[bytes, ...]
"""What of a ClientHello decides; see `ClientHello.shape`."""


class CompatibilityCheck:
    """What was found out, per server context, and gone with it."""

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
        pass  # it has answered, and waits for what comes next
    except ssl.SSLError:
        return False
    return True
