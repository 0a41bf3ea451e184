"""Sanitises messages from a pod proxy, which is not trusted.

Whoever took a proxy over sends messages that are well formed (the codec checks that) and otherwise arbitrary. What is
kept, shown or passed on is bounded here, on arrival: no later reader (status, metrics, events of a session) has to
check it, and one pod can neither fill the daemon's memory nor make `sidestep status` useless for the others. An honest
proxy stays far below these bounds.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from msgspec.structs import astuple, replace

from sidestep.model.pod import Family
from sidestep.model.shown import MAX_LAST
from sidestep.node.planning.readiness import KINDS
from sidestep.proxy.control.messages import (
    MAX_CERTIFICATE,
    MAX_LINES,
    MAX_TEXT,
    MAX_TLS_TEXT,
    Heartbeat,
    Hindered,
    LoggedAnswer,
    LoggedRequest,
    LoggedTls,
    LostCopies,
    Probed,
    Requests,
)
from sidestep.snapshots.hindrance import Hindrance

MAX_WORDS = 64
"""Different counters of one port, or reasons of anomalies; what is beyond is summed under `other`."""
MAX_FIELDS = 8192
"""Characters of all fields of one request together; a proxy sends half of it (policy.redaction)."""
MAX_LINE_FIELDS = 256
"""Fields of one request; as many as a relay reads (`Http1Limits.fields`)."""
MAX_ADDRESS = 64
"""Characters of a client's address."""
MAX_LOST = 1 << 32
"""Copies lost at once; a proxy tells twice a second."""

MAX_SECONDS = 10 * 365 * 86400.0
"""Seconds that a request may be old, or have taken."""
MAX_BYTES = 1 << 62
"""Bytes of a body."""

MAX_HINDRANCES = 8192
"""Hindrances of one proxy: several of each family of its ports, of which 1,024 can be steered."""

_FAMILIES = frozenset({0, *(int(family) for family in Family)})
_ERRORS = 4096
"""Error numbers of Linux are smaller (include/linux/err.h, MAX_ERRNO)."""
_REASONS = frozenset({"handler", "room", "budget"})
_ANSWERERS = frozenset({"app", "handler", "sidestep"})
_PROTOCOLS = frozenset({"http/1.0", "http/1.1", "h2", "http", "tls", "tcp"})
_TRACE = re.compile(r"[0-9a-f]{16}(?:[0-9a-f]{16})?")
_WORD = re.compile(r"[a-z0-9_-]{1,48}")


def heartbeat(beat: Heartbeat, *, ports: Collection[int]) -> Heartbeat:
    """Counters of these ports, and of 0, which stands for all UDP ports together."""
    counted = {number: counters(each) for number, each in beat.ports.items() if number in ports or number == 0}
    return replace(beat, ports=counted, anomalies=counters(beat.anomalies))


def counters(counts: Mapping[str, int]) -> dict[str, int]:
    """At most MAX_WORDS words; everything else, and what is no word of ours, summed under `other`."""
    words = [word for word in counts if _WORD.fullmatch(word) and word != "other"]
    if len(words) > MAX_WORDS:
        words = sorted(words)[:MAX_WORDS]
    kept = {word: counts[word] for word in words}
    rest = sum(counts.values()) - sum(kept.values())
    return kept | ({"other": rest} if rest else {})


def requests(message: Requests, *, uids: Collection[str]) -> Requests:
    """The lines about these rules."""
    lines = tuple(_line(line) for line in message.requests[:MAX_LINES] if line.uid in uids)
    losses = tuple(_loss(loss) for loss in message.losses[:MAX_LINES] if loss.uid in uids and 0 < loss.count < MAX_LOST)
    earlier = tuple(each for each in message.earlier[:MAX_LINES] if each.uid in uids and 0 <= each.count <= MAX_LAST)
    return replace(message, requests=lines, losses=losses, earlier=earlier)


def probed(message: Probed) -> Probed:
    """The finding, with a certificate that can be one."""
    certificate = message.certificate if len(message.certificate) <= MAX_CERTIFICATE else b""
    return replace(message, alpn=message.alpn[:MAX_ADDRESS], certificate=certificate)


def hindrances(message: Hindered, *, ports: Collection[int]) -> tuple[Hindrance, ...]:
    """The hindrances of a known kind, about these ports or all; at most one of each."""
    told = {
        (each.kind, each.port, each.family): each
        for each in message.hindrances[:MAX_HINDRANCES]
        if each.kind in KINDS and (each.port in ports or each.port == 0) and each.family in _FAMILIES
    }
    return tuple(each if 0 <= each.error < _ERRORS else replace(each, error=0) for each in told.values())


def _loss(loss: LostCopies) -> LostCopies:
    return replace(loss, reason=loss.reason if loss.reason in _REASONS else "room")


def _line(line: LoggedRequest) -> LoggedRequest:
    fields, room = [], MAX_FIELDS
    for name, value in line.fields[:MAX_LINE_FIELDS]:
        room -= min(len(name), MAX_TEXT) + min(len(value), MAX_TEXT)
        if room < 0:
            break
        fields.append((name[:MAX_TEXT], value[:MAX_TEXT]))
    return replace(
        line,
        client=line.client[:MAX_ADDRESS],
        method=line.method[:MAX_TEXT],
        path=line.path[:MAX_TEXT],
        authority=line.authority[:MAX_TEXT],
        lost=line.lost if line.lost in {"dropped", "truncated"} else "",
        server=line.server[:MAX_ADDRESS],
        protocol=line.protocol if line.protocol in _PROTOCOLS else "",
        fields=tuple(fields),
        age=_seconds(line.age),
        trace=line.trace if _TRACE.fullmatch(line.trace) else "",
        number=line.number if 0 <= line.number < MAX_BYTES else 0,
        answer=None if line.answer is None else _answer(line.answer),
        tls_facts=None if line.tls_facts is None else _tls(line.tls_facts),
    )


def _tls(facts: LoggedTls) -> LoggedTls:
    return LoggedTls(*(text[:MAX_TLS_TEXT] for text in astuple(facts)))


def _answer(answer: LoggedAnswer) -> LoggedAnswer:
    return LoggedAnswer(
        status=answer.status if 0 <= answer.status <= 999 else 0,
        by=answer.by if answer.by in _ANSWERERS else "",
        handler=answer.handler[:MAX_TEXT],
        seconds=_seconds(answer.seconds),
        sent=min(max(answer.sent, 0), MAX_BYTES),
        received=min(max(answer.received, 0), MAX_BYTES),
        is_whole=answer.is_whole,
        head=answer.head[:MAX_FIELDS],
    )


def _seconds(seconds: float) -> float:
    """Not so when it is no number."""
    return seconds if 0.0 <= seconds <= MAX_SECONDS else 0.0
