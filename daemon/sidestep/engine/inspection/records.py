"""What inspection tells of a connection: hits of rules, sampled requests, and what was not inspected.

A relay that inspects has one `Observer`. It is called synchronously, in the order of events, and must neither block nor
raise: it counts and queues.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

from sidestep.policy.accepted_policy import Outcome

if TYPE_CHECKING:
    from sidestep.engine.inspection.samples import Sample
    from sidestep.policy.route import Fields


class ExchangeRecord(msgspec.Struct, frozen=True):
    """What is known of an exchange when a hit is told of it. Values are bytes as sent, nothing is redacted.

    `id` names the exchange: all that is told of it has this name, and so does the answer that a blocked client gets.
    `protocol` is "http/1", "http/1.0" or "h2"; `number` counts the requests of the connection from 0, None where nobody
    counts; `stream` is the HTTP/2 stream (0 for HTTP/1). `target` is path and query, `fields` are those of the request
    with names in lower case and `host` among them. `status` is None, and `answer` empty, until the final response head
    was read; `length` are the bytes of the response's body, None unless they were counted to its end.
    """

    id: str
    protocol: str
    number: int | None
    stream: int
    method: bytes
    target: bytes
    host: bytes
    fields: Fields
    status: int | None = None
    answer: Fields = ()
    length: int | None = None


class FileRecord(msgspec.Struct, frozen=True):
    """A body in which a rule has found something: of the response if `in_response`, else of the request.

    `size` are the bytes that were seen of it, decoded; `sha256` (hexadecimal digits) is None unless `is_whole`: it was
    seen to its end, and is no longer than what is hashed.
    """

    exchange: ExchangeRecord
    in_response: bool
    size: int
    sha256: str | None

    @property
    def is_whole(self) -> bool:
        """See the class."""
        return self.sha256 is not None


class HitRecord(msgspec.Struct, frozen=True):
    """One rule that applied to an exchange.

    `action` is what was done; `would_block` says that a policy in Detect mode would have blocked. `told` is False
    beyond the rule's rate limit. `pattern` names what was found, and is empty without a pattern; what it was found in
    is never part of a record. `in_response`: the rule is about the response. `at` is in monotonic seconds.
    """

    exchange: ExchangeRecord
    policy: str
    rule: str
    action: Outcome
    would_block: bool
    told: bool
    pattern: str
    in_response: bool
    at: float


class Observer(Protocol):
    """Whoever is told of hits and of what was not inspected."""

    def hit(self, record: HitRecord) -> None:
        """Learn that a rule applied."""

    def sampled(self, sample: Sample) -> None:
        """Learn that a sampled exchange to which no rule applied is over."""

    def file(self, record: FileRecord) -> None:
        """Learn of a body in which a rule has found something, after the hit."""

    def answered(self, record: ExchangeRecord) -> None:
        """Learn how a request was answered of which a hit was told before that; the exchange is over."""

    def uninspected(self, reason: str, *, closed: bool) -> None:
        """Learn that something was not inspected: passed on unread, or refused if `closed`.

        `reason` is a stable, short word, used as a metric label: an anomaly of the engines (`h1-ambiguous-length`), or
        `request-` or `response-` with a reason of `protocols.decoding`, `policy.inspected_exchange.Unread` or `engine.
        inspection.judged` (`window`, `slow`).
        """
