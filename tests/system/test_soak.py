"""Each fault of the soak and each limit once; `make soak` runs half an hour of them."""

from __future__ import annotations

import pytest

from tests.soak.limits import at_limits
from tests.soak.soak import soaking

pytestmark = pytest.mark.alone

SECONDS = 30.0
"""Of traffic with faults, or longer, until every fault has happened once."""


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_nothing_is_lost_and_nothing_is_left(tmp_path):
    with soaking(tmp_path, seed=4) as soak:
        account = soak.run(SECONDS)
    print(account.text())
    assert not account.wrong, account.text()
    hindered = {"zygote", "listener", "wall"}
    assert set(account.faults) == {"proxy", "handler", "CLI", "daemon", "restart", "upgrade"} | hindered
    assert len(account.outcomes) > 1000


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_what_a_policy_blocks_reaches_the_app_only_while_no_daemon_runs_and_that_is_recorded(tmp_path):
    with soaking(tmp_path, seed=4, fails=True) as soak:
        account = soak.run(SECONDS)
    print(account.text())
    assert not account.wrong, account.text()
    assert soak.bypasses is not None
    assert len(soak.bypasses.gaps) >= 2


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_somebody_answers_every_client_of_a_port_at_its_limits(tmp_path):
    with at_limits(tmp_path, seed=4, hold=2.5) as limits:
        findings = limits.run(0.0)
    print(findings.text())
    assert not findings.wrong, findings.text()
    assert {name for _, _, name in findings.faults} == set(limits.faults)
    assert len(findings.answers) > 200
