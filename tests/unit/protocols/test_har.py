"""HTTP Archives as they are written and read."""

import json

import pytest

from sidestep.model.errors import ConfigurationError
from sidestep.protocols import har

ENTRY = har.Entry(
    request=har.Request("POST", "http://a/x?y=1", post_data=har.PostData("text/plain", "body")),
    response=har.Response(200, "OK", content=har.Content(3, "text/plain", "abc")),
    started_date_time="2026-11-30T02:00:00.000Z",
)


def file_of(*entries):
    data = har.head("1.0")
    for number, entry in enumerate(entries):
        data += har.encode(entry, first=not number)
    return data + har.TAIL


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_file_is_json_and_is_read_again(count):
    data = file_of(*[ENTRY] * count)
    log = json.loads(data)["log"]
    assert (log["version"], log["creator"]["name"], len(log["entries"])) == ("1.2", "Sidestep", count)
    assert har.decode(data, subject="x") == [ENTRY] * count


def test_an_entry_has_all_that_the_format_asks_for():
    [entry] = json.loads(file_of(ENTRY))["log"]["entries"]
    assert {"startedDateTime", "time", "request", "response", "cache", "timings"} <= {*entry}
    assert {*entry["request"]} - {"_trailers"} == {
        "method",
        "url",
        "httpVersion",
        "cookies",
        "headers",
        "queryString",
        "postData",
        "headersSize",
        "bodySize",
    }
    assert {*entry["response"]} == {
        "status",
        "statusText",
        "httpVersion",
        "cookies",
        "headers",
        "content",
        "redirectURL",
        "headersSize",
        "bodySize",
    }
    assert entry["request"]["postData"] == {"mimeType": "text/plain", "text": "body"}
    assert {*entry["timings"]} == {"send", "wait", "receive"}


def test_a_file_of_somebody_elses_needs_little():
    data = b'{"log":{"entries":[{"request":{"method":"GET","url":"http://a/","x":1},"timings":{"wait":null}}],"z":{}}}'
    [entry] = har.decode(data, subject="x")
    assert (entry.request.method, entry.response, entry.request.body_size) == ("GET", None, -1)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b'{"log":{}}',
        b'{"log":{"entries":[{}]}}',
        b'{"log":{"entries":[{"request":{"url":1}}]}}',
        b"\xff",
    ],
)
def test_what_is_no_archive_is_refused(data):
    with pytest.raises(ConfigurationError, match="HTTP Archive"):
        har.decode(data, subject="x")


@pytest.mark.parametrize("body", [b"", b"text", "é".encode(), b"\xff\xfe\x00", bytes(range(256))])
def test_bodies_are_bytes_again(body):
    assert har.body_bytes(*har.body_text(body)) == body


def test_a_body_in_an_encoding_that_is_not_known_is_none():
    assert har.body_bytes("x", "rot13") is None
    assert har.body_bytes("?", "base64") is None
