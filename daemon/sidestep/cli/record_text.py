"""Records of inspection as lines for people. All text of a record is from the network, and is made harmless.

Source and destination are shown as a record has them: for what a rule found in a response the server is the source.
"""

from __future__ import annotations

from typing import Final

from sidestep.model.text import harmless
from sidestep.protocols.eve_records import Http, Record, RecordedAction, Tls

MAX_TEXT: Final = 512
"""Characters of one text that are shown."""
_RED, _YELLOW, _GREEN, _FAINT, _PLAIN = "31", "33", "32", "2", ""
_WORDS: Final = {
    RecordedAction.LOG: ("LOGGED", _PLAIN),
    RecordedAction.ALERT: ("ALERT", _YELLOW),
    RecordedAction.WOULD_BLOCK: ("WOULD BLOCK", _YELLOW),
    RecordedAction.BLOCK: ("BLOCKED", _RED),
    RecordedAction.PASS: ("NOT INSPECTED", _YELLOW),
    RecordedAction.CLOSE: ("CLOSED UNREAD", _RED),
}
"""What was done, as it is shown."""


class RecordText:
    """Makes lines. With `colour` they have escape sequences of SGR (ECMA-48 section 8.3.117)."""

    def __init__(self, *, colour: bool) -> None:
        self._colour = colour

    def line(self, record: Record) -> str:
        """The line of a record; empty for one that is not shown, a `flow`."""
        if record.tls is not None:
            parts = [self._paint("TLS", _FAINT), *_tls(record.tls, record)]
        elif record.http is not None:
            parts = [*self._verdict(record), _request(record.http), *self._status(record.http)]
        elif record.anomaly is not None:
            parts = [*self._verdict(record), _short(record.anomaly.event)]
        else:
            return ""
        pod = f"{record.kubernetes.namespace}/{record.kubernetes.pod}"
        ends = f"{_address(record.src_ip, record.src_port)} -> {_address(record.dest_ip, record.dest_port)}"
        where = f"{ends}  pod {_short(pod)}"
        return "  ".join((record.timestamp[11:19], *filter(None, parts), self._paint(where, _FAINT)))

    def _verdict(self, record: Record) -> list[str]:
        """What was decided, by which rule."""
        decided = record.sidestep
        if decided is None or decided.action is None:
            return []
        word, colour = _WORDS.get(decided.action, (decided.action, _PLAIN))  # type: ignore[call-overload]
        parts = [self._paint(_short(word), colour)]
        if decided.policy is not None and decided.rule is not None:
            parts.append(f"{_short(decided.policy)}: {_short(decided.rule)}")
        if decided.pattern is not None:
            parts.append(f"({_short(decided.pattern)})")
        if decided.id is not None:
            parts.append(f"id {_short(decided.id)}")
        return parts

    def _status(self, http: Http) -> list[str]:
        if http.status is None:
            return []
        colours = {2: _GREEN, 4: _YELLOW, 5: _RED}
        return [self._paint(str(http.status), colours.get(http.status // 100, _PLAIN))]

    def _paint(self, text: str, colour: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._colour and colour else text


def _request(http: Http) -> str:
    target = f"{http.hostname or ''}{http.url}" if http.url.startswith("/") else http.url
    return f"{_short(http.http_method)} {_short(target)}"


def _tls(tls: Tls, record: Record) -> list[str]:
    details = record.sidestep.tls if record.sidestep is not None else None
    parts = [tls.version.removeprefix("TLS "), _short(tls.sni or "no server name")]
    if details is not None and details.alpn is not None:
        parts.append(_short(details.alpn))
    if tls.ja4 is not None:
        parts.append(f"JA4 {_short(tls.ja4)}")
    if details is not None and details.weak:
        parts.append(f"weak: {_short(', '.join(details.weak))}")
    return parts


def _address(host: str | None, port: int | None) -> str:
    shown = _short(host or "?")
    return f"[{shown}]:{port}" if ":" in shown else f"{shown}:{port}"


def _short(text: str) -> str:
    return harmless(text, MAX_TEXT)
