"""Readers see each flow in its latest state, in bounded batches, and nothing that is gone."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given, settings
from msgspec.structs import replace

from sidestep.laptop.page import flow_ring
from sidestep.laptop.page.flow_ring import BATCH, FlowRing, ShownFlow, details
from sidestep.laptop.recorded_body import Body
from sidestep.tunnel.messages import Answer, Request


def request(**values):
    fields = {
        "time": 1.0, "pod": "orders-1", "port": 8443, "client": "10.0.0.9", "client_port": 40000, "method": "GET",
        "path": "/", "authority": "orders", **values,
    }  # fmt: skip
    return Request(**fields)


def put(ring, **values):
    made = ShownFlow(ring.new_id(), "flows orders", request(**values))
    ring.put(made)
    return made


def answer(flow, status, **values):
    flow.request = replace(flow.request, answer=Answer(status=status, by="app", **values))


def test_a_reader_sees_what_came_after_its_version():
    ring = FlowRing()
    put(ring, path="/a")
    seen = ring.changes(0)
    assert [row.path for row in seen.rows] == ["/a"]
    put(ring, path="/b")
    later = ring.changes(seen.version)
    assert [row.path for row in later.rows] == ["/b"]
    assert ring.changes(later.version).rows == []


def test_a_change_is_seen_once_in_its_latest_state():
    ring = FlowRing()
    changed = put(ring, path="/a")
    put(ring, path="/b")
    for status in (100, 200):
        answer(changed, status)
        ring.put(changed)
    found = ring.changes(0)
    assert [(row.path, row.status) for row in found.rows] == [("/b", 0), ("/a", 200)]


def test_batches_are_bounded_and_go_on_where_they_ended():
    ring = FlowRing()
    for number in range(BATCH + 3):
        put(ring, path=f"/{number}")
    first = ring.changes(0)
    rest = ring.changes(first.version)
    assert (len(first.rows), len(rest.rows)) == (BATCH, 3)
    assert rest.version == ring.version


def test_the_oldest_go_and_do_not_come_back_by_their_answers():
    ring = FlowRing(capacity=2)
    first = put(ring)
    put(ring)
    put(ring)
    answer(first, 200)
    ring.put(first)
    assert [each.id for each in ring] == [2, 3]
    assert ring.get(first.id) is None
    assert ring.changes(0).oldest == 2


def test_what_was_cleared_does_not_come_back_by_its_answer():
    ring = FlowRing()
    old = put(ring)
    before = ring.changes(0)
    ring.clear()
    ring.put(old)
    after = ring.changes(before.version)
    assert (len(ring), after.rows, after.oldest) == (0, [], 2)
    assert after.cleared != before.cleared
    put(ring, path="/new")
    assert [row.path for row in ring.changes(after.version).rows] == ["/new"]


@settings(max_examples=200)
@given(st.lists(st.one_of(st.just("new"), st.just("clear"), st.integers(0, 30)), max_size=60), st.data())
def test_a_reader_of_any_pace_ends_with_what_is_there(steps, data):
    ring = FlowRing(capacity=5)
    made, seen, version, cleared = [], {}, 0, 0

    def read():
        nonlocal version, cleared
        changes = ring.changes(version)
        if changes.cleared != cleared:
            seen.clear()
            cleared = changes.cleared
        seen.update((row.id, row.status) for row in changes.rows)
        for number in [each for each in seen if each < changes.oldest]:
            del seen[number]
        version = changes.version

    for step in steps:
        if step == "new":
            made.append(put(ring))
        elif step == "clear":
            ring.clear()
        elif step < len(made):
            answer(made[step], data.draw(st.integers(100, 599)))
            ring.put(made[step])
        if data.draw(st.booleans()):
            read()
    read()
    assert seen == {each.id: each.request.answer.status if each.request.answer else 0 for each in ring}
    assert len(ring) <= 5


def test_details_have_the_fields_of_the_answer():
    ring = FlowRing()
    flow = put(ring, protocol="h2", tls=True, fields=(("x-dev", "ada"),))
    assert details(flow).sent == -1
    answer(flow, 503, handler="shop/ada", seconds=0.25, sent=3, received=7, head="Server: x\r\nodd\r\nA: b: c\r\n")
    found = details(flow)
    assert (found.status, found.seconds, found.sent, found.received, found.ended) == (503, 0.25, 3, 7, "")
    assert found.answer == (("Server", "x"), ("odd", ""), ("A", "b: c"))
    answer(flow, 200, whole=False)
    assert details(flow).ended == "broke off"
    answer(flow, 0)
    assert details(flow).ended == "no answer"


def test_bodies_are_kept_within_bounds_and_the_oldest_go_first(monkeypatch):
    monkeypatch.setattr(flow_ring, "BODY", 4)
    monkeypatch.setattr(flow_ring, "BODIES", 10)
    ring = FlowRing(capacity=4)
    flows = [put(ring) for _ in range(4)]
    before = ring.version
    for flow in flows[:3]:
        ring.put_body(flow, Body(b"123456"))
    assert [details(flow).body for flow in flows] == [None, b"1234", b"1234", None]
    assert [row.id for row in ring.changes(before).rows] == [1, 2, 3]
    ring.put_body(flows[1], Body(b"another"))
    assert flows[1].body == Body(b"1234", is_cut=True)
    put(ring)
    put(ring)  # the second one goes, with its body
    ring.put_body(flows[3], Body(b"1234"))
    assert [flow.body for flow in flows[2:]] == [Body(b"1234", is_cut=True), Body(b"1234")]
    ring.put_body(flows[0], Body(b"gone"))
    assert flows[0].body is None
    ring.clear()
    flow = put(ring)
    ring.put_body(flow, Body(b"1234"))
    assert flow.body == Body(b"1234")
    ring.put_body(put(ring), Body(b"", (("x-sum", "12345"),)))  # trailers count, too
    assert flow.body is None


def test_of_bodies_that_went_with_their_flows_nothing_is_kept():
    ring = FlowRing(capacity=2)
    for _ in range(20):
        ring.put_body(put(ring), Body(b""))
    assert len(ring._bodies) == 2
