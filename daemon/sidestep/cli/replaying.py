"""What `sidestep policy check --replay` prints: a capture read piece by piece, each request with its verdict."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from sidestep.aio.named_file import opened
from sidestep.cli.firewall_child import FirewallChild
from sidestep.cli.output import json_line
from sidestep.cli.report import clock
from sidestep.engine.inspection.records import HitRecord
from sidestep.engine.replay import ABOUT_THE_CAPTURE, NotInspected, Replay, ReplayedRequest
from sidestep.model.errors import ConfigurationError
from sidestep.model.inspection import InspectionPolicy
from sidestep.model.text import harmless
from sidestep.policy.accepted_policy import Outcome
from sidestep.protocols.eve import FIREWALL, firewall_alert
from sidestep.protocols.eve_redaction import Redaction, text
from sidestep.protocols.pcapng_reader import Packet, Reader
from sidestep.protocols.tcp_segments import Segment, find

PIECE = 256 * 1024
"""Bytes of a capture that are read at once."""
PROGRESS = 2.0
"""Seconds between two lines of progress, and before the first."""

Say = Callable[[dict[str, Any], str], None]
"""Prints one finding: as JSON, or as text."""


def say_json(value: dict[str, Any], line: str) -> None:
    """Print the JSON of a finding."""
    del line
    click.echo(json_line(value))


def say_text(value: dict[str, Any], line: str) -> None:
    """Print the text of a finding."""
    del value
    click.echo(harmless(line))


class Progress:
    """Lines on standard error while something takes long."""

    def __init__(self) -> None:
        self._next = time.monotonic() + PROGRESS

    def tell(self, line: str) -> None:
        """Print a line, if the last one was long enough ago."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + PROGRESS
            click.echo(f"sidestep: {harmless(line)}", err=True)


class _Report:
    """Prints what a replay finds, and counts it."""

    def __init__(self, policies: Sequence[InspectionPolicy], say: Say, names: Mapping[int, str]) -> None:
        self._names = names
        redactions = [each.redaction for each in policies]
        self._redaction = Redaction(any(each.query_values for each in redactions))
        self._closes = any(each.closes for each in policies)
        self._say = say
        self._outcomes: Counter[Outcome] = Counter()
        self._not_inspected: Counter[str] = Counter()
        self._other: Counter[str] = Counter()

    @property
    def requests(self) -> int:
        """How many were judged."""
        return self._outcomes.total()

    def other_packet(self, kind: str) -> None:
        """Count a packet that is no TCP segment."""
        self._other[kind] += 1

    def found(self, found: Iterable[ReplayedRequest | NotInspected]) -> None:
        """Print what a replay found."""
        for each in found:
            if isinstance(each, NotInspected):
                self._say_not_inspected(each)
            else:
                self._say_request(each)

    def _say_request(self, request: ReplayedRequest) -> None:
        self._outcomes[request.outcome] += 1
        self._not_inspected.update(request.unread)
        host, target = text(request.host), self._redaction.url(request.target)
        verdict = request.outcome.name.capitalize()
        hits = [
            {
                "policy": hit.policy,
                "rule": hit.rule,
                "action": hit.action.name.capitalize(),
                "wouldBlock": hit.would_block,
                "told": hit.told,
                "pattern": hit.pattern,
                **self._found(hit),
            }
            for hit in request.hits
        ]
        value = {
            "event": "request",
            "verdict": verdict,
            "time": request.at,
            "connection": request.where.number,
            "client": request.where.client,
            "server": request.where.server,
            "number": request.number,
            "protocol": request.protocol,
            "method": text(request.method),
            "host": host,
            "target": target,
            "hits": hits,
            "notInspected": request.unread,
        }
        where = f"{host}{target}" if request.target.startswith(b"/") else target
        found = [*map(self._hit_text, request.hits), *map(self._unread_text, request.unread)]
        reasons = "; ".join(dict.fromkeys(found))
        line = f"{verdict:<5}  {clock(request.at)}  {text(request.method)} {where}  from {request.where.client}"
        self._say(value, f"{line}  {reasons}" if reasons else line)

    def _say_not_inspected(self, each: NotInspected) -> None:
        self._not_inspected[each.reason] += 1
        value = {
            "event": "not-inspected",
            "reason": each.reason,
            "time": each.at,
            "connection": each.where.number,
            "client": each.where.client,
            "server": each.where.server,
        }
        line = f"-      {clock(each.at)}  {each.where.client} to {each.where.server}: not inspected: {each.reason}"
        closed = self._closes and each.reason not in ABOUT_THE_CAPTURE
        self._say(value, f"{line}, which Fail closes" if closed else line)

    def _found(self, hit: HitRecord) -> dict[str, str]:
        """What the rules of a firewall say that matched."""
        if hit.rule != FIREWALL:
            return {}
        alert = firewall_alert(hit.policy, hit.pattern, self._names, blocked=False)
        return {} if alert is None else {"found": alert.signature.removeprefix(f"{hit.policy}: ")}

    def _hit_text(self, hit: HitRecord) -> str:
        what = self._found(hit).get("found", hit.pattern)
        action = "would block: " if hit.would_block else ""
        pattern = f" ({what})" if what else ""
        return f"{action}policy {hit.policy}, rule {hit.rule}{pattern}" + (
            "" if hit.told else ", beyond its rate limit"
        )

    def _unread_text(self, reason: str) -> str:
        """A part of an exchange that was not inspected; Fail refuses the exchange if a rule could have blocked it."""
        return f"not inspected: {reason}" + (", which Fail refuses where a rule blocks" if self._closes else "")

    def summary(self, replay: Replay) -> None:
        """Print the counts."""
        counts = {outcome.name.capitalize(): self._outcomes[outcome] for outcome in reversed(Outcome)}
        value = {
            "event": "summary",
            "connections": replay.connections,
            "requests": self.requests,
            "verdicts": counts,
            "notInspected": dict(self._not_inspected),
            "midstream": replay.midstream,
            "otherPackets": dict(self._other),
        }
        verdicts = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
        first = f"{_counted(self.requests, 'request')}, {_counted(replay.connections, 'connection')}"
        parts = [f"{first}: {verdicts}" if verdicts else first]
        if self._not_inspected:
            reasons = ", ".join(f"{name} {count}" for name, count in sorted(self._not_inspected.items()))
            parts.append(f"not inspected: {reasons}")
        if replay.midstream:
            parts.append(f"{replay.midstream} packets of connections that began before the capture")
        self._say(value, "; ".join(parts))


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def replay_capture(
    policies: Sequence[InspectionPolicy],
    capture: Path,
    say: Say,
    progress: Progress,
    firewall: FirewallChild | None = None,
) -> None:
    """Judge the requests of a capture. Raises ConfigurationError, after telling what is before the fault."""
    replay = Replay(policies, None if firewall is None else (firewall.settings, firewall.ask))
    report, reader = _Report(policies, say, {} if firewall is None else firewall.names), Reader()
    fault: ConfigurationError | None = None
    at, size = 0.0, 0
    with opened(capture, subject="--replay") as file:
        while fault is None and (data := file.read(PIECE)):
            size += len(data)
            try:
                found = reader.feed(data)
            except ConfigurationError as error:
                fault, found = error, []
            for packet in found:
                if isinstance(packet, Packet):
                    at = max(at, (packet.timestamp or 0) / 1e9)
                    segment = find(packet.interface.link_type, packet.data)
                    if isinstance(segment, Segment):
                        report.found(replay.feed(segment, at))
                    else:
                        report.other_packet(segment)
            progress.tell(f"{capture}: {size >> 20} MiB are read, {report.requests} requests judged")
    report.found(replay.finish(at))
    report.summary(replay)
    if fault is not None:
        raise fault
    reader.finish()
