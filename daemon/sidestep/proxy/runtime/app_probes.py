"""Probes what the app of a port speaks, when nobody has stated it, and tells the daemon.

A probe begins with the first connection to a port whose TLS or HTTP/2 is "probe". Its result is kept with the port
(`LivePort.probe_result`), and told to the daemon if it is definite, or if the result before it was. A connection that
contradicts the result makes it unknown, and the next connection probes again.
"""

from __future__ import annotations

from sidestep.proxy.connection.endpoints import Endpoints
from sidestep.proxy.connection.live_ports import LivePort
from sidestep.proxy.connection.protocol_probe import UNKNOWN, ProbeResult, ProtocolProbe
from sidestep.proxy.control.daemon_link import DaemonLink
from sidestep.proxy.control.messages import MAX_CERTIFICATE, Probed
from sidestep.proxy.io.loop import Loop


class AppProbes:
    """The probes of all ports; each port has at most one at a time (`LivePort.probe`)."""

    def __init__(self, loop: Loop, link: DaemonLink) -> None:
        self._loop = loop
        self._link = link

    def observe(self, port: LivePort, endpoints: Endpoints, *, tls: bool) -> None:
        """A client of this port has begun with TLS, or with HTTP in clear: probe the app unless it is known."""
        snapshot = port.snapshot
        known = port.probe_result.tls
        if known is None and port.probe is None and "probe" in (snapshot.tls, snapshot.http2):
            port.probe = ProtocolProbe(
                self._loop,
                endpoints.host,
                endpoints.port,
                tls=tls,
                server_name=snapshot.upstream_name or None,
                timeout=snapshot.probe_timeout,
                done=lambda result: self._probed(port, result),
            )
        elif known is not None and known is not tls:
            self._probed(port, UNKNOWN)

    def _probed(self, port: LivePort, result: ProbeResult) -> None:
        port.probe = None
        if result.definite or port.probe_result.definite:
            self._link.advise(
                Probed(
                    self._link.next_seq(),
                    port.steered.number,
                    _word(result.tls),
                    _word(result.http2),
                    result.alpn,
                    result.asks_certificate,
                    result.certificate if len(result.certificate) <= MAX_CERTIFICATE else b"",
                )
            )
        port.probe_result = result


def _word(answer: bool | None) -> str:
    return "unknown" if answer is None else "yes" if answer else "no"
