"""Makes EVE records of what inspection finds on one connection; made only while somebody reads records.

Who reads them is the node's log (`RecordQueue`), and sessions that get records while they last (`Route.listeners`).

    hit of a rule            `http` for Log, `alert` for Alert and Block, unless the rule's rate limit holds it back
    sampled request          `http`, made after the answer was written (`sampled_records`)
    body of such a hit       `fileinfo`: size and SHA-256 of a body in which a pattern was found
    what is not inspected    `anomaly`
    TLS that was opened      `tls`: at once if the policies sample, else with the first hit
    end of the connection    `flow`, if the policies sample or anything else was told of it

Of a connection that the pod makes (`LivePort.outward`) and that policies are about `tls` and `flow` are always told, as
of one that is not opened.

A session gets those of requests that match its filter, the first of them after `tls`; every anomaly of its port, and a
`flow` at the end if it was told of anything else. One that wants alerts only gets `alert` and `anomaly`. For a session
that wants all, `told` makes a record of every exchange; those that are sampled go to the log only.

Records of one connection are bounded: HITS and SAMPLES a second, what is beyond is counted as dropped. Nothing of a
body is in a record, credentials are redacted (`protocols.eve_redaction`), and where a rule has applied, a text in which
a pattern of the policies is found is left out: it may be what the rule has found.
"""

from __future__ import annotations

import secrets
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from sidestep.aio.token_bucket import TokenBucket
from sidestep.engine.inspection.sampling import Sampling
from sidestep.model.intercept import Live
from sidestep.model.secret_fields import REDACTED
from sidestep.policy.accepted_policy import Outcome
from sidestep.policy.inspection import Inspection
from sidestep.protocols import eve
from sidestep.protocols.eve_records import Anomaly, FileInfo, Kubernetes, Origin, RecordedAction, Sidestep
from sidestep.proxy.connection.flow_counts import flow_of
from sidestep.proxy.connection.inspection_counts import InspectionCounts
from sidestep.proxy.connection.live_ports import LivePort, redaction_of
from sidestep.proxy.connection.sampled_records import VERSIONS, SampledRecords
from sidestep.proxy.io.stream import TlsStream, WatchedStream

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from sidestep.engine.inspection.records import ExchangeRecord, FileRecord, HitRecord
    from sidestep.engine.inspection.samples import Sample
    from sidestep.policy.route import Fields, Rule
    from sidestep.protocols.eve_records import Http, Record, Tls, TlsDetails
    from sidestep.proxy.connection.endpoints import Endpoints
    from sidestep.proxy.connection.kept_hellos import KeptHello, KeptHellos
    from sidestep.proxy.control.record_queue import RecordQueue
    from sidestep.proxy.io.stream import Stream
    from sidestep.proxy.tls.recorded import OpenedTls

FLOW_BITS: Final = 52
"""Bits of a flow's number: readers of JSON that know floating point numbers only keep 53."""
HITS: Final = (20.0, 100.0)
"""Records of hits, and of what is not inspected: so many a second, and so many at once ..."""
SAMPLES: Final = (1000.0, 2000.0)
"""... and the same of sampled requests."""
GRANT: Final = 32
"""Samples for which SAMPLES is asked at once: asking costs as much as all else that is done for one here."""

UNINSPECTED: Final = Inspection(())
"""The policies of a port that has none."""
_NOBODY: Final = Kubernetes()
"""The daemon says whose traffic it is."""
_ACTIONS: Final = {
    Outcome.LOG: RecordedAction.LOG,
    Outcome.ALERT: RecordedAction.ALERT,
    Outcome.BLOCK: RecordedAction.BLOCK,
}
_SHOWN: Final = frozenset((b"user-agent", b"x-forwarded-for", b"referer", b"content-type", b"location"))
"""Fields of which `eve.http` shows something."""


class ConnectionRecords:
    """The observer of one connection."""

    __slots__ = (
        "_began", "_counts", "_described", "_ended", "_endpoints", "_granted", "_has_alerted", "_has_told", "_hello",
        "_hits", "_inspection", "_latest", "_live", "_port", "_protocol", "_queue", "_redaction", "_sampled",
        "_samples", "_tls", "_tls_logged", "flow", "sampling",
    )  # fmt: skip

    def __init__(self, port: LivePort, inspection: Inspection | None, endpoints: Endpoints, queue: RecordQueue) -> None:
        """`inspection` are the policies that apply to the connection, None without any."""
        inspection = UNINSPECTED if inspection is None else inspection
        self._counts = InspectionCounts(port.counters)
        self._port = port
        self._inspection = self._latest = inspection
        self._redaction = redaction_of(inspection)
        """That of the latest policies; what they find is concealed as well as what the first ones find."""
        self._endpoints = endpoints
        self._queue = queue
        self._hits: TokenBucket | None = None
        self._samples: TokenBucket | None = None
        self._granted = 0
        """Samples that may be told before the bucket is asked again."""
        self._sampled: SampledRecords | None = None
        """Made with the first record of a sample."""
        self._protocol = ""
        self._began = time.time_ns()
        self._has_told = self._has_alerted = False
        self._tls: OpenedTls | None = None
        """Until nobody has to be told of it any more."""
        self._described: tuple[Tls, TlsDetails] | None = None
        """What is said of it, if a session was there when it was opened, or the log is told at once."""
        self._hello: KeptHello | None = None
        """The ClientHello, while it may still be told and nothing was described."""
        self._tls_logged = False
        self._live: set[str] = set()
        """Sessions that were told of anything but alerts."""
        self._ended: tuple[Record, frozenset[str]] | None = None
        """The record of the connection's end, and the sessions that got it."""
        outward = port.outward
        self.flow = secrets.randbits(FLOW_BITS) if outward is None else outward.flow
        self._has_told |= outward is not None and self._is_inspected and queue.wanted
        self.sampling = Sampling(inspection.sample_percent if queue.wanted else 0.0, self.flow)

    # --- records.Observer -------------------------------------------------------------------------------------------

    def hit(self, record: HitRecord) -> None:
        """See `records.Observer`."""
        self._counts.hit(record)
        if not record.told:
            return
        exchange = record.exchange
        listeners = self._listening(exchange)
        if not self._may_tell_hit(listeners):
            return
        self._tell_tls(listeners, to_log=True)
        action = RecordedAction.WOULD_BLOCK if record.would_block else _ACTIONS[record.action]
        decided = Sidestep(
            policy=record.policy, rule=record.rule, action=action, id=exchange.id, pattern=record.pattern or None,
            inspected=True,
        )  # fmt: skip
        http = self._http(self._concealed(exchange))
        self._protocol = _name(exchange.protocol)
        self._has_alerted |= record.action is not Outcome.LOG
        if record.action is Outcome.LOG:
            made = eve.record(
                time.time_ns(), self._origin(), http, transaction=exchange.number, sidestep=self._directed(decided)
            )
        else:
            made = eve.record(
                time.time_ns(),
                self._origin(),
                eve.alert(record.policy, record.rule, blocked=record.action is Outcome.BLOCK),
                transaction=exchange.number,
                http=http,
                sidestep=self._directed(decided),
                to_client=record.in_response,
            )
        self._put(made, listeners, is_alert=record.action is not Outcome.LOG)

    def sampled(self, sample: Sample) -> None:
        """See `records.Observer`. The record is made by `encode`, a moment later."""
        outward = self._port.outward
        if outward is not None and outward.facts.hosts is not None:
            judging = self._inspection.latest.connection(outward.facts)
            if not judging.samples(sample.request()[3]):
                return  # of a host that the policies which sample are not about
        if not self._granted and not self._grant():
            self._queue.drop("connection")
            return
        self._granted -= 1
        self._queue.defer(self, sample)

    def file(self, record: FileRecord) -> None:
        """See `records.Observer`."""
        exchange = record.exchange
        listeners = self._listening(exchange)
        if not self._may_tell_hit(listeners):
            return
        http = self._http(self._concealed(exchange))
        told = FileInfo(
            filename=http.url.partition("?")[0],
            gaps=False,
            state="CLOSED" if record.is_whole else "TRUNCATED",
            sha256=record.sha256,
            stored=False,
            size=record.size,
            tx_id=exchange.number or 0,
        )
        decided = Sidestep(id=exchange.id, inspected=True)
        made = eve.record(
            time.time_ns(),
            self._origin(),
            told,
            http=http,
            sidestep=self._directed(decided),
            to_client=record.in_response,
        )
        self._put(made, listeners, is_alert=False)

    def answered(self, record: ExchangeRecord) -> None:
        """See `records.Observer`."""
        if not self._granted and not self._grant():
            self._queue.drop("connection")
            return
        self._granted -= 1
        decided = Sidestep(id=record.id, inspected=True)
        http = self._http(self._concealed(record))
        self._queue.add(
            eve.record(
                time.time_ns(), self._origin(), http, transaction=record.number, sidestep=self._directed(decided)
            )
        )

    def _grant(self) -> int:
        """Take what there is of SAMPLES, some at once."""
        now = self._queue.now
        if self._samples is None:
            self._samples = TokenBucket(rate=SAMPLES[0], burst=SAMPLES[1], now=now)
        wanted = min(GRANT, int(self._samples.level(now)))
        if self._samples.take(now, wanted):
            self._granted = wanted
        return self._granted

    def encode(self, at: int, sample: Sample) -> bytes:
        """See `record_queue.Maker`."""
        if self._inspection.is_outdated:
            self._follow()
        if self._sampled is None:
            decided = self._directed(Sidestep(inspected=True))
            self._sampled = SampledRecords(self._origin(), self._redaction, decided)
        return self._sampled.encode(at, sample)

    def uninspected(self, reason: str, *, closed: bool) -> None:
        """See `records.Observer`. The log and the counts are about ports with policies only."""
        if self._is_inspected:
            self._counts.uninspected(reason, closed=closed)
        listeners = self._port.listeners
        if not self._may_tell_hit(listeners):
            return
        self._tell_tls(listeners, to_log=self._is_inspected)
        noticed = Anomaly(
            app_proto=self._protocol or None,
            type="applayer",
            event=reason,
            layer="proto_parser" if self._protocol else "proto_detect",
        )
        action = RecordedAction.CLOSE if closed else RecordedAction.PASS
        decided = Sidestep(action=action, inspected=False, reason=reason)
        self._put(
            eve.record(time.time_ns(), self._origin(), noticed, sidestep=self._directed(decided)),
            listeners,
            is_alert=True,
        )

    # --- live_exchanges.Teller --------------------------------------------------------------------------------------

    def told(self, record: ExchangeRecord, rules: tuple[Rule, ...]) -> None:
        """See `live_exchanges.Teller`."""
        self._protocol = _name(record.protocol)
        self._tell_tls(rules, to_log=False)
        decided = Sidestep(inspected=self._is_inspected)
        http = self._http(self._concealed(record))
        made = eve.record(
            time.time_ns(), self._origin(), http, transaction=record.number, sidestep=self._directed(decided)
        )
        self._queue.live.add(made, [rule.uid for rule in rules])

    def over(self) -> None:
        """See `live_exchanges.Teller`: tell of the end those who were told of the connection after it."""
        if self._ended is not None:
            made, told = self._ended
            self._queue.live.add(made, self._live - told)

    # --- TLS --------------------------------------------------------------------------------------------------------

    def opened(self, tls: OpenedTls, hello: bytes, hellos: KeptHellos) -> None:
        """Learn that TLS was opened. The records that the ClientHello came in are kept among `hellos`, if need be."""
        self._tls = tls
        at_once = self.sampling.chooses_any or self._port.outward is not None
        if at_once or self._port.listeners:
            self._described = tls.describe(hello)  # requests are told later, when the connection may be over
        else:
            self._hello = hellos.keep(hello)
        if at_once:
            self._tell_tls((), to_log=True)

    def _describe(self, tls: OpenedTls) -> tuple[Tls, TlsDetails] | None:
        """What is said of it from now on. A record that cannot say what the client offered is counted."""
        if self._described is None:
            hello = self._take_hello()
            self._described = tls.describe(hello)
            if self._described is not None and not hello:
                self._port.counters["tls_unfingerprinted"] += 1
        return self._described

    def _take_hello(self) -> bytes:
        hello, self._hello = self._hello, None
        return hello.take() if hello is not None else b""

    def _tell_tls(self, listeners: tuple[Rule, ...], *, to_log: bool) -> None:
        """Tell the log of TLS, and the sessions that get other records than alerts: each once."""
        new = [rule.uid for rule in listeners if rule.records is Live.ALL and rule.uid not in self._live]
        self._live.update(new)
        to_log = to_log and not self._tls_logged
        if self._tls is None or not (to_log or new):
            return
        made = self._describe(self._tls)
        if made is not None:
            decided = Sidestep(inspected=self._is_inspected, tls=made[1])
            record = eve.record(time.time_ns(), self._origin("tls"), made[0], sidestep=self._directed(decided))
            if to_log:
                self._queue.add(record)
            self._queue.live.add(record, new)
        self._tls_logged |= to_log
        if self._tls_logged and not self._port.listeners:
            self._tls = self._described = None

    # --- the end ----------------------------------------------------------------------------------------------------

    def watch(self, client: Stream) -> Stream:
        """Return the client's stream, of whose end a record is made before it is closed."""
        if isinstance(client, TlsStream):
            client.before_close = partial(self._closing, client.sock, client.before_close)
            return client
        return WatchedStream(client.sock, partial(self._closing, client.sock))

    def _closing(self, client: socket.socket, before: Callable[[], None] | None = None) -> None:
        if before is not None:
            before()
        self._take_hello()
        to_log = self._has_told or self.sampling.chooses_any
        if not (to_log or self._live or self._port.listeners):
            return
        now = time.time_ns()
        flow = flow_of(client, began=self._began, now=now, alerted=self._has_alerted)
        if flow is None:
            return
        decided = Sidestep(inspected=bool(self._protocol) and self._is_inspected)
        made = eve.record(now, self._origin(), flow, sidestep=self._directed(decided))
        if to_log:
            self._queue.add(made)
        self._ended = made, frozenset(self._live)
        self._queue.live.add(made, self._live)

    # --- parts ------------------------------------------------------------------------------------------------------

    @property
    def _is_inspected(self) -> bool:
        """Whether policies apply to the connection."""
        return bool(self._inspection.policies)

    def speaks(self, protocol: str) -> None:
        """Learn what the connection is relayed as (an ALPN name)."""
        self._protocol = _name(protocol)

    def _listening(self, exchange: ExchangeRecord) -> tuple[Rule, ...]:
        """The sessions whose filter a request matches."""
        rules = self._port.listeners
        if not rules:
            return ()
        path = exchange.target.partition(b"?")[0]
        return tuple(rule for rule in rules if rule.matches(exchange.method, path, exchange.fields))

    def _put(self, made: Record, listeners: tuple[Rule, ...], *, is_alert: bool) -> None:
        if self._is_inspected:
            self._queue.add(made)
        if listeners:
            self._queue.live.add(made, [rule.uid for rule in listeners if is_alert or rule.records is Live.ALL])

    def _may_tell_hit(self, listeners: tuple[Rule, ...]) -> bool:
        if self._hits is None:
            self._hits = TokenBucket(rate=HITS[0], burst=HITS[1], now=self._queue.now)
        if self._hits.take(self._queue.now):
            self._has_told |= self._is_inspected
            return True
        if self._is_inspected:
            self._queue.drop("connection")
        self._queue.live.drop("connection", [rule.uid for rule in listeners])
        return False

    def _origin(self, protocol: str = "") -> Origin:
        ends = self._endpoints
        return Origin(
            flow_id=self.flow,
            client=(ends.client, ends.client_port),
            server=(ends.host, ends.port),
            protocol=protocol or self._protocol,
            kubernetes=_NOBODY,
        )

    def _follow(self) -> None:
        """Hide what the newest policies of the port want hidden."""
        latest = self._port.inspection
        if latest is not None and latest is not self._latest:
            self._latest = latest
            self._redaction = redaction_of(latest)
            if self._sampled is not None:
                self._sampled.hide(self._redaction)

    def _directed(self, decided: Sidestep) -> Sidestep:
        """What was decided, with the direction where it is not that of clients."""
        outward = self._port.outward
        return decided if outward is None else eve.outwards(decided, outward.name)

    def _http(self, exchange: ExchangeRecord) -> Http:
        if self._port.inspection is not self._latest:
            self._follow()
        return eve.http(
            method=exchange.method,
            target=exchange.target,
            authority=exchange.host,
            fields=exchange.fields,
            stream=exchange.stream or None,
            protocol=VERSIONS.get(exchange.protocol, ""),
            status=exchange.status or None,
            answer=exchange.answer,
            length=exchange.length,
            redaction=self._redaction,
        )

    def _concealed(self, exchange: ExchangeRecord) -> ExchangeRecord:
        """The exchange without texts in which a pattern is found."""
        if self._port.inspection is not self._latest:
            self._follow()
        if not (self._inspection.has_patterns or self._latest.has_patterns):
            return exchange
        return replace(
            exchange,
            method=self._plain(exchange.method),
            target=self._plain(exchange.target),
            host=self._plain(exchange.host),
            fields=self._plain_fields(exchange.fields),
            answer=self._plain_fields(exchange.answer),
        )

    def _plain(self, text: bytes) -> bytes:
        is_found = self._inspection.finds(text) or (self._latest is not self._inspection and self._latest.finds(text))
        return REDACTED if is_found else text

    def _plain_fields(self, fields: Fields) -> Fields:
        return [(name, self._plain(value)) for name, value in fields if name in _SHOWN]


def _name(protocol: str) -> str:
    """The protocol as Suricata names it."""
    return "http2" if protocol == "h2" else "http"
