"""A diverted stream: its two states, who else can answer it, what it charges."""

from __future__ import annotations

import pytest

from sidestep.engine.http2.exchange import OBJECTS, Exchange, RequestState, ResponseState
from sidestep.engine.http2.head import Head
from sidestep.engine.memory_budget import Account, Budget
from sidestep.protocols.hpack import INITIAL, NONE, Block


def exchange(replay: int = 10) -> Exchange:
    fields = ((b":method", b"POST"), (b":path", b"/"))
    made = Exchange(1, Head(fields), Block(fields, NONE, None, INITIAL), None, window=100)
    made.replay = replay
    return made


def give(one: Exchange, data: bytes) -> None:
    one.add_body(data)
    one.body_sent(one.body.popleft())


def test_the_request_ends_is_sent_and_is_as_new_on_another_link() -> None:
    one = exchange()
    assert (one.request_ended, one.request_sent) == (False, False)
    one.end_request()
    assert (one.request_ended, one.request_sent) == (True, False)
    one.request_state = RequestState.SENT
    one.link_stream = 3
    one.end_request()
    assert (one.request_ended, one.request_sent) == (True, True)
    one.detach()
    assert (one.request_state, one.link, one.link_stream) == (RequestState.ENDED, None, 0)
    open_still = exchange()
    open_still.detach()
    assert open_still.request_state is RequestState.OPEN


def test_the_response_only_moves_forward() -> None:
    one = exchange()
    seen = [one.response_state]
    for step in (
        lambda: one.head_came(is_final=False),
        lambda: one.head_came(is_final=True),
        lambda: one.head_came(is_final=False),
        one.end_response,
        lambda: one.head_came(is_final=True),
        lambda: setattr(one, "response_state", ResponseState.DELIVERED),
        one.end_response,
    ):
        step()
        seen.append(one.response_state)
    assert seen == [
        ResponseState.NONE,
        ResponseState.INFORMATIONAL,
        ResponseState.FINAL,
        ResponseState.FINAL,
        ResponseState.ENDED,
        ResponseState.ENDED,
        ResponseState.DELIVERED,
        ResponseState.DELIVERED,
    ]


@pytest.mark.parametrize("state", ResponseState)
def test_what_each_state_of_the_response_implies(state: ResponseState) -> None:
    one = exchange()
    one.response_state = state
    assert one.response_started is (state is not ResponseState.NONE)
    assert one.has_final_head is (state in (ResponseState.FINAL, ResponseState.ENDED, ResponseState.DELIVERED))
    assert one.response_ended is (state in (ResponseState.ENDED, ResponseState.DELIVERED))
    assert one.delivered is (state is ResponseState.DELIVERED)


def test_a_consumed_body_can_be_replayed_while_it_is_kept() -> None:
    one = exchange(replay=10)
    assert (one.movable, one.replayable) == (True, True)
    give(one, b"12345")
    assert (one.movable, one.replayable) == (False, True)
    one.add_body(b"67")
    one.rewind()
    assert (b"".join(one.body), one.body_size, one.kept_size) == (b"1234567", 7, 0)
    assert (one.movable, one.prepaid) == (True, 5)
    one.body_sent(one.body.popleft())
    assert [one.take_window_due(5), one.take_window_due(2)] == [0, 2]


def test_a_body_longer_than_what_is_kept_cannot_be_replayed() -> None:
    one = exchange(replay=4)
    give(one, b"12345")
    assert (one.movable, one.replayable, one.kept_size, list(one.kept)) == (False, False, 0, [])


@pytest.mark.parametrize("is_final", [True, False])
def test_nobody_else_can_answer_once_the_response_has_begun(is_final: bool) -> None:
    one = exchange()
    one.head_came(is_final=is_final)
    assert (one.movable, one.replayable) == (False, False)


def test_the_account_holds_what_is_buffered() -> None:
    account = Account(Budget())
    one = exchange(replay=100)
    one.update_charge()
    one.charge_to(account)
    fixed = OBJECTS + len(one.block.literal)
    assert account.held == fixed
    give(one, b"kept.")
    one.add_body(b"body")
    one.add_response(b"response")
    one.update_charge()
    assert account.held == fixed + 5 + 4 + 8
    assert one.drop_response() == 8
    one.drop_body()
    assert account.held == fixed
    one.client_done()
    assert account.held == 0
