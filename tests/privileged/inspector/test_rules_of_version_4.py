"""The rules of CRS 4 themselves, through a locked inspector: attacks, ordinary requests, and regression tests of 3.3.

The tests of version 4 are not to be had. Those of the version that is installed name rules by their numbers, of which
version 4 has kept most.
"""

from __future__ import annotations

import json

import pytest

from sidestep.protocols.waf_messages import Outcome
from sidestep.snapshots.waf import Profile
from tests.harness.core_rule_set_4 import CHANGED, LEFT_OUT, RELEASED, rules_of_version_4
from tests.harness.inspectors import FIELDS, InspectorZygote, hurry
from tests.privileged.inspector.benign import GRAPHQL_ATTACKS, requests
from tests.privileged.inspector.regression import NARROW, SETTINGS, askable, told_apart
from tests.privileged.inspector.test_inspector import ATTACK, LEAKS

pytestmark = pytest.mark.long

SHARE = 0.96


@pytest.fixture(scope="module")
def zygote():
    with InspectorZygote(str(rules_of_version_4())) as made:
        yield made


@pytest.fixture(scope="module")
def inspector(zygote):
    with zygote.spawn() as made:
        hurry(made.pid)
        assert made.configure(Profile(1, 5, 256, responses=True)).error is None
        yield made


def test_rules_that_cannot_be_applied_are_left_out(zygote):
    assert zygote.loaded.crs == RELEASED
    assert zygote.loaded.left_out == LEFT_OUT
    assert len(zygote.loaded.names) > 300


def test_fewer_than_one_percent_of_ordinary_requests_are_blocked(inspector):
    blocked = {}
    for request in requests():
        inspector.question(request.method, request.target, request.fields, request.body)
        told = inspector.receive()
        if told.outcome is not Outcome.PASS:
            blocked[request.title] = told.rules
    print(f"{len(blocked)} are blocked: {blocked}")
    assert len(blocked) < 5, blocked


def test_attacks_are_blocked(inspector):
    told = inspector.ask(b"GET", ATTACK)
    assert told.outcome is Outcome.BLOCK
    assert 942100 in told.rules
    for query in GRAPHQL_ATTACKS:
        body = json.dumps({"query": query}).encode()
        fields = ((b"Content-Type", b"application/json"), (b"Content-Length", str(len(body)).encode()))
        inspector.question(b"POST", b"/graphql", (*FIELDS, *fields), body)
        assert inspector.receive().outcome is Outcome.BLOCK, query


@pytest.mark.parametrize(("number", "body"), LEAKS.items())
def test_a_leak_in_a_response_is_found(inspector, number, body):
    told = inspector.ask_response(500, b"<p>oops</p>" + body)
    assert told.outcome is Outcome.BLOCK
    assert number in told.rules


@pytest.mark.timeout(600)
def test_the_regression_tests_of_the_installed_rules(zygote):
    known = zygote.loaded.names.keys() - set(LEFT_OUT)
    asked = [case for case in askable() if case.wanted | case.unwanted <= known]
    assert len(asked) > 2000
    failed = {}
    with zygote.spawn() as inspector:
        assert inspector.configure(Profile(4, 10000, 10000, custom=SETTINGS + NARROW)).error is None
        for case, told in inspector.ask_in_turn(asked, told_apart):
            rules = set(told.rules)
            if not case.wanted <= rules or case.unwanted & rules:
                failed[case.title] = sorted(rules)
    print(f"{len(failed)} of {len(asked)} fail: {sorted(failed)}")
    assert {int(each.partition("-")[0]) for each in failed} <= CHANGED.keys(), failed
    assert 1 - len(failed) / len(asked) >= SHARE
