"""Sets up a connection of the pod that is opened: the setup of a port's connection, with a server in the app's place.

`outbound_setup` has decided that the connection is opened, by first bytes that are still unread, and hands the socket
over. From here on it goes the way of every connection that is opened (`connection.setup`): classified, established,
relayed by the engines, judged and recorded by the same gate. Two things differ:

    ORIGINATE   the client speaks clear HTTP: TLS is made with the server alone (`origination`)
    READ        the client speaks clear HTTP, which leaves as it came
    DECRYPT     the client's TLS is answered with a certificate that is issued for the name (`tls.issuing`)
    failures    words of their own; a client whose clear HTTP may not leave is answered with 502

States are those of `connection.setup`; ESTABLISHING is also the state in which TLS is originated.

Invariants
  * The server is verified before a byte of the client is consumed. So where it cannot be opened the connection is as
    without us: end to end, to the port that the client dialled; of clear HTTP each request is judged then, too. Or it
    is closed, where a policy fails closed.
  * A client that refuses the certificate has begun its handshake, so that connection is over. The next one of its kind
    is not opened, or the one after that (`unopened`). What counts as a refusal says `refusal`.
  * Clear HTTP of which a policy that fails closed wants TLS never leaves in clear.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final

from sidestep.engine.classification import Close, Http, Protocol, Verdict
from sidestep.engine.outbound import Opening, tls_port
from sidestep.engine.relay import OnUnreadable, Relay
from sidestep.model.condition import ConditionType
from sidestep.model.errors import PeerError
from sidestep.proxy.connection.endpoints import Endpoints
from sidestep.proxy.connection.host import AppTls
from sidestep.proxy.connection.inspection_counts import InspectionCounts
from sidestep.proxy.connection.live_ports import LivePort
from sidestep.proxy.connection.setup import ConnectionSetup
from sidestep.proxy.egress.opened_host import OpenedHost
from sidestep.proxy.egress.origination import TlsOrigination
from sidestep.proxy.egress.refusal import Refusal, RefusalWatch
from sidestep.proxy.egress.unopened import REFUSED, OpenedClient
from sidestep.proxy.io.loop import Loop
from sidestep.proxy.io.stream import TlsStream
from sidestep.proxy.tls.failures import TlsFailure
from sidestep.proxy.tls.handshake import LingeringClose

REASONS: Final = {
    ConditionType.UPSTREAM_UNVERIFIED: "server-unverified",
    ConditionType.UPSTREAM_TLS_FAILED: "server-tls-failed",
    ConditionType.CLIENT_CERTIFICATE_REQUESTED: "client-certificate-requested",
    ConditionType.CLIENT_CERTIFICATE_REQUESTED_LATER: "client-certificate-requested",
    ConditionType.ALPN_UNSUPPORTED: "alpn-unsupported",
    ConditionType.CERTIFICATE_INVALID: "issuer-unusable",
    ConditionType.CLIENT_TLS_UNSUPPORTED: "client-tls-unsupported",
    ConditionType.SNI_UNSUPPORTED: "server-name",
}
"""Why a connection was not opened, as records and counters name it."""


class OpenedSetup(ConnectionSetup):
    """One connection until it is relayed or closed. `unopened` is called when it is known not to be opened. `peer`
    learns of an opened one whether its client has refused the certificate.
    """

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        *,
        opening: Opening,
        speaks: Protocol | None,
        port: LivePort,
        endpoints: Endpoints,
        host: OpenedHost,
        unopened: Callable[[], None],
        peer: OpenedClient,
    ) -> None:
        super().__init__(loop, sock, port=port, endpoints=endpoints, host=host)
        self._opening = opening
        self._opened_host = host
        self._unopened = unopened
        self._peer = peer
        self._refusal = RefusalWatch(lambda: loop.now, lambda: port.on_unreadable is OnUnreadable.PASS)
        self._origination: TlsOrigination | None = None
        self._speaks = speaks
        """What the client speaks in clear; its socket is registered with the loop then."""

    async def _classify(self, sock: socket.socket) -> Verdict:
        return await super()._classify(sock) if self._speaks is None else Http(self._speaks, tls=False)

    async def _open(self, sock: socket.socket, verdict: Verdict) -> Verdict:
        if self._opening is Opening.READ:
            return verdict
        if self._opening is Opening.ORIGINATE:
            return await self._originate(sock, verdict) if isinstance(verdict, Http) else verdict
        try:
            return await super()._open(sock, verdict)
        except PeerError as error:
            client = self._ends.client
            if isinstance(client, TlsStream):
                self._judge_end(self._refusal.broke_silence(client))
            else:
                self._judge_end(self._refusal.broke(error.__cause__))
            raise

    def _answers(self, client: socket.socket) -> None:
        self._refusal.answers(client)

    def _relay(self, relay: Relay, protocol: str) -> None:
        client, established = self._ends.client, self._established
        if established is not None and isinstance(client, TlsStream):
            refusal, leg = self._refusal, relay.client
            refusal.relays(client.sock, has_spoken=bool(established.first_bytes))
            client.before_close = lambda: self._judge_end(refusal.over(client))
            self._peer.relays(lambda since: leg.active > since and refusal.has_accepted(client.sock))
            if established.first_bytes:
                self._peer.ends(Refusal.NO, refusal.since)
        super()._relay(relay, protocol)

    def _judge_end(self, refusal: Refusal) -> None:
        """A client's connection ends here."""
        self._peer.ends(refusal, self._refusal.since)
        if refusal in (Refusal.LIKELY, Refusal.CERTAIN):
            self._tell(REFUSED, closed=True)

    def _tell(self, reason: str, *, closed: bool) -> None:
        """Tell of a connection that could not be opened, and either is over or goes on in clear."""
        observer = self._recorder() or InspectionCounts(self._port.counters)
        observer.uninspected(reason, closed=closed)

    async def _originate(self, sock: socket.socket, verdict: Http) -> Verdict:
        """Shake hands with the server; the verdict on the client's requests."""
        self._loop.rebind(sock.fileno(), self._client_broke, 0)
        outward, endpoints = self._port.outward, self._endpoints
        self._opened_host.tls_port = tls_port(endpoints.port)
        self._origination = TlsOrigination(
            self._loop,
            verdict.protocol,
            name=outward.name if outward is not None else endpoints.host,
            port=self._port,
            endpoints=endpoints,
            host=self._host,
        )
        made = await self._origination.run()
        if not isinstance(made, TlsFailure):
            self._ends.app = made
            return verdict
        self._failure, self._origination = made, None
        self._opened_host.tls_port = None
        if self._port.on_unreadable is OnUnreadable.CLOSE:
            return Close("not-opened", tls=False)
        self._tell(self._why(verdict), closed=False)
        return verdict

    @property
    def _app_tls(self) -> AppTls | None:
        return super()._app_tls if self._origination is None else self._origination.connect_again

    def _why(self, verdict: Verdict) -> str:
        return super()._why(verdict) if self._failure is None else REASONS.get(self._failure.type, "not-opened")

    def _uninspected(self, verdict: Verdict) -> None:
        self._unopened()
        super()._uninspected(verdict)

    def _carry_out(self, verdict: Verdict) -> bool:
        relayed = super()._carry_out(verdict)
        if self._opening is not Opening.READ:
            is_opened = isinstance(verdict, Http) and self._failure is None
            self._port.counters["outbound_opened" if is_opened else "outbound_unopened"] += 1
        if isinstance(verdict, Close):
            self._port.counters["outbound_closed"] += 1
            if self._failure is not None and self._speaks == "http/1.1":
                self._refuse(self._failure)
        return relayed

    def _refuse(self, failure: TlsFailure) -> None:
        """Tell the client why its request does not leave."""
        sock = self._ends.take_client_socket()
        name = self._port.outward.name if self._port.outward is not None else self._endpoints.host
        try:
            sock.send(_answer(f"sidestep: {name} cannot be reached over TLS, as a policy wants: {failure.why}\n"))
        except OSError:
            pass  # it is gone, or has no room for an answer
        LingeringClose(self._loop, sock)


def _answer(text: str) -> bytes:
    body = text.encode("ascii", "replace")
    head = (
        "HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/plain; charset=us-ascii\r\nConnection: close\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
