"""How many arguments a request has."""

import pytest

from sidestep.inspector.arguments import count_arguments

FORM = b"application/x-www-form-urlencoded"
JSON = b"application/json"


@pytest.mark.parametrize(
    ("target", "kind", "body", "count"),
    [
        (b"/", None, b"", 0),
        (b"/?", None, b"", 0),
        (b"/?a=1", None, b"", 1),
        (b"/?a=1&b=2&", None, b"", 3),
        (b"/?a=1", FORM, b"b=2&c=3", 3),
        (b"/", FORM + b"; charset=utf-8", b"b=2&c=3", 2),
        (b"/", JSON, b'{"a": [1, {"b": null}], "c": "x, y, z"}', 3),
        (b"/", JSON, b"[]", 0),
        (b"/", JSON, b"3", 1),
        (b"/", b"Application/Problem+JSON; charset=utf-8".replace(b"Problem", b"problem"), b"[1,2]", 2),
        (b"/", JSON, b'[1,2,{"a":', 4),
        (b"/", JSON, b"[" * 100_000, 100_000),
        (b"/", b"multipart/form-data; boundary=X", b"--X\r\n\r\na\r\n--X\r\n\r\nb\r\n--X--", 3),
        (b"/", b'multipart/form-data; boundary="X Y"', b"--X Y\r\n", 1),
        (b"/", b"multipart/form-data", b"--X\r\na\r\n--X", 1),
        (b"/", b"text/plain", b"a=1&b=2", 0),
    ],
)
def test_arguments_are_counted(target, kind, body, count):
    fields = () if kind is None else ((b"Content-Type", kind),)
    assert count_arguments(target, fields, body) == count
