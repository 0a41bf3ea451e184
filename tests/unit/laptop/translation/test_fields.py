"""Header blocks of HTTP/2 as HTTP/1.1, and back."""

import h11
import pytest

from sidestep.laptop.translation.fields import is_grpc, refusal, request_of, response_of, trailers_of

GET = ((":method", "GET"), (":scheme", "https"), (":authority", "a.example"), (":path", "/x?y"))
POST = ((":method", "POST"), *GET[1:])


def fields(request):
    return [(bytes(name), bytes(value)) for name, value in request.head.headers]


def test_pseudo_fields_become_the_request_line_and_host():
    request = request_of((*GET, ("x-a", "1"), ("x-a", "2")), has_body=False)
    assert (request.head.method, request.head.target) == (b"GET", b"/x?y")
    assert fields(request) == [(b"host", b"a.example"), (b"x-a", b"1"), (b"x-a", b"2")]
    assert not request.chunked


def test_host_is_the_authority_where_there_is_one_and_always_there():
    assert fields(request_of((*GET, ("host", "b")), has_body=False)) == [(b"host", b"a.example")]
    without = (GET[0], GET[1], GET[3])
    assert fields(request_of((*without, ("host", "b")), has_body=False)) == [(b"host", b"b")]
    assert fields(request_of(without, has_body=False)) == [(b"host", b"")]


def test_what_belongs_to_a_connection_stays_there():
    names = ("connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade")
    assert fields(request_of((*GET, *((name, "x") for name in names)), has_body=False)) == [(b"host", b"a.example")]
    assert (b"te", b"trailers") in fields(request_of((*GET, ("te", "trailers")), has_body=False))
    assert b"te" not in dict(fields(request_of((*GET, ("te", "gzip")), has_body=False)))


@pytest.mark.parametrize(
    ("headers", "has_body", "framing"),
    [
        (POST, True, (b"transfer-encoding", b"chunked")),
        ((*POST, ("content-length", "3")), True, (b"content-length", b"3")),
        (POST, False, (b"content-length", b"0")),
        (GET, False, None),
        (GET, True, (b"transfer-encoding", b"chunked")),
    ],
)
def test_a_body_is_framed_by_its_length_or_in_chunks(headers, has_body, framing):
    request = request_of(headers, has_body=has_body)
    found = [each for each in fields(request) if each[0] in {b"content-length", b"transfer-encoding"}]
    assert found == ([framing] if framing else [])
    assert request.chunked == (framing == (b"transfer-encoding", b"chunked"))


@pytest.mark.parametrize("name", ["content_length", "transfer_encoding"])
def test_names_that_some_servers_take_for_framing_are_refused(name):
    with pytest.raises(h11.LocalProtocolError):
        request_of((*POST, (name, "3")), has_body=True)


def test_only_what_changes_nothing_twice_is_repeatable():
    assert request_of(GET, has_body=False).repeatable
    assert not request_of(GET, has_body=True).repeatable
    assert not request_of(POST, has_body=False).repeatable


def test_a_response_loses_what_its_connection_names():
    found = response_of([(b"Content-Length", b"3"), (b"Connection", b"X-Hop, close"), (b"X-Hop", b"1"), (b"X-B", b"2")])
    assert found == (("content-length", "3"), ("x-b", "2"))


def test_trailers_have_no_pseudo_fields():
    assert trailers_of(((":path", "/"), ("x-sum", "ä"))) == [(b"x-sum", b"\xe4")]


def test_a_refusal_says_whose_request_it_is():
    status, found, body = refusal(GET, "it broke", intercept="shop/orders")
    assert (status, body) == (502, b"sidestep: intercept shop/orders: it broke\n")
    assert dict(found)["content-length"] == str(len(body))
    head = refusal(((":method", "HEAD"), *GET[1:]), "it broke", intercept="x")
    assert head[2] == b""
    grpc = (*POST, ("content-type", "application/grpc"))
    assert is_grpc(grpc)
    status, found, body = refusal(grpc, "it broke", intercept="x")
    assert (status, dict(found)["grpc-status"], body) == (200, "12", b"")
