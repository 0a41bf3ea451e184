"""In what answers differ."""

import pytest

from sidestep.laptop.replay.comparison import differences
from sidestep.laptop.replay.message import Incoming
from sidestep.protocols import har


def before(status=200, headers=(), body_size=-1, **content):
    fields = [har.Field(name, value) for name, value in headers]
    return har.Response(status, headers=fields, body_size=body_size, content=har.Content(**content))


def now(status=200, *fields, body=b""):
    return Incoming(status, list(fields), body, [])


@pytest.mark.parametrize(
    ("recorded", "answer", "found"),
    [
        (before(), now(), []),
        (before(), now(404), ["status 200, now 404"]),
        (before(0), now(), ["status none, now 200"]),
        (before(headers=[("Date", "x"), ("ETag", "x"), ("X-Request-Id", "1")]), now(), []),
        (before(headers=[("Set-Cookie", "[redacted]"), ("x-key", "[redacted]")]), now(), []),
        (before(headers=[("Content-Type", "a/b")]), now(200, (b"content-type", b"a/b")), []),
        (before(headers=[("Vary", "a"), ("Vary", "b")]), now(200, (b"vary", b"a"), (b"vary", b"b")), []),
        (
            before(headers=[("Location", "/a")]),
            now(200, (b"location", b"/b")),
            ["location: /a, now /b"],
        ),
        (before(headers=[("x", "y" * 200)]), now(), [f"x: {'y' * 79}…, now missing"]),
        (before(body_size=3), now(body=b"abc"), []),
        (before(body_size=3), now(body=b"abcd"), ["body: 3 bytes, now 4"]),
        (before(body_size=30, headers=[("Transfer-Encoding", "chunked")]), now(body=b"abcd"), []),
        (before(text="abc"), now(body=b"abc"), []),
        (before(text="abc"), now(body=b"abd"), ["body: 3 bytes, now 3, different from byte 2"]),
        (before(text="abc"), now(body=b"ab"), ["body: 3 bytes, now 2, different after the first"]),
        (before(text="YWJj", encoding="base64"), now(body=b"abc"), []),
    ],
)
def test_differences(recorded, answer, found):
    assert differences(recorded, answer) == found
