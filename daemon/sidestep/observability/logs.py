"""Structured logs: one JSON object per line on stderr, one line per event.

In: `logger.info("pod steered", pod="shop/orders-1", ports=[8443])`. Out: one JSON object with `time` (UTC, RFC 3339),
`level`, `event` and the fields given. Warnings and errors of the standard library's logging (asyncio, other packages)
are written in the same form, so that every line of stderr is JSON.

A line never contains keys or bodies: the values of fields in SECRET_FIELDS are replaced, bytes are shown as their
length only, and a text that contains a PEM private key is replaced as a whole. Texts are cut after MAX_TEXT characters,
so that a peer cannot flood the log through one field.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any, TextIO, cast

import structlog

from sidestep.observability.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

MAX_TEXT = 2000
"""Most characters of one field of a log line; the rest is cut."""

SECRET_FIELDS = frozenset(
    {"authorization", "body", "cookie", "key", "password", "pem", "private_key", "proxy-authorization", "set-cookie"}
)
"""Field names, lower case, whose value is never written."""

_SPOOLS: list[Spool] = []
"""The spool of this process, once it has logged; at most one."""

Logger = structlog.typing.FilteringBoundLogger


def configure(stream: TextIO | None = None, *, level: int = logging.INFO) -> None:
    """Send every log line of this process to `stream` as JSON, by default to standard error through a `Spool`.

    May be called again.
    """
    target = _spool() if stream is None else stream
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            structlog.processors.format_exc_info,
            redact,
            structlog.processors.JSONRenderer(serializer=json.dumps, default=str),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", target)),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    for old in [handler for handler in root.handlers if isinstance(handler, _Forward)]:
        root.removeHandler(old)
    root.addHandler(_Forward())
    root.setLevel(logging.WARNING)


def drain() -> None:
    """Wait until everything logged so far is written, at most `spool.FAREWELL` seconds for each step."""
    for spool in _SPOOLS:
        spool.drain()


def _spool() -> Spool:
    if not _SPOOLS:
        _SPOOLS.append(Spool(2))
    return _SPOOLS[0]


def get_logger(component: str) -> Logger:
    """A logger whose lines carry `component`."""
    logger: Logger = structlog.get_logger(component=component)
    return logger


def redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """A structlog processor: replaces secret values and cuts long ones."""
    return {name: _shown(name, value) for name, value in event.items()}


def _shown(name: str, value: object) -> object:
    if name.lower() in SECRET_FIELDS:
        return "(not logged)"
    if isinstance(value, bytes | bytearray | memoryview):
        return f"({len(value)} bytes)"
    if isinstance(value, str):
        if "PRIVATE KEY-----" in value:
            return "(not logged)"
        return value if len(value) <= MAX_TEXT else value[:MAX_TEXT] + "…"
    if isinstance(value, dict):
        return {str(inner): _shown(str(inner), held) for inner, held in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_shown("", held) for held in value]
    return value


class _Forward(logging.Handler):
    """Hands records of the standard library's logging to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        logger: Logger = structlog.get_logger(component=record.name)
        logger.log(record.levelno, record.getMessage(), exc_info=record.exc_info or None)
