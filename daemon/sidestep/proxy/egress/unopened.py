"""Remembers which TLS of the pod cannot be opened, so that a client meets with that once.

Two things show only after the client's handshake has begun, when the connection cannot be passed through any more:

    a client refuses the certificate: it pins, or does not trust the CA      by server and JA4 of the client
    a server asks for the client's certificate after the handshake           by server

The next connection of that kind is not opened. Each is remembered for REMEMBERED seconds, because trust and servers
change, and until there are other policies or another CA (`forget`).

An app can bring this about by refusing on purpose. Where that must not help it, a policy fails closed.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from sidestep.protocols import ja4
from sidestep.protocols.client_hello import ClientHello

REMEMBERED: Final = 600.0
"""Seconds."""
MOST: Final = 1024
"""Kinds of connections that are remembered; the oldest goes first."""
REFUSED: Final = "client-refuses-certificate"
ASKS_LATER: Final = "client-certificate-requested"


class Unopened:
    """See the module. Names are compared without regard to case."""

    def __init__(self) -> None:
        self._found: OrderedDict[tuple[str, str], tuple[str, float]] = OrderedDict()

    def note(self, name: str, hello: ClientHello | None, reason: str, now: float) -> None:
        """Remember a connection to this server that could not be opened."""
        fingerprint = ja4.ja4(hello) if hello is not None and reason == REFUSED else ""
        self._found[name.lower(), fingerprint] = reason, now + REMEMBERED
        if len(self._found) > MOST:
            self._found.popitem(last=False)

    def reason(self, name: str, hello: ClientHello | None, now: float) -> str:
        """Why a connection to this server is not to be opened; empty if nothing is known against it."""
        if not self._found:
            return ""
        name = name.lower()
        return self._known((name, ""), now) or (self._known((name, ja4.ja4(hello)), now) if hello is not None else "")

    def forget(self) -> None:
        """Begin anew: policies, or the certificates that clients are shown, are others."""
        self._found.clear()

    def _known(self, key: tuple[str, str], now: float) -> str:
        reason, until = self._found.get(key, ("", 0.0))
        if until <= now:
            self._found.pop(key, None)
            return ""
        return reason
