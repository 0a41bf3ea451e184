"""Heads, trailers and header blocks are rewritten alike, however they arrive."""

import pytest

from sidestep.engine.rewriting import ClientCertificate, RewritingMemo, TrailerFilter
from sidestep.protocols import hpack
from sidestep.protocols.http1 import LIMITS

NAME = b"x-forwarded-client-cert"
HEAD = b"GET / HTTP/1.1\r\nHost: a\r\nX_Forwarded-Client-Cert: spoof\r\n\r\n"
LIMIT = {"list_limit": 1 << 20, "table_limit": 1 << 16}


def block(*fields: tuple[bytes, bytes], never: frozenset[int] = frozenset()) -> hpack.Block:
    return hpack.Block(fields, never, None, hpack.INITIAL)


def test_a_head_tells_who_the_client_proved_to_be():
    rewriter = ClientCertificate(b"Hash=1")
    once = rewriter.head(HEAD)
    assert once == b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-Client-Cert: Hash=1\r\n\r\n"
    assert rewriter.head(once) == once
    assert ClientCertificate(None).head(HEAD) == b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def test_a_block_of_a_request_gets_the_field_and_trailers_do_not():
    rewriter = ClientCertificate(b"Hash=1")
    request = rewriter.block(block((b":method", b"GET"), (NAME, b"spoof"), (b"a", b"1")))
    assert request.fields == ((b":method", b"GET"), (b"a", b"1"), (NAME, b"Hash=1"))
    assert rewriter.block(request).fields == request.fields
    assert rewriter.block(block((b"a", b"1"), (NAME, b"spoof"))).fields == ((b"a", b"1"),)


@pytest.mark.parametrize("value", [None, b"Hash=1"])
def test_a_block_that_stays_as_it_is_is_the_same_object(value):
    trailers = block((b"grpc-status", b"0"))
    assert ClientCertificate(value).block(trailers) is trailers


def test_never_indexed_fields_stay_so_at_their_new_place():
    large = block((b":method", b"GET"), (NAME, b"spoof"), (b"secret", b"1"), (b"b", b"2"), never=frozenset((1, 2)))
    large.large = True
    rewritten = ClientCertificate(None).block(large)
    assert rewritten.fields == ((b":method", b"GET"), (b"secret", b"1"), (b"b", b"2"))
    assert rewritten.never == {1}
    assert rewritten.large


BODY = b"5\r\nhello\r\n0\r\nA: 1\r\nX-Forwarded-Client-Cert: spoof\r\nB: 2\r\n\r\n"


@pytest.mark.parametrize("size", range(1, len(BODY) + 1))
def test_trailers_lose_the_field_however_they_are_cut(size):
    trailers = TrailerFilter(ClientCertificate(b"Hash=1"), LIMITS)
    passed = b"".join(trailers.rewrite(BODY[at : at + size]) for at in range(0, len(BODY), size))
    assert passed == b"5\r\nhello\r\n0\r\nA: 1\r\nB: 2\r\n\r\n"


def test_a_memo_remembers_what_came_and_hands_out_what_goes():
    inner = hpack.Memo(1 << 20)
    memo = RewritingMemo(inner, ClientCertificate(None))
    data = hpack.encode([(b":method", b"GET"), (NAME, b"spoof")])
    for _ in range(3):
        assert memo.decode(hpack.INITIAL, data, **LIMIT).fields == ((b":method", b"GET"),)
    assert inner.decode(hpack.INITIAL, data, **LIMIT).fields == ((b":method", b"GET"), (NAME, b"spoof"))
    assert memo.limit == inner.limit
    assert memo.with_allowed(hpack.INITIAL, 100) is inner.with_allowed(hpack.INITIAL, 100)
