"""Any order of anything: nothing raises, no promise of `engine.relay` is broken (the shell checks them)."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidestep.engine.leg import Ending, Role
from tests.effort import examples
from tests.unit.engine.hostile_heads import HOSTILE, HOSTILE_RESPONSE_BODIES, HOSTILE_RESPONSES
from tests.unit.engine.shell import Shell, http1, rule

A = b"GET /a HTTP/1.1\r\nHost: app.test\r\n\r\n"
B = b"GET /b HTTP/1.1\r\nHost: app.test\r\nX-Dev: me\r\n\r\n"
OTHER = B.replace(b"me", b"you")
SWITCH = b"Upgrade: websocket\r\nConnection: upgrade\r\n"
REQUESTS = [
    A, B, OTHER, A + B + A, B + B, B + OTHER,
    A.replace(b"Host", SWITCH + b"Host"), B.replace(b"Host", SWITCH + b"Host"),
    B.replace(b"GET /b", b"CONNECT db:1"), B.replace(b"GET", b"HEAD"), B.replace(b"1.1", b"1.0"),
    A.replace(b"\r\n\r\n", b"\r\nContent-Length: 4\r\n\r\nbody"),
    B.replace(b"\r\n\r\n", b"\r\nContent-Length: 4\r\n\r\nbody"),
    B.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"),
    B.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\nzz"),
    B.replace(b"Host", b"Connection: close\r\nHost"),
]  # fmt: skip
RESPONSES = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na", b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\nuntil the end",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\na",
]  # fmt: skip


def act(shell: Shell, random: Random, ended: set[int], dead: set[int]) -> None:
    relay = shell.relay
    if shell.waiting and random.random() < 0.3:
        leg = random.choice(shell.waiting)
        if leg.ending:
            shell.waiting.remove(leg)
        elif random.random() < 0.7:
            shell.open(leg)
        else:
            dead.add(id(leg))
            shell.refuse(leg)
        return
    live = [leg for leg in shell.legs if leg.open and id(leg) not in dead and leg.ending < Ending.ABORT]
    if not live:
        return
    leg = random.choice(live)
    roll = random.random()
    if roll < 0.04:
        dead.add(id(leg))
        shell.lose(leg)
    elif id(leg) in ended:
        return
    elif roll < 0.1:
        ended.add(id(leg))
        shell.eof(leg)
    elif roll < 0.12 and relay.deadline is not None:
        relay.expired(random.choice([1.0, 1e9]))
        shell._settle()
    elif relay.reads(leg):
        source = REQUESTS if leg.role is Role.CLIENT else RESPONSES
        data = random.choice(source)
        if random.random() < 0.05:
            hostile = HOSTILE if leg.role is Role.CLIENT else HOSTILE_RESPONSES + HOSTILE_RESPONSE_BODIES
            data = random.choice(hostile)[1]
        if random.random() < 0.3:
            data = data[random.randrange(len(data)) :]
        if random.random() < 0.3:
            data = data[: random.randrange(len(data)) + 1]
        shell.receive(leg, data)


@pytest.mark.timeout(600)
@settings(max_examples=examples(1500), deadline=None)
@given(st.integers(0, 1 << 40), st.booleans(), st.booleans())
def test_anything_in_any_order(seed, auto, app_open):
    random = Random(seed)
    shell = http1(rule(), rule("two", b"you"), auto=auto, app_open=app_open)
    ended: set[int] = set()
    dead: set[int] = set()
    for _ in range(40):
        act(shell, random, ended, dead)
        assert len(shell.relay.legs) < 12
        if shell.relay.done:
            break
    else:
        # Whatever state this is, the end of everybody ends it.
        for leg in [shell.relay.client, shell.relay.app, *shell.handlers]:
            if not shell.relay.done and id(leg) not in dead and (leg.open or leg in shell.waiting):
                if leg in shell.waiting:
                    shell.waiting.remove(leg)
                shell.lose(leg)
        assert shell.relay.done
