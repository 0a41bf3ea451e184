"""Remembers which TLS of the pod cannot be opened, so that a client meets with that once.

Two things show only after the client's handshake has begun, when the connection cannot be passed through any more:

    a client refuses the certificate: it pins, or does not trust the CA      by server and JA4 of the client
    a server asks for the client's certificate after the handshake           by server

The next connection of that kind is not opened. Each is remembered for REMEMBERED seconds, because trust and servers
change, and until there are other policies or another CA (`forget`).

A refusal that is only LIKELY (`refusal`) is a suspicion, remembered for as long. It counts once another one of the kind
follows: on a connection that was answered after the first had ended, because a client ends several at once that it does
not need; and unless one of the kind has accepted the certificate meanwhile. It has if it ends a connection that it has
used, and if it has used one since then that is still there (`OpenedClient`).

An app can bring this about by refusing on purpose. Where that must not help it, a policy fails closed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final
from weakref import WeakSet

from sidestep.protocols import ja4
from sidestep.protocols.client_hello import ClientHello
from sidestep.proxy.egress.refusal import Refusal

REMEMBERED: Final = 600.0
"""Seconds."""
MOST: Final = 1024
"""Kinds of connections that are remembered, and as many that are suspected; the oldest goes first."""
REFUSED: Final = "client-refuses-certificate"
ASKS_LATER: Final = "client-certificate-requested"


class Unopened:
    """See the module. Names are compared without regard to case."""

    def __init__(self) -> None:
        self._found: OrderedDict[tuple[str, str], tuple[str, float]] = OrderedDict()
        self._suspected: OrderedDict[tuple[str, str], float] = OrderedDict()
        """When a connection of a kind has ended that may have been refused."""
        self._relayed: WeakSet[OpenedClient] = WeakSet()
        """Those that were shown the certificates of the moment."""

    def note(self, name: str, hello: ClientHello | None, reason: str, now: float) -> None:
        """Remember a connection to this server that could not be opened."""
        fingerprint = ja4.ja4(hello) if hello is not None and reason == REFUSED else ""
        self._found[name.lower(), fingerprint] = reason, now + REMEMBERED
        if len(self._found) > MOST:
            self._found.popitem(last=False)

    def judge(
        self, name: str, hello: ClientHello | None, refusal: Refusal, *, answered: float | None, now: float
    ) -> None:
        """Learn what the end of a connection tells that was opened; its client was answered at `answered`."""
        if refusal is Refusal.UNKNOWN or (refusal is Refusal.NO and not self._suspected):
            return
        key = name.lower(), "" if hello is None else ja4.ja4(hello)
        before = self._suspected.pop(key, None)
        if refusal is Refusal.LIKELY and before is not None and self._has_used(key, before):
            before = None
        is_second = before is not None and answered is not None and before <= answered and now < before + REMEMBERED
        if refusal is Refusal.CERTAIN or (refusal is Refusal.LIKELY and is_second):
            self.note(name, hello, REFUSED, now)
        elif refusal is Refusal.LIKELY:
            self._suspected[key] = now if before is None or now >= before + REMEMBERED else before
            if len(self._suspected) > MOST:
                self._suspected.popitem(last=False)

    def relays(self, client: OpenedClient) -> None:
        """A client's connection is relayed from now on, as long as somebody keeps this object."""
        self._relayed.add(client)

    def _has_used(self, kind: tuple[str, str], since: float) -> bool:
        return any(each.has_used(since) and each.kind == kind for each in self._relayed)

    def reason(self, name: str, hello: ClientHello | None, now: float) -> str:
        """Why a connection to this server is not to be opened; empty if nothing is known against it."""
        if not self._found:
            return ""
        name = name.lower()
        return self._known((name, ""), now) or (self._known((name, ja4.ja4(hello)), now) if hello is not None else "")

    def forget(self) -> None:
        """Begin anew: policies, or the certificates that clients are shown, are others."""
        self._found.clear()
        self._suspected.clear()
        self._relayed = WeakSet()

    def _known(self, key: tuple[str, str], now: float) -> str:
        reason, until = self._found.get(key, ("", 0.0))
        if until <= now:
            self._found.pop(key, None)
            return ""
        return reason


class OpenedClient:
    """The client of one connection that is opened, for which `unopened` learns what becomes of it. `now` tells seconds.

    It is kept by whoever has the connection, for as long as that is there.
    """

    def __init__(self, unopened: Unopened, name: str, hello: ClientHello | None, now: Callable[[], float]) -> None:
        self._unopened = unopened
        self._name = name
        self._hello = hello
        self._now = now
        self._kind: tuple[str, str] | None = None
        self._used: Callable[[float], bool] = lambda _since: False

    @property
    def kind(self) -> tuple[str, str]:
        """The server, and the fingerprint of the client, which takes some 0.1 ms to make."""
        if self._kind is None:
            self._kind = self._name.lower(), "" if self._hello is None else ja4.ja4(self._hello)
        return self._kind

    def has_used(self, since: float) -> bool:
        """Whether it has said something since then, on a connection that is relayed."""
        return self._used(since)

    def relays(self, used: Callable[[float], bool]) -> None:
        """Its connection is relayed from now on, and `used` tells what `has_used` says."""
        self._used = used
        self._unopened.relays(self)

    def ends(self, refusal: Refusal, answered: float | None) -> None:
        """As `Unopened.judge`."""
        self._unopened.judge(self._name, self._hello, refusal, answered=answered, now=self._now())

    def asks_later(self) -> None:
        """Its server asks for a certificate after the handshake."""
        self._unopened.note(self._name, self._hello, ASKS_LATER, self._now())
