"""The transition table of an HTTP/1 connection, row by row, and who may be asked when."""

import pytest

from sidestep.engine.http1.diverted_request import DivertedRequest
from sidestep.engine.http1.routing import PLAIN
from sidestep.engine.http1.state import TRANSITIONS, ConnectionState, Event, State
from sidestep.engine.leg import Leg, Role
from sidestep.model.errors import BugError
from sidestep.protocols.http1 import CONNECT, HEAD, LIMITS, UPGRADE
from tests.unit.engine.shell import rule

ROWS = {
    (State.READING, Event.HELD): State.WAITING,
    (State.READING, Event.SWITCH_ASKED): State.SWITCHING,
    (State.READING, Event.JOINED): State.WIRE,
    (State.READING, Event.LAST_ANSWER): State.DISCARDING,
    (State.READING, Event.HANDED_OVER): State.OVER,
    (State.READING, Event.ENDED): State.OVER,
    (State.WAITING, Event.ANSWERED): State.READING,
    (State.WAITING, Event.JOINED): State.WIRE,
    (State.WAITING, Event.LAST_ANSWER): State.DISCARDING,
    (State.WAITING, Event.HANDED_OVER): State.OVER,
    (State.WAITING, Event.ENDED): State.OVER,
    (State.SWITCHING, Event.ANSWERED): State.READING,
    (State.SWITCHING, Event.JOINED): State.WIRE,
    (State.SWITCHING, Event.LAST_ANSWER): State.DISCARDING,
    (State.SWITCHING, Event.HANDED_OVER): State.OVER,
    (State.SWITCHING, Event.ENDED): State.OVER,
    (State.WIRE, Event.ENDED): State.OVER,
    (State.DISCARDING, Event.ENDED): State.OVER,
    (State.OVER, Event.ENDED): State.OVER,
}
EVERY = [(state, event) for state in State for event in Event]


def in_state(state: State) -> ConnectionState:
    connection = ConnectionState()
    connection.client = state
    return connection


def a_diverted_request() -> DivertedRequest:
    return DivertedRequest(rule(), Leg(Role.HANDLER, rule()), PLAIN, b"", LIMITS, reused=False)


@pytest.mark.parametrize(("state", "event"), EVERY, ids=[f"{state.name}-{event.name}" for state, event in EVERY])
def test_each_event_in_each_state(state, event):
    connection = in_state(state)
    if (state, event) in ROWS:
        connection.on(event)
        assert connection.client is ROWS[state, event]
    else:
        with pytest.raises(BugError, match=f"{event.name} while it is {state.name}"):
            connection.on(event)
        assert connection.client is state, "an impossible event changed the state"


def test_the_table_has_a_row_for_each_state_and_no_unknown_one():
    assert set(TRANSITIONS) == set(State)
    assert {(state, event): to for state, row in TRANSITIONS.items() for event, to in row.items()} == ROWS


def test_a_connection_begins_by_reading():
    connection = ConnectionState()
    assert connection.client is State.READING
    assert connection.is_idle
    assert not connection.may_resume


@pytest.mark.parametrize(
    ("awaited", "for_app", "for_handler"),
    [
        ([], False, False),
        ([0], False, True),
        ([HEAD, 0], False, True),
        ([UPGRADE], True, True),
        ([0, CONNECT], True, True),
        ([CONNECT, 0], False, True),
    ],
)
def test_what_waits_for_the_app(awaited, for_app, for_handler):
    connection = ConnectionState()
    connection.awaited.extend(awaited)
    assert connection.must_wait(for_handler=False) is for_app
    assert connection.must_wait(for_handler=True) is for_handler


def test_everything_waits_for_a_handler():
    connection = ConnectionState()
    connection.diverted = a_diverted_request()
    assert connection.must_wait(for_handler=False)
    assert connection.must_wait(for_handler=True)
    assert not connection.is_idle


@pytest.mark.parametrize("state", State, ids=[state.name for state in State])
def test_what_was_kept_is_read_only_after_the_answers(state):
    kept = state in (State.WAITING, State.SWITCHING)
    connection = in_state(state)
    assert connection.may_resume is kept
    connection.awaited.append(UPGRADE)
    assert not connection.may_resume
    connection.awaited[-1] = 0
    assert connection.may_resume is kept
    connection.diverted = a_diverted_request()
    assert not connection.may_resume


def test_a_connection_with_an_answer_to_come_is_not_idle():
    connection = ConnectionState()
    connection.awaited.append(0)
    assert not connection.is_idle
    connection.awaited.clear()
    for state in State:
        connection.client = state
        assert connection.is_idle is (state is State.READING)
