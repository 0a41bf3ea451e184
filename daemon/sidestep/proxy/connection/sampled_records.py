"""Encodes the records of sampled requests of one connection.

These records are many, and most of what stands in them is the same for all requests of a connection, or as it was for
the request before. So a record is put together from pieces of MessagePack, and only those are encoded that differ: 1.3
µs for a request like the one before and 4 for another one, instead of 14 through `eve.record` and its types. A test
compares both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from sidestep.protocols import eve
from sidestep.protocols.eve_records import Sidestep
from sidestep.protocols.eve_redaction import is_plain, text

if TYPE_CHECKING:
    from sidestep.engine.inspection.samples import Sample
    from sidestep.protocols.eve_records import Origin
    from sidestep.protocols.eve_redaction import Redaction

VERSIONS: Final = {"http/1.0": "HTTP/1.0", "http/1": "HTTP/1.1"}
"""The names of protocols in records, by those of the engines."""
REMEMBERED: Final = 4096
"""Bytes of texts up to which a request, or an answer, is compared with the one after it, and so stays in memory."""
_FIXMAP: Final = 0x80
"""The first byte of a MessagePack map of less than 16 pairs, without their number. A record has 12 pairs; its `http`
has 13 at most."""
_FIXED: Final = 16
"""Such a map has fewer pairs than this."""
_SECOND: Final = 1_000_000_000
_OWN_PAIRS: Final = 3
"""Pairs of a record that are its own: timestamp, tx_id, http."""
_TIME: Final = b"\xbf"
"""What stands before a text of 31 bytes, as which times are told."""

_INSPECTED: Final = Sidestep(inspected=True)
_encode: Final = msgspec.msgpack.Encoder().encode
_TIMESTAMP, _TRANSACTION, _HTTP = map(_encode, ("timestamp", "tx_id", "http"))
_HTTP_OF: Final = [_HTTP + bytes((_FIXMAP + pairs,)) for pairs in range(_FIXED)]
"""`http` with so many pairs, without these."""
_URL, _FORWARDED, _REFERER = map(_encode, ("url", "xff", "http_refer"))
_SHORT: Final = [_encode("x" * length)[:-length] if length else _encode("") for length in range(256)]
"""What stands before a text of so many bytes."""
_STREAM: Final = _encode("http2") + bytes((_FIXMAP + 1,)) + _encode("stream_id")
"""The pair of `http` that tells of a stream, without its number."""


class SampledRecords:
    """See the module. `redaction` may change."""

    __slots__ = (
        "_answer", "_answer_pairs", "_answered", "_asked", "_at", "_begun", "_connection", "_hides_forwarded",
        "_length", "_pairs", "_redaction", "_request", "_request_pairs", "_requested", "_same", "_second", "_status",
        "_until_second",
    )  # fmt: skip

    def __init__(self, origin: Origin, redaction: Redaction, decided: Sidestep = _INSPECTED) -> None:
        shared = _encode(
            {
                "flow_id": origin.flow_id,
                "event_type": "http",
                "src_ip": origin.client[0],
                "src_port": origin.client[1],
                "dest_ip": origin.server[0],
                "dest_port": origin.server[1],
                "proto": "TCP",
                "kubernetes": {},
                "sidestep": decided,
            }
        )
        self._connection = bytes((shared[0] + _OWN_PAIRS,)) + shared[1:] + _TIMESTAMP + _TIME
        self.hide(redaction)
        self._asked: object = None
        """What tells of the last request (`Sample.asked`) ..."""
        self._requested = b""
        """... and the pairs of `http` that show it, ..."""
        self._request_pairs = 0
        self._request: tuple[str, bytes, bytes, bytes] | None = None
        """... of which these texts ..."""
        self._same = b""
        """... are shown so."""
        self._pairs = 0
        self._answer: tuple[bytes, bytes] | None = None
        """What is told of its answer (`Sample.answer`, `status`, `length`), and the pairs that show it."""
        self._status: int | None = None
        self._length: int | None = None
        self._answered = b""
        self._answer_pairs = 0
        self._at = -1
        """The time of the last record, ..."""
        self._begun = b""
        """... which begins so; ..."""
        self._second = -1
        self._until_second = b""
        """... up to the second so."""

    def hide(self, redaction: Redaction) -> None:
        """Hide this from now on."""
        self._redaction = redaction
        self._hides_forwarded = b"x-forwarded-for" in redaction.headers
        self._asked = self._request = self._answer = None

    def encode(self, at: int, sample: Sample) -> bytes:
        """The record of a sample as MessagePack; `at` is in nanoseconds since 1970."""
        asked = sample.asked
        if asked != self._asked:
            self._show_request(sample)
            self._asked = asked if sample.size <= REMEMBERED else None
        if sample.length != self._length or sample.status != self._status or sample.answer != self._answer:
            self._show_answer(sample.status, sample.answer, sample.length)
        if at != self._at:
            self._show_time(at)
        pairs = self._request_pairs + self._answer_pairs
        stream = sample.stream
        return b"".join(
            (
                self._begun, _encode(sample.number), _HTTP_OF[pairs + (stream > 0)], self._requested, self._answered,
                _STREAM + _encode(stream) if stream else b"",
            )
        )  # fmt: skip

    def _show_time(self, at: int) -> None:
        """Encode a record from its beginning to its number."""
        self._at = at
        second, rest = divmod(at, _SECOND)
        if second != self._second:
            self._second = second
            self._until_second = self._connection + eve.certificate_time(second).encode()
        self._begun = b"%b.%06d+0000%b" % (self._until_second, rest // 1000, _TRANSACTION)

    def _show_request(self, sample: Sample) -> None:
        """Encode what is told of a request."""
        protocol, method, target, host, agent, forwarded, referer = sample.request()
        request = protocol, method, host, agent
        if request != self._request:
            shown = self._shown(*request)
            self._pairs, self._same = len(shown) + 1, _encode(shown)[1:] + _URL
            self._request = request if sample.size <= REMEMBERED else None
        pairs = self._pairs
        if len(target) < len(_SHORT) and is_plain(target) is not None:  # as below, without two calls
            asked = self._same + _SHORT[len(target)] + target
        else:
            asked = self._same + _encode(self._redaction.url(target))
        if forwarded:
            pairs += 1
            if len(forwarded) < len(_SHORT) and forwarded.isascii() and not self._hides_forwarded:  # likewise
                asked += _FORWARDED + _SHORT[len(forwarded)] + forwarded
            else:
                asked += _FORWARDED + _encode(self._redaction.value(b"x-forwarded-for", forwarded))
        if referer:
            pairs += 1
            asked += _REFERER + _encode(self._redaction.value(b"referer", referer))
        self._request_pairs, self._requested = pairs, asked

    def _show_answer(self, status: int | None, answer: tuple[bytes, bytes], length: int | None) -> None:
        """Encode what is told of an answer."""
        kind, location = answer
        shown: dict[str, Any] = {}
        if kind:
            shown["http_content_type"] = text(kind.partition(b";")[0].strip())
        if location:
            shown["redirect"] = self._redaction.value(b"location", location)
        if status is not None:
            shown["status"] = status
        if length is not None:
            shown["length"] = length
        self._answer_pairs, self._answered = len(shown), _encode(shown)[1:]
        self._status, self._length = status, length
        self._answer = answer if sum(map(len, answer)) <= REMEMBERED else None

    def _shown(self, protocol: str, method: bytes, host: bytes, agent: bytes) -> dict[str, Any]:
        """How what most requests of a connection have in common is shown."""
        shown: dict[str, Any] = {"http_method": text(method)}
        if protocol in VERSIONS:
            shown["protocol"] = VERSIONS[protocol]
        else:
            shown["version"] = "2"
        name, port = eve.split_port(host.rpartition(b"@")[2])
        if name:
            shown["hostname"] = text(name)
        if port is not None:
            shown["http_port"] = port
        if agent:
            shown["http_user_agent"] = self._redaction.value(b"user-agent", agent)
        return shown
