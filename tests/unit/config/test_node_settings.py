import time

import pytest

from sidestep.config.node_settings import EveOutput, NodeSettings, resolve
from sidestep.config.proxy_workers import Workers

KEY = "sidestep.dev/"


@pytest.mark.parametrize(
    ("annotation", "value", "field", "expected"),
    [
        ("enabled", "true", "enabled", True),
        ("enabled", "false", "enabled", False),
        ("namespaces", "shop, team-*,x?", "namespaces", ("shop", "team-*", "x?")),
        ("namespaces", "*", "namespaces", ("*",)),
        ("max-pods", "0", "max_pods", 0),
        ("max-pods", "25", "max_pods", 25),
        ("drain-timeout", "1m30s", "drain_timeout", 90.0),
        ("proxy-workers", "16", "proxy_workers", Workers(16)),
        ("proxy-workers", "auto", "proxy_workers", Workers(16, automatic=True)),
        ("eve", "stdout", "eve", EveOutput.STDOUT),
        ("eve", "off", "eve", EveOutput.OFF),
        ("inspection", "false", "inspection", False),
        ("inspection", "true", "inspection", True),
        (
            "outbound-deny",
            "10.0.0.0/8, 192.0.2.1,fd00::/8",
            "outbound_deny",
            ("10.0.0.0/8", "192.0.2.1/32", "fd00::/8"),
        ),
    ],
)
def test_good_values(annotation, value, field, expected):
    settings, problems = resolve({KEY + annotation: value})
    assert getattr(settings, field) == expected
    assert problems == ()


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        ("enabled", ""),
        ("inspection", "off"),
        ("enabled", "True"),
        ("enabled", "no"),
        ("enabled", "0"),
        ("namespaces", ""),
        ("namespaces", "a,,b"),
        ("namespaces", "Shop"),
        ("namespaces", "a/b"),
        ("namespaces", "[a-z]"),
        ("namespaces", "-a"),
        ("namespaces", "a\nb"),
        ("namespaces", "a" * 64),
        ("namespaces", ",".join(f"n{number}" for number in range(257))),
        ("max-pods", ""),
        ("proxy-workers", "0"),
        ("proxy-workers", "17"),
        ("proxy-workers", "1" * 5000),
        ("max-pods", "-1"),
        ("max-pods", "1_0"),
        ("max-pods", "1.5"),
        ("max-pods", "10001"),
        ("max-pods", "007"),
        ("max-pods", "9" * 5000),
        ("drain-timeout", "30"),
        ("drain-timeout", "forever"),
        ("drain-timeout", "0s"),
        ("drain-timeout", "2h"),
        ("eve", "/etc/passwd"),
        ("eve", ""),
    ],
)
def test_a_bad_value_is_a_problem_and_the_last_good_one_stays(annotation, value):
    good = {
        f"{KEY}enabled": "false",
        f"{KEY}namespaces": "shop",
        f"{KEY}max-pods": "7",
        f"{KEY}drain-timeout": "5s",
    }
    before, _ = resolve(good)
    after, (problem,) = resolve(good | {KEY + annotation: value}, previous=before, node="n1")
    assert after == before
    assert problem.text.startswith(f"annotation {KEY}{annotation} ")
    assert " of node n1: " in problem.text
    assert "the last good value stays" in problem.text
    assert problem.text.isprintable()
    assert len(problem.text) < 500


@pytest.mark.parametrize("value", ["", "10.0.0.1/8", "shop", ",".join(f"10.0.0.{number}" for number in range(257))])
def test_networks_that_cannot_be_read_deny_more_rather_than_less(value):
    annotations = {f"{KEY}outbound-deny": value}
    settings, (problem,) = resolve(annotations, previous=NodeSettings())
    assert settings.outbound_deny == ("0.0.0.0/0", "::/0")
    assert problem.annotation == f"{KEY}outbound-deny"
    before, _ = resolve({f"{KEY}outbound-deny": "10.0.0.0/8"})
    assert resolve(annotations, previous=before)[0].outbound_deny == ("10.0.0.0/8",)
    assert resolve({}, previous=settings)[0].outbound_deny == ()


def test_removing_an_annotation_brings_the_default_back():
    before, _ = resolve({f"{KEY}enabled": "false", f"{KEY}max-pods": "7"})
    assert resolve({}, previous=before) == (NodeSettings(), ())


def test_without_a_previous_value_the_default_stays():
    assert resolve({f"{KEY}max-pods": "x"})[0] == NodeSettings()


@pytest.mark.parametrize(
    ("globs", "namespace", "allowed"),
    [
        (("*",), "shop", True),
        (("*",), "kube-system", False),
        (("*",), "sidestep", False),
        (("kube-*",), "kube-system", False),
        (("kube-*",), "kube-public", True),
        (("kube-system",), "kube-system", True),
        (("sidestep",), "sidestep", True),
        (("team-?",), "team-a", True),
        (("team-?",), "team-ab", False),
        (("shop", "team-*"), "shop", True),
        (("shop",), "shopping", False),
        (("shop",), "my-shop", False),
    ],
)
def test_allowed_namespaces(globs, namespace, allowed):
    assert NodeSettings(namespaces=globs).allows(namespace) is allowed


def test_own_namespace_is_kept():
    settings, _ = resolve({}, previous=NodeSettings(own_namespace="tools"))
    assert not settings.allows("tools")
    assert settings.allows("sidestep")


@pytest.mark.alone
def test_hostile_globs_are_quick():
    settings, problems = resolve({f"{KEY}namespaces": "*a" * 31})
    assert problems == ()
    begin = time.monotonic()
    settings.allows("a" * 62 + "b")
    assert time.monotonic() - begin < 1
