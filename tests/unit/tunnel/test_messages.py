import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidestep.model.errors import PeerError
from sidestep.tunnel.messages import (
    ConditionText,
    Dropped,
    Ended,
    HelloAnswer,
    Lost,
    PodState,
    Request,
    SessionSpec,
    State,
    decode,
    decode_event,
    encode,
)

REQUEST = Request(1.5, "shop/orders-1", 8443, "10.0.0.7", 5000, "GET", "/a?b=c", "orders.shop")
EVENTS = [
    State((PodState("shop/orders-1", "active"),), (ConditionText("NoApp", "pod shop/orders-1 port 1", "x"),)),
    REQUEST,
    Dropped(3),
    Ended("ended by ada"),
    Lost(pod="shop/orders-1", port=8080, count=7, reason="budget"),
]


@pytest.mark.parametrize("event", EVENTS)
def test_events_survive_the_wire(event):
    line = encode(event)
    assert b"\n" not in line
    assert decode_event(line) == event


def test_an_event_of_a_later_version_is_passed_over():
    assert decode_event(b'{"event":"weather","sky":"blue"}') is None


def test_unknown_fields_of_a_known_event_are_passed_over():
    assert decode_event(b'{"event":"dropped","count":1,"more":true}') == Dropped(1)


@pytest.mark.parametrize("line", [b"", b"{", b"[]", b"{}", b'{"event":1}', b'{"event":"dropped","count":"x"}', b"\xff"])
def test_a_broken_event_is_an_error(line):
    with pytest.raises(PeerError):
        decode_event(line)


@given(st.binary(max_size=200))
def test_any_bytes_are_an_event_or_an_error(line):
    try:
        decode_event(line)
    except PeerError:
        pass


def test_only_active_and_attached_pods_count_as_active():
    pods = tuple(PodState("shop/x", state) for state in ("active", "attached", "pending", "failed"))
    assert State(pods).active == 2


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"namespace":"shop","workload":"orders","port":80}',
        b'{"namespace":"","workload":"orders","port":"1"}',
        b'{"namespace":"shop","workload":"orders","port":"1","transport":"sctp"}',
        b'{"namespace":"shop","workload":"orders","port":"1","plaintext":1}',
        b'{"namespace":"shop","workload":"orders","port":"1","headers":[{"name":"a","test":"near"}]}',
        b'{"namespace":"shop","workload":"orders","port":"1","methods":' + b'["a"' + b',"a"' * 64 + b"]}",
        b"[" * 100_000,
    ],
)
def test_a_spec_is_strict(body):
    with pytest.raises(PeerError, match="the spec"):
        decode(body, SessionSpec, what="the spec")


def test_a_spec_of_a_later_version_is_understood():
    spec = decode(b'{"namespace":"shop","workload":"orders","port":"1","later":1}', SessionSpec, what="the spec")
    assert (spec.kind, spec.transport, spec.headers) == ("intercept", "tcp", ())


def test_a_hello_answer_is_bounded():
    with pytest.raises(PeerError):
        decode(encode(HelloAnswer(1, ("x",), "p" * 1025)), HelloAnswer, what="the answer")
