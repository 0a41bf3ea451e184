"""Tells whether a client has refused the certificate that it was shown in the server's place.

A client that pins a certificate, or does not trust the policy's CA, ends the connection. So does one whose request was
answered, and one whose server has ended an idle connection. What tells them apart:

    the client                                                          has refused
    sends an alert about a certificate, whenever it does                yes
    ends or breaks its handshake without a word, once it was answered   if it does so AT_ONCE, and `guesses`
    ends or breaks the connection after the handshake, without a word   the same
    does so after the server, or after us                               no
    had ended before it was answered: it has given up waiting           no

"Without a word" is less than LEAST bytes, which is less than any request (libcurl compares pinned keys after the
handshake, and takes leave by a close_notify or without one). Where a policy fails closed only an alert counts: what
looks like a refusal may be a probe that wants to see a handshake and no more, and its server would stay closed.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final

from sidestep.proxy.connection.flow_counts import has_ended, received
from sidestep.proxy.io.stream import TlsStream, is_ragged_end

_REFUSALS: Final = (
    "ALERT_UNKNOWN_CA",
    "ALERT_BAD_CERTIFICATE",
    "ALERT_CERTIFICATE_UNKNOWN",
    "ALERT_CERTIFICATE_EXPIRED",
    "ALERT_CERTIFICATE_REVOKED",
    "ALERT_UNSUPPORTED_CERTIFICATE",
    "ALERT_ACCESS_DENIED",
)
"""How the names end that OpenSSL has for alerts about a certificate (RFC 8446 section 6.2)."""

AT_ONCE: Final = 2.0
"""Seconds within which a client ends a connection because of its certificate; spare ones are kept open for longer."""
LEAST: Final = 36
"""Bytes of TLS that the shortest request has at least; an alert has fewer, in each version and with each cipher."""


class RefusalWatch:
    """Watches one client from the moment at which it is answered. `now` tells seconds, and `guesses` whether more than
    alerts counts."""

    def __init__(self, now: Callable[[], float], guesses: Callable[[], bool]) -> None:
        self._now = now
        self._guesses = guesses
        self._since: float | None = None
        """When the client was answered; None before, and if it had ended by then."""
        self._before = 0
        """Bytes of the client until its handshake was over."""

    def answers(self, client: socket.socket) -> None:
        """The client's handshake is answered next."""
        self._since = None if has_ended(client) else self._now()

    def relays(self, client: socket.socket) -> None:
        """Its handshake is over, and what it says is relayed from now on."""
        self._before = received(client)

    def broke(self, error: object) -> bool:
        """Whether a client that broke its handshake has refused the certificate."""
        if is_refusal(getattr(error, "reason", None) or ""):
            return True
        is_end = isinstance(error, ConnectionError) or (isinstance(error, OSError) and is_ragged_end(error))
        return is_end and self._is_at_once

    def broke_silence(self, client: TlsStream) -> bool:
        """Whether a client has that breaks the connection after its handshake, before it is known what it speaks."""
        return is_refusal(client.broken) or (bool(client.peer_first) and self._is_at_once)

    def over(self, client: TlsStream) -> bool:
        """Whether a client has whose connection was relayed, and is closed next."""
        if is_refusal(client.broken):
            return True
        return bool(client.peer_first) and self._is_at_once and received(client.sock) - self._before < LEAST

    @property
    def _is_at_once(self) -> bool:
        return self._guesses() and self._since is not None and self._now() - self._since < AT_ONCE


def is_refusal(reason: str) -> bool:
    """Whether OpenSSL's reason for an error is a client's alert about the certificate that it was shown."""
    return reason.endswith(_REFUSALS)
