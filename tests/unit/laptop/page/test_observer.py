"""Requests get their answers, sessions their states, and everything on the board is bounded."""

from __future__ import annotations

import json

from sidestep.laptop.page import observer as page_observer
from sidestep.laptop.page.flow_ring import FlowRing
from sidestep.laptop.page.observer import FlowObserver, InterceptShown, PageBoard
from sidestep.laptop.recorded_body import Body
from sidestep.tunnel.messages import (
    Answer,
    Answered,
    ConditionText,
    Dropped,
    Ended,
    Lost,
    PodState,
    State,
)
from tests.unit.laptop.page.test_flow_ring import request

ANSWER = Answer(status=503, by="handler", handler="shop/ada")


class Shown:
    """An observer with what it writes to."""

    def __init__(self):
        self.changes = 0
        self.ring = FlowRing()
        self.board = PageBoard("orders", self.changed)
        self.observer = FlowObserver("flows orders:8443", ring=self.ring, board=self.board, on_flow=self.changed)

    def changed(self):
        self.changes += 1

    def flows(self):
        return list(self.ring)

    def document(self):
        return json.loads(self.board.document())


def statuses(it):
    return [each.request.answer.status if each.request.answer else 0 for each in it.flows()]


def test_a_request_that_is_answered_already():
    it = Shown()
    it.observer.event(request(answer=ANSWER))
    assert statuses(it) == [503]
    assert it.flows()[0].session == "flows orders:8443"
    assert it.changes == 2  # the session, and the request
    assert it.board.version == 1


def test_an_answer_finds_its_request_by_pod_and_number():
    it = Shown()
    for pod in ("orders-1", "orders-2"):
        it.observer.event(request(pod=pod, number=1))
    it.observer.event(Answered(pod="orders-2", port=8443, number=1, answer=ANSWER))
    it.observer.event(Answered(pod="orders-2", port=8443, number=1, answer=ANSWER))  # a second one means nothing
    it.observer.event(Answered(pod="orders-3", port=8443, number=1, answer=ANSWER))
    assert [each.request.pod for each in it.flows()] == ["orders-1", "orders-2"]
    assert statuses(it) == [0, 503]


def test_numbers_of_a_tunnel_that_broke_mean_nothing_in_the_next():
    it = Shown()
    it.observer.event(request(number=1))
    it.observer.interrupted("the tunnel broke")
    it.observer.event(Answered(pod="orders-1", port=8443, number=1, answer=ANSWER))
    assert statuses(it) == [0]
    assert it.document()["sessions"][0]["state"] == "interrupted: the tunnel broke"


def test_what_waits_for_answers_is_bounded(monkeypatch):
    monkeypatch.setattr(page_observer, "WAITING", 2)
    it = Shown()
    for number in (1, 2, 3):
        it.observer.event(request(number=number))
    for number in (1, 2, 3):
        it.observer.event(Answered(pod="orders-1", port=8443, number=number, answer=ANSWER))
    assert statuses(it) == [0, 503, 503]


def test_the_board_has_states_conditions_and_notes_within_bounds():
    it = Shown()
    it.observer.event(
        State(
            pods=tuple(PodState(f"orders-{number}", "active") for number in range(100)),
            conditions=tuple(ConditionText("Certificate", "port 8443", "x" * 1000) for _ in range(100)),
        )
    )
    for _ in range(200):
        it.observer.event(Lost(pod="orders-1", port=8443, reason="rate", count=3))
    it.observer.event(Dropped(count=2))
    long = InterceptShown("k" * 9999, "n" * 9999, (("f" * 9999, "v" * 9999),) * 99)
    it.board.intercepts([long] * 500, ["p" * 9999] * 500)
    found = it.document()
    assert found["title"] == "orders"
    assert found["sessions"][0]["state"] == "active"
    assert len(found["sessions"][0]["pods"]) == page_observer.MAX_PODS
    assert len(found["sessions"][0]["conditions"]) == page_observer.MAX_CONDITIONS
    assert len(found["sessions"][0]["conditions"][0]) == page_observer.TEXT
    assert len(found["intercepts"]) == len(found["problems"]) == page_observer.MAX_INTERCEPTS
    assert len(found["problems"][0]) == page_observer.TEXT
    one = found["intercepts"][0]
    assert (len(one["kind"]), len(one["name"])) == (page_observer.TEXT, page_observer.TEXT)
    assert [len(text) for text in one["fields"][0]] == [page_observer.TEXT] * 2
    assert len(one["fields"]) == page_observer.MAX_INTERCEPT_FIELDS
    assert len(found["notes"]) == page_observer.NOTES
    assert found["notes"][-1] == "flows orders:8443: 2 requests are not shown: there was no room for them"
    it.observer.event(Ended(reason="was ended by sidestep leave"))
    assert it.document()["sessions"][0]["state"] == "ended: was ended by sidestep leave"


def test_sessions_beyond_the_bound_are_not_on_the_board(monkeypatch):
    monkeypatch.setattr(page_observer, "MAX_SESSIONS", 1)
    it = Shown()
    it.board.add("one more")
    assert [each["name"] for each in it.document()["sessions"]] == ["flows orders:8443"]


def test_a_copy_brings_fields_and_body_to_its_request_and_leaves_the_answer():
    it = Shown()
    it.observer.event(request(number=7))
    it.observer.event(Answered(pod="orders-1", port=8443, number=7, answer=ANSWER))
    it.observer.recorded(request(number=7, fields=(("x-dev", "ada"),)), Body(b"body"))
    it.observer.recorded(request(number=8), Body(b"of nobody"))
    (flow,) = it.flows()
    assert (flow.request.fields, flow.body, flow.request.answer) == ((("x-dev", "ada"),), Body(b"body"), ANSWER)
