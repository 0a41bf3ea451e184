"""The hot path is a shortcut: a relay that nobody asks `passes` does the same."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidestep.engine.http1.relay import Http1Relay
from sidestep.engine.leg import Leg
from sidestep.policy.route import Route, SteeredPort
from tests.effort import examples
from tests.unit.engine.http1.heads import OK_A, A, B
from tests.unit.engine.shell import Shell, http1, rule

POST = A.replace(b"GET", b"POST")[:-2] + b"Content-Length: 5\r\n\r\nhello"
HEAD = A.replace(b"GET", b"HEAD")
REQUESTS = [A, A, A, B, POST, HEAD, A + A]
LONG = b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n" + b"x" * 20
ANSWERS = [OK_A, OK_A, LONG, b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 304 Not Modified\r\n\r\n"]
LAST = [b"HTTP/1.1 200 OK\r\n\r\nx", b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\na", b"\0"]


class Unasked(Shell):
    """A shell that gives everything to `receive`."""

    def receive(self, leg: Leg, data: bytes) -> None:
        leg.active = self.now
        self.relay.receive(leg, data, self.now)
        self._settle()


def outcome(shell: Shell) -> tuple[object, ...]:
    relay = shell.relay
    return (
        *(shell.to_client, shell.to_app, shell.to_handler, relay.anomaly, relay.done, relay.idle, relay.is_orphaned),
        *(relay.joined is None, relay.reads(relay.client), relay.reads(relay.app), relay.client.ending),
    )


def run(shell: Shell, random: Random) -> None:
    for _ in range(30):
        relay = shell.relay
        if relay.done or relay.client.ending:
            return
        roll = random.random()
        data = random.choice(REQUESTS) if roll < 0.5 else random.choice(ANSWERS if roll < 0.97 else LAST)
        at = random.randrange(1, len(data) + 1) if random.random() < 0.2 else len(data)
        to_handler = random.random() < 0.3
        for piece in (data[:at], data[at:]):
            if not piece:
                continue
            if roll < 0.5:
                if relay.reads(relay.client):
                    shell.client(piece)
            elif to_handler and shell.handlers and not shell.handlers[-1].ending:
                shell.handler(piece)
            elif relay.app.open and not relay.app.ending:
                shell.app(piece)


@settings(max_examples=examples(400), deadline=None)
@given(st.integers(0, 1 << 40))
def test_the_same_happens_without_the_shortcut(seed):
    outcomes = []
    for kind in (Shell, Unasked):
        shell = kind(Http1Relay(SteeredPort(8080, Route((rule(),))), tls=False))
        run(shell, Random(seed))
        outcomes.append(outcome(shell))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("answer", [OK_A, LONG, LONG[:-5]])
def test_a_plain_request_and_its_answer_pass(answer):
    shell = http1(rule())
    shell.client(A)
    shell.app(OK_A)
    relay = shell.relay
    assert relay.passes(relay.client, A) is relay.app
    assert relay.passes(relay.app, answer) is relay.client
    if answer == LONG[:-5]:
        assert not relay.idle
        assert relay.passes(relay.app, LONG[-5:]) is relay.client
    assert relay.idle


@pytest.mark.parametrize("data", [B, POST, HEAD, A[:-1], A + A, A + b"G"])
def test_what_needs_a_closer_look_does_not_pass(data):
    shell = http1(rule())
    shell.client(A)
    shell.app(OK_A)
    assert shell.relay.passes(shell.relay.client, data) is None


@pytest.mark.parametrize(
    "answer",
    [OK_A + b"x", OK_A[:-3], LONG + OK_A, b"HTTP/1.1 100 Continue\r\n\r\n", *LAST],
)
def test_an_answer_that_needs_a_closer_look_does_not_pass(answer):
    shell = http1(rule())
    shell.client(A)
    assert shell.relay.passes(shell.relay.app, answer) is None


def test_nothing_passes_before_the_app_was_asked_or_while_a_handler_answers():
    shell = http1(rule())
    relay = shell.relay
    assert relay.passes(relay.client, A) is None
    shell.client(A)
    shell.app(OK_A)
    shell.client(B)
    assert relay.passes(relay.client, A) is None
    assert relay.passes(relay.app, OK_A) is None
    assert relay.passes(shell.handlers[0], OK_A) is None
