"""What captures are told of a connection: its ends, the clock, what is known of its TLS, what is redacted, and what
inspection finds.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from sidestep.engine.mirror.capture_writer import CaptureFacts
from sidestep.protocols.eve_redaction import Redaction
from sidestep.proxy.connection.endpoints import Endpoints
from sidestep.proxy.connection.live_ports import LivePort, redaction_of
from sidestep.proxy.connection.tls_facts import tls_facts
from sidestep.proxy.io.stream import TlsStream

if TYPE_CHECKING:
    from sidestep.engine.inspection.records import ExchangeRecord, FileRecord, HitRecord, Observer
    from sidestep.engine.inspection.samples import Sample
    from sidestep.engine.mirror.producer import Mirror


def captured(port: LivePort, endpoints: Endpoints, client: object, server_name: str) -> CaptureFacts | None:
    """Return what captures are told; None while nobody captures on this port. `client` is the client's end."""
    if not port.captures_requests and not port.snapshot.captures:
        return None
    return CaptureFacts(
        endpoints.host,
        endpoints.port,
        epoch=time.time() - time.monotonic(),
        now=time.monotonic,
        comment=_describe(client, server_name) if isinstance(client, TlsStream) else "",
        redaction=Redaction() if port.inspection is None else redaction_of(port.inspection),
    )


class CommentedFindings:
    """An observer of inspection that has captures say what was found, beside another observer."""

    __slots__ = ("_mirror", "_observer")

    def __init__(self, observer: Observer, mirror: Mirror) -> None:
        self._observer = observer
        self._mirror = mirror

    def hit(self, record: HitRecord) -> None:
        """See `records.Observer`."""
        self._observer.hit(record)
        if record.told:
            done = "would block" if record.would_block else record.action.name.lower()
            self._mirror.found(f"policy {record.policy}, rule {record.rule}: {done}, id {record.exchange.id}")

    def sampled(self, sample: Sample) -> None:
        """See `records.Observer`."""
        self._observer.sampled(sample)

    def file(self, record: FileRecord) -> None:
        """See `records.Observer`."""
        self._observer.file(record)

    def answered(self, record: ExchangeRecord) -> None:
        """See `records.Observer`."""
        self._observer.answered(record)

    def uninspected(self, reason: str, *, closed: bool) -> None:
        """See `records.Observer`."""
        self._observer.uninspected(reason, closed=closed)
        self._mirror.found(f"not inspected ({'closed' if closed else 'passed on'}): {reason}")


def _describe(client: TlsStream, server_name: str) -> str:
    facts = tls_facts(client, server_name)
    if facts is None:
        return ""
    said = [f"decrypted {facts.version}", facts.cipher]
    if facts.server_name:
        said.append(f"server name {facts.server_name}")
    if facts.alpn:
        said.append(f"ALPN {facts.alpn}")
    return ", ".join(said)
