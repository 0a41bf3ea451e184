"""What of an archive is sent again, and that nothing of it can split a request."""

import pytest

from sidestep.laptop.replay.recorded import recorded
from sidestep.protocols import har


def entry(method="GET", url="http://a.test/x?y=1", headers=(), facts=None, **request):
    fields = [har.Field(name, value) for name, value in headers]
    return har.Entry(request=har.Request(method, url, headers=fields, **request), facts=facts or har.Facts())


def sent(replaced=None, **request):
    return recorded(1, entry(**request), replaced or {})


def test_a_request_is_sent_as_it_was_but_for_what_belongs_to_its_connection():
    headers = [("Host", "b.test"), ("Connection", "close"), ("Accept", "*/*"), ("Content-Length", "3"), (":path", "/")]
    request = sent(
        method="POST", headers=headers, post_data=har.PostData("text/plain", "abc"), trailers=[har.Field("X-Sum", "1")]
    ).request
    assert (request.method, request.target, request.authority) == (b"POST", b"/x?y=1", b"b.test")
    assert request.fields == [(b"accept", b"*/*")]
    assert (request.body, request.trailers, request.is_h2) == (b"abc", [(b"x-sum", b"1")], False)


@pytest.mark.parametrize("version", ["h2", "HTTP/2", "http/2.0", "h3"])
def test_versions_of_browsers(version):
    assert sent(http_version=version).request.is_h2


@pytest.mark.parametrize(
    ("url", "target"), [("http://a/", b"/"), ("http://a", b"/"), ("https://u:p@a:1/%20?", b"/%20")]
)
def test_targets(url, target):
    request = sent(url=url).request
    assert request.target == target
    assert b"@" not in request.authority


def test_a_target_that_no_url_has():
    assert recorded(1, entry("OPTIONS", "http://a/", facts=har.Facts(target="*")), {}).request.target == b"*"


def test_redacted_fields_are_left_out_and_named_or_given_a_value():
    headers = [("Authorization", "[redacted]"), ("x-a", "[redacted]"), ("accept", "*/*")]
    found = sent(headers=headers)
    assert (found.request.fields, found.hidden) == ([(b"accept", b"*/*")], ("Authorization", "x-a"))
    found = sent({b"authorization": b"Bearer x"}, headers=headers)
    assert (b"authorization", b"Bearer x") in found.request.fields
    assert found.hidden == ("x-a",)


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"method": "GE T"}, "method"),
        ({"method": "GET\r\n"}, "method"),
        ({"method": "CONNECT"}, "protocol"),
        ({"headers": [("Upgrade", "websocket")]}, "protocol"),
        ({"url": "ftp"}, "URL"),
        ({"url": "http://a/x y"}, "URL"),
        ({"url": "http://a/\x7f"}, "URL"),
        ({"url": "http:///x"}, "URL"),
        ({"headers": [("host", "a\r\nx: y")]}, "URL"),
        ({"headers": [("x\r\ny", "1")]}, "header"),
        ({"headers": [("x", "1\r\ny: 2")]}, "header"),
        ({"headers": [("x", "1\n")]}, "header"),
        ({"headers": [("", "1")]}, "header"),
        ({"trailers": [har.Field("x", "1\r\n\r\nGET / HTTP/1.1")]}, "header"),
        ({"body_size": 5}, "not recorded"),
        ({"post_data": har.PostData("", "abc", truncated=True)}, "not recorded whole"),
        ({"post_data": har.PostData("", "?", "base64")}, "decoded"),
    ],
)
def test_what_cannot_be_sent_has_a_reason(request_, reason):
    found = sent(**request_)
    assert found.request is None
    assert reason in found.reason


@pytest.mark.parametrize("target", ["/ HTTP/1.1\r\nx: y", "x", "/\n", " /"])
def test_a_target_of_ours_is_checked_as_well(target):
    assert recorded(1, entry(facts=har.Facts(target=target)), {}).request is None
