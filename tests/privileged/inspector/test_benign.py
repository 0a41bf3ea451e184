"""Ordinary requests at paranoia level 1, through a locked inspector: which are blocked, and by which rule."""

from __future__ import annotations

import json

import pytest

from sidestep.protocols.waf_messages import Outcome
from sidestep.snapshots.waf import Profile
from tests.harness.inspectors import FIELDS, InspectorZygote, hurry
from tests.privileged.inspector.benign import GRAPHQL_ATTACKS, requests

DECIDES = 949110


@pytest.fixture(scope="module")
def inspector():
    with InspectorZygote() as zygote, zygote.spawn() as inspector:
        hurry(inspector.pid)
        assert inspector.configure(Profile(1, 5, 256)).error is None
        yield inspector


def test_fewer_than_one_percent_of_ordinary_requests_are_blocked(inspector):
    corpus = requests()
    assert len(corpus) == 500
    blocked = {}
    for request in corpus:
        inspector.question(request.method, request.target, request.fields, request.body)
        told = inspector.receive()
        if told.outcome is not Outcome.PASS:
            blocked[request.title] = set(told.rules) - {DECIDES}
    print(f"{len(blocked)} of {len(corpus)} are blocked: {blocked}")
    assert len(blocked) < len(corpus) / 100, blocked


@pytest.mark.parametrize("query", GRAPHQL_ATTACKS)
def test_attacks_in_a_query_of_graphql_are_blocked(inspector, query):
    body = json.dumps({"query": query}).encode()
    fields = ((b"Content-Type", b"application/json"), (b"Content-Length", str(len(body)).encode()))
    inspector.question(b"POST", b"/graphql", (*FIELDS, *fields), body)
    assert inspector.receive().outcome is Outcome.BLOCK


def test_a_request_in_an_argument_is_blocked_and_a_line_is_not(inspector):
    for text, outcome in (
        (b"a%0d%0aGET%20/admin%20HTTP/1.1%0d%0aHost:%20x", Outcome.BLOCK),
        (b"budget%20ok%0anext", Outcome.PASS),
    ):
        inspector.question(b"GET", b"/?a=" + text, FIELDS)
        assert inspector.receive().outcome is outcome


@pytest.mark.parametrize(
    "agent", [b"grpc-go/1.64.0", b"grpc-python/1.62.1 grpc-c/39.0.0 (linux; chttp2)", b"grpc-node-js/1.10.9"]
)
def test_the_head_of_a_call_of_grpc_is_ordinary_unless_there_is_an_attack_in_it(inspector, agent):
    fields = (
        (b"host", b"orders.shop:8443"),
        (b"user-agent", agent),
        (b"te", b"trailers"),
        (b"grpc-timeout", b"999999u"),
        (b"grpc-accept-encoding", b"identity, deflate, gzip"),
        (b"authorization", b"Bearer abc.def.ghi"),
        (b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    )
    for target, outcome in (
        (b"/shop.v1.Orders/ListOrders", Outcome.PASS),
        (b"/grpc.health.v1.Health/Check", Outcome.PASS),
        (b"/orders?id=1%27%20UNION%20SELECT%20password%20FROM%20users--", Outcome.BLOCK),
    ):
        inspector.question(b"GET", target, fields, version="2")
        told = inspector.receive()
        assert told.outcome is outcome, (target, told.rules)
