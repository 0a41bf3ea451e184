"""Reading and judging HTTP/2 request heads, and the answers given for a handler."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidestep.engine.http2.exchange import Exchange
from sidestep.engine.http2.head import NONE, Head, are_valid_fields, head_of, status_of
from sidestep.engine.http2.local_replies import bad_gateway
from sidestep.policy.route import TO_APP, Decision, Route, Rule
from sidestep.protocols.hpack import INITIAL, Block
from sidestep.protocols.hpack import NONE as NEVER

GET = ((b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"a"), (b":path", b"/p?q"))


def block(*fields: tuple[bytes, bytes]) -> Block:
    return Block(fields, NEVER, None, INITIAL)


def test_a_filter_sees_method_path_fields_and_host() -> None:
    seen = []
    rule = Rule("u", "ns/n", lambda method, path, fields: not seen.append((method, path, list(fields))))
    head = Head((*GET, (b"cookie", b"a=1"), (b"x", b"y"), (b"cookie", b"b=2")))
    assert head.decide(Route((rule,))) == Decision(rule)
    crumbs = [(b"cookie", b"a=1"), (b"x", b"y"), (b"cookie", b"b=2"), (b"cookie", b"a=1; b=2"), (b"host", b"a")]
    assert seen == [(b"GET", b"/p", crumbs)]


def test_a_decision_is_kept_until_the_route_changes() -> None:
    asked = []
    rule = Rule("u", "ns/n", lambda method, path, fields: bool(asked.append(1)) or True)
    one = block(*GET)
    route = Route((rule,))
    for _ in range(3):
        head_of(one).decide(route)
    assert len(asked) == 1
    assert head_of(one).decide(Route()) is TO_APP
    head_of(one).decide(Route((rule,)))
    assert len(asked) == 2


def test_kubelet_probes_stay_with_the_app() -> None:
    rule = Rule("u", "ns/n", lambda method, path, fields: True)
    assert Head((*GET, (b"user-agent", b"kube-probe/1.30"))).decide(Route((rule,))) is TO_APP


SOUND = [
    (*GET, (b"te", b"trailers")),
    (*GET, (b"content-length", b"3"), (b"content-length", b"3")),
    ((b":method", b"CONNECT"), (b":authority", b"a:1")),
    ((b":method", b"CONNECT"), (b":protocol", b"websocket"), *GET[1:]),
    ((b":method", b"OPTIONS"), (b":scheme", b"http"), (b":path", b"*")),
]
UNSOUND = [
    (),
    (*GET, (b"te", b"gzip")),
    (*GET, (b"x y", b"1")),
    (*GET, (b"", b"1")),
    (*GET, (b"x", b"a\nb")),
    (*GET, (b"x", b" a")),
    (*GET, (b"content-length", b"+1")),
    (*GET, (b":status", b"200")),
    (*GET[:3], (b":path", b"")),
    (*GET[:3], (b":path", b"/a b")),
    ((b":method", b""), *GET[1:]),
    ((b":method", b"CONNECT"), *GET[1:]),
    ((b":method", b"GET"), (b":protocol", b"websocket"), *GET[1:]),
]


@pytest.mark.parametrize("fields", SOUND)
def test_sound_requests(fields: tuple[tuple[bytes, bytes], ...]) -> None:
    assert Head(fields).is_valid()


@pytest.mark.parametrize("fields", UNSOUND)
def test_unsound_requests(fields: tuple[tuple[bytes, bytes], ...]) -> None:
    assert not Head(fields).is_valid()


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (((b":status", b"200"), (b"x", b"y")), 200),
        (((b":status", b"103"),), 103),
        (((b"grpc-status", b"0"),), 0),
        ((), 0),
        (((b":status", b"20"),), NONE),
        (((b":status", b"2000"),), NONE),
        (((b":status", b"200"), (b":status", b"200")), NONE),
        (((b"x", b"y"), (b":status", b"200")), NONE),
        (((b":status", b"200"), (b"connection", b"close")), NONE),
    ],
)
def test_status_of_response_blocks(fields: tuple[tuple[bytes, bytes], ...], status: int) -> None:
    assert status_of(block(*fields)) == status


def exchange(*more: tuple[bytes, bytes], method: bytes = b"GET") -> Exchange:
    head = Head(((b":method", method), *GET[1:], *more))
    return Exchange(1, head, block(*GET), Rule("u", "shop/mine", lambda *_: True), window=0)


def test_the_answer_names_the_intercept() -> None:
    head, body = bad_gateway(exchange(), "the handler was lost")
    assert head.fields[0] == (b":status", b"502")
    assert body == b"sidestep: intercept shop/mine: the handler was lost\n"
    assert (b"content-length", b"%d" % len(body)) in head.fields
    assert bad_gateway(exchange(method=b"HEAD"), "x")[1] == b""


def test_grpc_clients_get_a_status_they_understand() -> None:
    head, body = bad_gateway(exchange((b"content-type", b"application/grpc+proto")), "lost 100% \n")
    assert body == b""
    assert head.fields[:2] == ((b":status", b"200"), (b"content-type", b"application/grpc"))
    assert dict(head.fields)[b"grpc-status"] == b"14"
    assert dict(head.fields)[b"grpc-message"] == b"sidestep: intercept shop/mine: lost 100%25 %0A"


def test_clients_that_read_statuses_get_one() -> None:
    head, body = bad_gateway(exchange((b"content-type", b"application/grpc-web+proto")), "the handler was lost")
    assert head.fields[0] == (b":status", b"502")
    assert body.startswith(b"sidestep: ")


NAMES = st.one_of(
    st.sampled_from(
        (b"a", b"te", b"content-length", b"connection", b"upgrade", b"A", b"a b", b"a\nb", b"", b":a", b"a\xff")
    ),
    st.binary(max_size=3),
)
VALUES = st.one_of(
    st.sampled_from(
        (b"", b"1", b"12", b"trailers", b" a", b"a ", b"a\t", b"a\nb", b"a\rb", b"a\0", b"a b", b"\xff", b" ")
    ),
    st.binary(max_size=3),
)


def valid(fields: list[tuple[bytes, bytes]]) -> bool:
    """The rules one by one (RFC 9113 sections 8.2.1, 8.2.2, 8.1.1)."""
    special = {b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"}
    for name, value in fields:
        if not re.fullmatch(rb"[!#$%&'*+\-.^_`|~0-9a-z]+", name) or name in special:
            return False
        if re.search(rb"[\x00\r\n]|\A[ \t]|[ \t]\Z", value) or (name == b"te" and value != b"trailers"):
            return False
    lengths = {value for name, value in fields if name == b"content-length"}
    return len(lengths) < 2 and all(re.fullmatch(rb"[0-9]{1,18}", length) for length in lengths)


@given(st.lists(st.tuples(NAMES, VALUES), max_size=4))
def test_fields_are_judged_together_as_they_are_one_by_one(fields: list[tuple[bytes, bytes]]) -> None:
    assert are_valid_fields(tuple(fields)) is valid(fields)
