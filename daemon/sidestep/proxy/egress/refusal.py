"""Tells whether a client has refused the certificate that it was shown in the server's place.

A client that pins a certificate, or does not trust the policy's CA, ends the connection. So does one whose request was
answered, and one whose server has ended an idle connection. What tells them apart:

    the client                                                          has refused
    sends an alert about a certificate, whenever it does                CERTAIN
    ends or breaks its handshake without a word, once it was answered   LIKELY if it does so AT_ONCE, and `guesses`
    ends or breaks the connection after the handshake, without a word   the same
    does so after the server, or after us                               UNKNOWN
    had ended before it was answered: it has given up waiting           UNKNOWN
    has said something                                                  NO

"Without a word" is less than LEAST bytes, which is less than any request (libcurl compares pinned keys after the
handshake, and takes leave by a close_notify or without one). It may be a refusal, or a probe that wants to see a
handshake and no more, or a connection that was not needed after all: so the second one in a row counts (`unopened`).
Where a policy fails closed only an alert does: the server would stay closed.
"""

from __future__ import annotations

import enum
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


class Refusal(enum.Enum):
    """Whether a client has refused the certificate."""

    NO = enum.auto()
    UNKNOWN = enum.auto()
    LIKELY = enum.auto()
    CERTAIN = enum.auto()


class RefusalWatch:
    """Watches one client from the moment at which it is answered. `now` tells seconds, and `guesses` whether more than
    alerts counts."""

    def __init__(self, now: Callable[[], float], guesses: Callable[[], bool]) -> None:
        self._now = now
        self._guesses = guesses
        self.since: float | None = None
        """When the client was answered; None before, and if it had ended by then."""
        self._before = 0
        """Bytes of the client until its handshake was over."""
        self._has_spoken = False

    def answers(self, client: socket.socket) -> None:
        """The client's handshake is answered next."""
        self.since = None if has_ended(client) else self._now()

    def relays(self, client: socket.socket, *, has_spoken: bool = False) -> None:
        """Its handshake is over, and what it says is relayed from now on, and what it has said already."""
        self._before, self._has_spoken = received(client), has_spoken

    def has_accepted(self, client: socket.socket) -> bool:
        """Whether a client whose connection is relayed has said something."""
        return self._has_spoken or received(client) - self._before >= LEAST

    def broke(self, error: object) -> Refusal:
        """Whether a client that broke its handshake has refused the certificate."""
        if is_refusal(getattr(error, "reason", None) or ""):
            return Refusal.CERTAIN
        return self._guess(isinstance(error, ConnectionError) or (isinstance(error, OSError) and is_ragged_end(error)))

    def broke_silence(self, client: TlsStream) -> Refusal:
        """Whether a client has that breaks the connection after its handshake, before it is known what it speaks."""
        return Refusal.CERTAIN if is_refusal(client.broken) else self._guess(client.peer_first)

    def over(self, client: TlsStream) -> Refusal:
        """Whether a client has whose connection was relayed, and is closed next."""
        if is_refusal(client.broken):
            return Refusal.CERTAIN
        return Refusal.NO if self.has_accepted(client.sock) else self._guess(client.peer_first)

    def _guess(self, is_end: object) -> Refusal:
        """What an end of the client's own tells that says nothing."""
        is_at_once = self._guesses() and self.since is not None and self._now() - self.since < AT_ONCE
        return Refusal.LIKELY if is_end and is_at_once else Refusal.UNKNOWN


def is_refusal(reason: str) -> bool:
    """Whether OpenSSL's reason for an error is a client's alert about the certificate that it was shown."""
    return reason.endswith(_REFUSALS)
