"""`--crs DIR` with a folder as the project releases version 4: found, loaded, its settings and scores understood."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sidestep.inspector.rules import Location
from sidestep.model.errors import ConfigurationError
from sidestep.protocols.waf_messages import Outcome
from sidestep.snapshots.waf import Profile
from tests.harness.core_rule_set_4 import VERSION, core_rule_set_4
from tests.harness.inspectors import InspectorZygote
from tests.privileged.inspector.test_inspector import ATTACK, LEAKS

SQLI = 942100


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return core_rule_set_4(tmp_path_factory.mktemp("crs") / "coreruleset")


@pytest.fixture(scope="module")
def zygote(folder):
    with InspectorZygote(str(folder)) as made:
        yield made


@pytest.fixture
def inspector(zygote):
    with zygote.spawn() as made:
        yield made


def test_no_name_of_version_3_is_left(folder):
    for path in (*folder.rglob("*.conf"), folder / "crs-setup.conf.example"):
        text = path.read_text()
        left = re.findall(r"(?i)\btx[.:](?:executing_)?paranoia_level\b|\btx[.:]anomaly_score(?:_pl.)?\b", text)
        assert not left, path
    assert not (folder / "crs-setup.conf").exists()


def test_it_is_loaded_with_its_version(zygote):
    assert zygote.loaded.crs == VERSION
    assert zygote.loaded.names[SQLI] == "SQL Injection Attack Detected via libinjection"


def test_scores_are_read(inspector):
    assert inspector.configure().error is None
    told = inspector.ask(b"GET", ATTACK)
    assert (told.outcome, told.score) == (Outcome.BLOCK, 10)
    assert {SQLI, 949110} <= set(told.rules)
    assert inspector.ask(b"GET", b"/items?id=1").outcome is Outcome.PASS


@pytest.mark.parametrize(
    ("settings", "outcome"),
    [
        ({"threshold": 10}, Outcome.BLOCK),
        ({"threshold": 11}, Outcome.PASS),
        ({"excluded": (942100, 942190, 942270, 942130, 942360)}, Outcome.PASS),
    ],
)
def test_settings_are_taken(inspector, settings, outcome):
    wanted = {"threshold": 5, **settings}
    profile = Profile(1, wanted["threshold"], 256, excluded=wanted.get("excluded", ()))
    assert inspector.configure(profile).error is None
    assert inspector.ask(b"GET", ATTACK).outcome is outcome


def test_levels_are_taken(inspector):
    profiles = [Profile(level, 5, 256) for level in range(1, 5)]
    assert inspector.configure(*profiles).error is None
    target = b"/items?name=%23%23%23~%60%7C%7C(())"
    told = [inspector.ask(b"GET", target, profile=place) for place in range(4)]
    assert told[0].outcome is Outcome.PASS
    assert told[3].outcome is Outcome.BLOCK
    assert [each.score for each in told] == sorted(each.score for each in told)


def test_responses_are_judged(inspector):
    profiles = Profile(1, 5, 256, responses=True), Profile(1, 7, 256, responses=True)
    assert inspector.configure(*profiles).error is None
    for number, body in LEAKS.items():
        told = inspector.ask_response(500, body)
        assert told.outcome is Outcome.BLOCK
        assert number in told.rules
    assert inspector.ask_response(200, LEAKS[951230], profile=1).outcome is Outcome.PASS
    assert inspector.ask_response(200, b"<p>hello</p>").outcome is Outcome.PASS


def test_the_setup_of_a_user_goes_before_the_example(folder, tmp_path):
    copy = tmp_path / "crs"
    (copy / "rules").mkdir(parents=True)
    (copy / "rules" / "a.conf").touch()
    for name in ("crs-setup.conf.example", "crs-setup.conf"):
        (copy / name).touch()
        assert Location.find(str(copy)).setup == str(copy / name)
    (copy / "rules" / "a.conf").unlink()
    with pytest.raises(ConfigurationError, match="there is no Core Rule Set"):
        Location.find(str(copy))
    assert Location.find(str(folder)).rules == str(Path(folder, "rules"))
