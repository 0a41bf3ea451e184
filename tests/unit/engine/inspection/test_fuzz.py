"""Any order of anything on an inspected connection: nothing raises, no promise of `engine.relay` is broken.

Under Enforce and Fail the app never gets a byte of a request that a rule blocks by its path.
"""

from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidestep.engine.http2.relay import Http2Relay
from sidestep.engine.inspection.limits import InspectionLimits
from sidestep.engine.leg import Ending, Role
from sidestep.model.inspection import Action, Direction, Pattern, Rule
from sidestep.policy.route import Route, SteeredPort
from tests.effort import examples
from tests.unit.engine.http1 import test_fuzz as plain
from tests.unit.engine.http2.test_fuzz import LIMITS, Chaos
from tests.unit.engine.http2_peers import rule as http2_rule
from tests.unit.engine.inspection.inspecting import (
    FAIL,
    MODES,
    NO_ADMIN,
    Inspected,
    Recorder,
    gate,
    get,
    inspection,
    path,
    post,
)
from tests.unit.engine.shell import rule

RULES = (
    NO_ADMIN,
    Rule("body", Action.BLOCK, match=path("/p"), patterns=(Pattern(regex="ody"),)),
    Rule("answer", Action.BLOCK, Direction.RESPONSE, match=path("/a"), patterns=(Pattern(regex="until"),)),
    Rule("see", Action.ALERT, patterns=(Pattern(regex="e"),)),
    Rule("see-answer", Action.LOG, Direction.RESPONSE, patterns=(Pattern(regex="a"),)),
)
REQUESTS = [
    *plain.REQUESTS,
    get(b"/admin"),
    get(b"/admin", b"X-Dev: me"),
    get(b"/a", b"Upgrade: h2c", b"Connection: upgrade, http2-settings", b"HTTP2-Settings: AAMAAABk"),
    post(b"body"),
    post(b"other", chunk=2),
    post(b"body", b"Expect: 100-continue"),
    post(b"x" * 70_000),
    post(b"body", target=b"/admin", chunk=3),
    get(b"/1") + get(b"/admin") + get(b"/2"),
]


@pytest.mark.timeout(600)
@settings(max_examples=examples(400), deadline=None)
@given(st.integers(0, 1 << 40), st.sampled_from(sorted(MODES)), st.booleans(), st.booleans())
def test_anything_in_any_order(seed, mode, auto, app_open):
    random = Random(seed)
    policy = MODES[mode]
    route = Route((rule(), rule("two", b"you")))
    shell = Inspected(*RULES, route=route, auto=auto, app_open=app_open, tls=random.random() < 0.5, **policy)
    requests, plain.REQUESTS[:] = plain.REQUESTS[:], REQUESTS
    ended: set[int] = set()
    dead: set[int] = set()
    try:
        for _ in range(40):
            plain.act(shell, random, ended, dead)
            if shell.relay.done:
                break
            if policy is FAIL:
                assert b"/admin" not in shell.to_app + shell.to_handler
                assert shell.relay.joined is None or shell.relay.client in shell.ended
        else:
            for leg in [shell.relay.client, shell.relay.app, *shell.handlers]:
                if not shell.relay.done and id(leg) not in dead and (leg.open or leg in shell.waiting):
                    if leg in shell.waiting:
                        shell.waiting.remove(leg)
                    shell.lose(leg)
            assert shell.relay.done
    finally:
        plain.REQUESTS[:] = requests
    assert len(shell.relay.legs) < 12
    assert Role.CLIENT is shell.relay.client.role
    assert Ending.NONE is not shell.relay.client.ending


FEW = (
    Rule("body", Action.BLOCK, match=path("/m"), patterns=(Pattern(regex="[a-f]{3}"),)),
    Rule("answer", Action.BLOCK, Direction.RESPONSE, match=path("/"), patterns=(Pattern(regex="[x-z]{3}"),)),
    Rule("see", Action.ALERT, patterns=(Pattern(regex="[0-9]{2}"),)),
    Rule("see-answer", Action.LOG, Direction.RESPONSE, patterns=(Pattern(regex="a"),)),
)


class InspectedChaos(Chaos):
    """Some of the rules, each mode; the window is smaller than some bodies."""

    def make(self) -> Http2Relay:
        policy = MODES[self.rng.choice(sorted(MODES))]
        rules = self.rng.sample(FEW, self.rng.randint(1, len(FEW)))
        made = gate(inspection(*rules, **policy), Recorder(), InspectionLimits(window=1500))
        port = SteeredPort(80, Route((http2_rule(),)))
        return Http2Relay(port, tls=False, limits=LIMITS, budget=self.budget, gate=made)

    def shell(self) -> None:
        super().shell()
        if self.relay.deadline is not None and self.rng.random() < 0.05:
            self.relay.expired(self.relay.deadline)
            super().shell()

    def step(self) -> None:
        super().step()  # whole frames: some are told apart at their beginning, others once they are whole
        connection = self.relay._connection
        inspected, streams = connection.inspection, connection.state.streams
        assert len(inspected.waiting) <= 1
        assert connection.app.has_ended or {*inspected.requests, *inspected.responses} <= set(streams.relayed)
        diversion: Any = connection.diversion
        assert set(diversion._held) <= set(streams.exchanges.values())


@settings(deadline=None, max_examples=examples(200), suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 1 << 64))
def test_hostile_frames_have_only_documented_outcomes(seed: int) -> None:
    chaos = InspectedChaos(seed)
    for _ in range(150):
        chaos.step()
        if chaos.relay.done or chaos.relay.wired is not None:
            break
