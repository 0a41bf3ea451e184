"""An app leg that is idle only because handlers answer the client's requests: whatever happens on it is not the
client's, and the next request for the app never meets an app that is about to close it.
"""

import pytest

from sidestep.engine.http1.peers import Peers
from sidestep.engine.http1.relay import Http1Relay
from sidestep.engine.http1.state import ConnectionState
from sidestep.engine.leg import Ending
from sidestep.engine.relay import OnUnreadable, Relay
from sidestep.engine.rewriting import ClientCertificate
from sidestep.policy.route import Route, SteeredPort
from sidestep.protocols.http1 import LIMITS
from tests.unit.engine.shell import Shell, http1, rule

A = b"GET /a HTTP/1.1\r\nHost: app.test\r\n\r\n"
B = b"GET /b HTTP/1.1\r\nHost: app.test\r\nX-Dev: me\r\n\r\n"
POST = b"POST /a HTTP/1.1\r\nHost: app.test\r\nContent-Length: 3\r\n\r\nabc"
OK_A = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na"
OK_B = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nb"
TIMEOUT = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n"

SAID = [TIMEOUT, TIMEOUT[:9], b"\x15\x03\x03\x00\x02\x02\x28", b"garbage\r\n\r\n", OK_A, OK_A * 3]


def diverted(*, before=b""):
    """A connection whose last answer is a handler's; the app leg stands open, used or not."""
    shell = http1(rule(), app_open=True)
    if before:
        shell.client(before)
        shell.app(OK_A)
    shell.client(B)
    shell.handler(OK_B)
    return shell


@pytest.mark.parametrize("before", [b"", A], ids=["unused", "used"])
@pytest.mark.parametrize("end", ["eof", "lose", None])
@pytest.mark.parametrize("said", [b"", *SAID])
def test_what_happens_on_it_is_not_the_clients(before, end, said):
    shell = diverted(before=before)
    relay, first = shell.relay, shell.relay.app
    answers = shell.to_client
    if said:
        shell.app(said)
    if end and relay.app is first:
        getattr(shell, end)(first)
    elif said and end:
        shell.receive(first, b"more")  # what a leg still holds that was retired
    assert shell.to_client == answers
    assert relay.client.ending is Ending.NONE
    assert (relay.anomaly, relay.wired, relay.done) == (None, None, False)
    shell.client(B)
    shell.handler(OK_B)
    shell.client(POST)
    shell.app(OK_A)
    assert shell.to_client == answers + OK_B + OK_A
    assert shell.to(first) == (before if said or end else before + POST)
    assert shell.to_app == before + POST
    shell.client(B)
    shell.handler(OK_B)
    assert shell.to_client == answers + OK_B + OK_A + OK_B


@pytest.mark.parametrize("end", ["eof", "lose"])
def test_nor_inside_a_head_or_behind_what_is_held(end):
    shell = diverted()
    shell.client(B[:20])
    getattr(shell, end)(shell.relay.app)
    shell.client(B[20:] + A)
    shell.handler(OK_B)
    shell.app(OK_A)
    assert shell.to_client == OK_B + OK_B + OK_A


def test_nor_where_heads_are_rewritten():
    shell = Shell(
        Http1Relay(
            SteeredPort(80, Route((rule(),))),
            tls=True,
            on_unreadable=OnUnreadable.CLOSE,
            rewriter=ClientCertificate(None),
        ),
        app_open=True,
    )
    shell.client(B)
    shell.handler(OK_B)
    shell.eof(shell.relay.app)
    assert not shell.relay.done
    shell.client(A)
    shell.app(TIMEOUT)
    assert shell.to_client == OK_B + TIMEOUT
    assert shell.relay.done is False
    shell.eof(shell.relay.app)
    assert shell.relay.done


def test_a_leg_that_was_silent_for_long_is_not_trusted_with_a_request():
    shell = diverted(before=A)
    first = shell.relay.app
    for _ in range(20):
        shell.now += 0.05
        shell.client(B)
        shell.handler(OK_B)
    shell.client(POST)
    assert shell.to(first) == A
    assert first.ending is Ending.CLOSE
    assert shell.to_app == A + POST
    shell.app(OK_A)
    shell.client(B)
    shell.handler(OK_B)
    shell.client(A)  # this one spoke just now
    assert len(shell.apps) == 2
    assert shell.to_app == A + POST + A


def test_nor_with_one_that_was_held_or_that_no_handler_takes():
    shell = http1(rule(), app_open=True, auto=False)
    shell.client(B + A)
    shell.now = 5.0
    shell.open(shell.handlers[0])
    shell.handler(OK_B)
    assert shell.waiting == [shell.relay.app]
    shell.open(shell.relay.app)
    assert shell.to_app == A
    shell = http1(rule(), app_open=True, auto=False)
    shell.now = 5.0
    shell.client(B)
    shell.refuse(shell.handlers[0])
    assert shell.waiting == [shell.relay.app]


def test_nor_with_what_cannot_be_read():
    shell = diverted()
    shell.now = 5.0
    shell.client(b"\0")
    assert len(shell.apps) == 2
    assert shell.to(shell.relay.app) == b"\0"
    assert shell.relay.wired == (shell.relay.client, shell.relay.app)


def test_without_a_diverted_request_in_between_it_is_as_without_us():
    shell = http1(rule(), app_open=True)
    shell.now = 100.0
    shell.client(A)
    shell.app(OK_A)
    shell.now = 200.0
    shell.client(POST)
    assert shell.to(shell.relay.app) == A + POST
    assert len(shell.apps) == 1


def test_where_no_new_connection_can_be_had_the_old_one_serves():
    """An app that shuts down serves the connections it has, and takes no others."""
    shell = diverted(before=A)
    first = shell.relay.app
    shell.auto = False
    shell.now = 5.0
    shell.client(POST + A)
    assert first.ending is Ending.NONE
    shell.refuse(shell.relay.app)
    assert shell.relay.app is first
    assert shell.to_app == A + POST + A
    shell.app(OK_A)
    shell.app(OK_A)
    assert shell.to_client == OK_A + OK_B + OK_A + OK_A
    shell.eof(first)
    assert shell.relay.client.ending is Ending.FINISH


def test_where_no_new_connection_can_be_had_a_wire_takes_the_old_one():
    shell = diverted()
    first = shell.relay.app
    shell.auto = False
    shell.now = 5.0
    shell.client(b"\0")
    shell.refuse(shell.relay.app)
    assert shell.to(first) == b"\0"
    assert shell.relay.wired == (shell.relay.client, first)


@pytest.mark.parametrize("how", ["eof", "lose", "word"])
@pytest.mark.parametrize("request_", [POST, b"\0"], ids=["post", "wire"])
def test_an_old_one_that_ends_meanwhile_serves_nothing(how, request_):
    shell = diverted()
    first = shell.relay.app
    shell.auto = False
    shell.now = 5.0
    shell.client(request_)
    if how == "word":
        shell.receive(first, TIMEOUT)
    else:
        getattr(shell, how)(first)
    assert shell.relay.client.ending is Ending.NONE
    assert shell.to_client == OK_B
    shell.refuse(shell.relay.app)
    assert shell.relay.client.ending is Ending.ABORT
    assert shell.to(first) == b""


def test_a_client_that_ends_after_a_diverted_answer_needs_no_app():
    shell = diverted(before=A)
    shell.now = 5.0
    shell.eof(shell.relay.client)
    assert shell.relay.done
    assert len(shell.apps) == 1
    assert shell.relay.app.ending is Ending.CLOSE


def test_a_thousand_retired_legs_leave_no_trace():
    shell = diverted()
    for turn in range(1000):
        shell.eof(shell.relay.app)
        shell.client(A if turn % 2 else B)
        (shell.app if turn % 2 else shell.handler)(OK_A)
        shell.client(B)
        shell.handler(OK_B)
        shell.now += 1.0
    assert len(shell.relay.legs) < 8


def test_who_is_left():
    shell = diverted(before=A)
    assert not shell.relay.is_orphaned
    shell.eof(shell.relay.app)
    assert shell.relay.is_orphaned
    shell.client(B)
    assert not shell.relay.is_orphaned
    shell.handler(OK_B)
    assert shell.relay.is_orphaned
    shell.client(A)
    shell.app(OK_A)
    assert not shell.relay.is_orphaned


# --- the legs by themselves -------------------------------------------------------------------------------------------


def peers(*, app_open=False):
    relay = Relay()
    relay.app.open = app_open
    state = ConnectionState()
    return relay, state, Peers(relay, state, LIMITS)


def test_the_app_is_asked_for_once():
    relay, _, legs = peers()
    assert not legs.app_in_use
    assert legs.ask_app() is legs.ask_app() is relay.app
    assert relay.opening == [relay.app]
    assert legs.app_in_use


def test_an_app_that_the_shell_brought_is_not_asked_for():
    relay, _, legs = peers(app_open=True)
    assert legs.app_in_use
    assert legs.ask_app() is relay.app
    assert not relay.opening


@pytest.mark.parametrize(("silent", "renewed"), [(0.09, False), (0.11, True)])
def test_a_leg_that_was_bypassed_is_renewed_after_a_silence(silent, renewed):
    relay, state, legs = peers(app_open=True)
    old, reader = relay.app, legs.responses
    old.active, relay.now = 50.0, 50.0 + silent
    state.app_bypassed = True
    assert (legs.ask_app() is not old) is renewed
    assert not state.app_bypassed
    assert (legs.responses is not reader) is renewed
    assert legs.spare is (old if renewed else None)
    assert relay.opening == ([relay.app] if renewed else [])
    assert not old.ending
    relay.now += 100.0
    assert legs.ask_app() is relay.app, "only a leg that was bypassed is renewed"


def test_the_spare_leg_takes_what_the_refused_one_had():
    relay, state, legs = peers(app_open=True)
    old = relay.app
    relay.now, state.app_bypassed = 1.0, True
    new = state.answering_leg = legs.ask_app()
    new.write(b"request")
    assert legs.use_spare()
    assert relay.app is old is state.answering_leg
    assert (old.out, old.queued) == ([b"request"], 7)
    assert (new.out, new.queued, new.ending) == ([], 0, Ending.ABORT)
    assert not legs.use_spare()


def test_a_spare_leg_that_is_not_needed_is_closed():
    relay, state, legs = peers(app_open=True)
    old = relay.app
    relay.now, state.app_bypassed = 1.0, True
    legs.ask_app()
    legs.drop_spare()
    legs.drop_spare()
    assert old.ending is Ending.CLOSE
    assert legs.spare is None


def test_one_handler_leg_per_intercept():
    relay, _, legs = peers()
    one, reused = legs.handler(rule())
    assert not reused
    assert legs.handler(rule()) == (one, True)
    other, _ = legs.handler(rule("other"))
    assert relay.opening == [one, other]
    relay.opening.clear()
    legs.drop_handler(one, Ending.ABORT)
    again, reused = legs.handler(rule())
    assert not reused
    assert again is not one
    legs.end_all(Ending.CLOSE, but=other)
    assert other.ending is Ending.NONE
    assert (again.ending, relay.app.ending, one.ending) == (Ending.CLOSE, Ending.CLOSE, Ending.ABORT)


def test_a_leg_that_nobody_has_seen_yet_is_forgotten_at_once():
    relay, _, legs = peers()
    leg, _ = legs.handler(rule())
    legs.drop_handler(leg, Ending.ABORT)
    assert not relay.opening
    assert leg not in relay.legs
