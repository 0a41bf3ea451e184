"""In what an answer differs from the one that was recorded.

status    always
fields    those that the recorded answer has, but for those that differ from one answer to the next
body      if it was recorded: its bytes; else its size, where that was counted without the framing of chunks
"""

from __future__ import annotations

from typing import Final

from sidestep.laptop.replay.message import Incoming
from sidestep.model.secret_fields import REDACTED, SECRET
from sidestep.protocols import har

VOLATILE: Final = frozenset(
    (
        "age",
        "alt-svc",
        "connection",
        "content-length",
        "date",
        "etag",
        "expires",
        "keep-alive",
        "last-modified",
        "server",
        "server-timing",
        "traceparent",
        "tracestate",
        "trailer",
        "transfer-encoding",
        "via",
        "x-amzn-trace-id",
        "x-request-id",
        "x-runtime",
    )
)
"""Fields of an answer that say nothing about what it is, or differ each time."""
SHOWN: Final = 80
"""Characters of a value that are shown."""


def differences(recorded: har.Response, answer: Incoming) -> list[str]:
    """Return what differs, as texts for people; empty if nothing does."""
    if recorded.status != answer.status:
        return [f"status {recorded.status or 'none'}, now {answer.status}"]
    found = [*_fields(recorded, answer)]
    body = _body(recorded, answer)
    return [*found, body] if body else found


def _fields(recorded: har.Response, answer: Incoming) -> list[str]:
    now: dict[str, list[str]] = {}
    for raw, value in answer.fields:
        now.setdefault(raw.decode("latin-1").lower(), []).append(value.decode("utf-8", "replace").strip())
    before: dict[str, list[str]] = {}
    for field in recorded.headers:
        name = field.name.lower()
        if (
            name not in VOLATILE
            and name.encode() not in SECRET
            and field.value != REDACTED.decode()
            and name[:1] != ":"
        ):
            before.setdefault(name, []).append(field.value.strip())
    return [
        f"{name}: {_shown(values)}, now {_shown(now.get(name, []))}"
        for name, values in before.items()
        if values != now.get(name)
    ]


def _shown(values: list[str]) -> str:
    text = ", ".join(values) if values else "missing"
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def _body(recorded: har.Response, answer: Incoming) -> str:
    content = recorded.content
    if isinstance(content.text, str):
        body = har.body_bytes(content.text, content.encoding)
        if body is None or body == answer.body:
            return ""
        at = next((at for at, (a, b) in enumerate(zip(body, answer.body, strict=False)) if a != b), None)
        where = f"from byte {at}" if at is not None else "after the first"
        return f"body: {len(body)} bytes, now {len(answer.body)}, different {where}"
    chunked = any(field.name.lower() == "transfer-encoding" for field in recorded.headers)
    encoded = any(name == b"content-encoding" for name, _ in answer.fields)
    if recorded.body_size < 0 or chunked or (encoded and not recorded.headers):
        return ""
    if recorded.body_size != len(answer.body):
        return f"body: {recorded.body_size} bytes, now {len(answer.body)}"
    return ""
