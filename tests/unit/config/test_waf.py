"""`spec.waf` of policies."""

import msgspec
import pytest

from sidestep.config.field_error import FieldError
from sidestep.config.waf import WafFields, waf
from sidestep.model.config_map_key import ConfigMapKey
from sidestep.model.filter import PathCondition, PathTest
from sidestep.model.waf import OverLimit, Waf, WafException, WafLimits


def parse(document, namespace="shop"):
    """The settings in a document."""
    return waf(msgspec.convert(document, WafFields), namespace)


def test_without_settings_the_defaults_hold():
    assert parse({}) == Waf(1, 5, (), None, WafLimits(65536, 256, 0.25, OverLimit.BLOCK))


def test_all_settings_are_read():
    read = parse(
        {
            "ruleSet": "CRS",
            "paranoiaLevel": 3,
            "anomalyThreshold": 20,
            "excludeRules": [942100, 920420, 942100],
            "rulesFrom": {"configMapRef": {"name": "waf-rules", "key": "custom.conf"}},
            "limits": {"bodyBytes": 1000, "fields": 10, "verdictTimeout": "1s", "overLimitAction": "Pass"},
            "responses": True,
        }
    )
    key = ConfigMapKey("shop", "waf-rules", "custom.conf")
    assert read == Waf(3, 20, (920420, 942100), key, WafLimits(1000, 10, 1.0, OverLimit.PASS), responses=True)


def test_exceptions_are_read():
    read = parse(
        {
            "exceptions": [
                {"rules": [942100, 920420, 942100], "paths": [{"match": "Equal", "value": "/notes"}]},
                {
                    "rules": [941100],
                    "paths": [{"match": "Prefix", "value": "/wiki/"}, {"match": "Equal", "value": "/a.b~c"}],
                    "parameters": ["text", "json.items[0].html"],
                },
                {"rules": [932100], "parameters": ["q"]},
            ]
        }
    )
    notes, wiki = PathCondition(PathTest.EQUAL, "/notes"), PathCondition(PathTest.PREFIX, "/wiki/")
    assert read.exceptions == (
        WafException((920420, 942100), (notes,)),
        WafException((941100,), (wiki, PathCondition(PathTest.EQUAL, "/a.b~c")), ("text", "json.items[0].html")),
        WafException((932100,), (), ("q",)),
    )


EQUAL = {"match": "Equal", "value": "/a"}
ODD = [
    "a",
    "",
    "/a b",
    "/a%20b",
    "/a?b",
    "/a//b",
    "/a/../b",
    "/.a",
    '/a"b',
    "/a\\b",
    "/a;b",
    "/a\n",
    "/\u00e9",
    "/%{x}",
]


@pytest.mark.parametrize(
    ("exception", "path"),
    [
        ({"rules": [949110], "paths": [EQUAL]}, ".rules[0]"),
        ({"rules": [942100, 77], "paths": [EQUAL]}, ".rules[1]"),
        ({"rules": [942100]}, ""),
        *[({"rules": [942100], "paths": [EQUAL, {**EQUAL, "value": each}]}, ".paths[1].value") for each in ODD],
        *[
            ({"rules": [942100], "parameters": ["a", each]}, ".parameters[1]")
            for each in ("", "a b", "a,ctl:ruleEngine=Off", "a;b", 'a"', "a'", "\u00e9", "a" * 129, "*", "/a/", "a\n")
        ],
    ],
)
def test_an_exception_that_is_not_possible_is_named(exception, path):
    with pytest.raises(FieldError) as caught:
        parse({"exceptions": [{"rules": [942100], "parameters": ["q"]}, exception]})
    assert caught.value.path == f"spec.waf.exceptions[1]{path}"


def test_there_is_a_bound_for_all_exceptions_of_a_policy():
    rules = {"rules": list(range(942_000, 942_016)), "paths": [EQUAL]}
    assert parse({"exceptions": [{**rules, "parameters": [f"p{n}" for n in range(16)]}]})
    with pytest.raises(FieldError) as caught:
        parse({"exceptions": [{**rules, "parameters": [f"p{n}" for n in range(17)]}]})
    assert caught.value.path == "spec.waf.exceptions"


@pytest.mark.parametrize(
    "exception",
    [
        {"paths": [EQUAL]},
        {"rules": [], "paths": [EQUAL]},
        {"rules": [942100], "paths": [{"match": "Regex", "value": "/a"}]},
        {"rules": [942100], "paths": [EQUAL], "methods": ["GET"]},
        {"rules": [942100], "paths": [{**EQUAL, "value": "/" + "a" * 512}]},
        {"rules": ["942100"], "paths": [EQUAL]},
    ],
)
def test_what_no_exception_says_is_refused(exception):
    with pytest.raises(msgspec.ValidationError):
        parse({"exceptions": [exception]})


def test_a_policy_of_the_cluster_names_the_namespace_of_its_rules():
    reference = {"name": "waf-rules", "key": "custom.conf", "namespace": "security"}
    read = parse({"rulesFrom": {"configMapRef": reference}}, "")
    assert read.rules_from == ConfigMapKey("security", "waf-rules", "custom.conf")


@pytest.mark.parametrize(
    ("document", "namespace", "path"),
    [
        ({"excludeRules": [949110]}, "shop", "spec.waf.excludeRules[0]"),
        ({"excludeRules": [942100, 901100]}, "shop", "spec.waf.excludeRules[1]"),
        ({"excludeRules": [77]}, "shop", "spec.waf.excludeRules[0]"),
        ({"limits": {"verdictTimeout": "5"}}, "shop", "spec.waf.limits.verdictTimeout"),
        ({"limits": {"verdictTimeout": "5ms"}}, "shop", "spec.waf.limits.verdictTimeout"),
        ({"limits": {"verdictTimeout": "1m"}}, "shop", "spec.waf.limits.verdictTimeout"),
        (
            {"rulesFrom": {"configMapRef": {"name": "a", "key": "b", "namespace": "c"}}},
            "shop",
            "spec.waf.rulesFrom.configMapRef.namespace",
        ),
        ({"rulesFrom": {"configMapRef": {"name": "a", "key": "b"}}}, "", "spec.waf.rulesFrom.configMapRef.namespace"),
        ({"rulesFrom": {"configMapRef": {"name": "A", "key": "b"}}}, "x", "spec.waf.rulesFrom.configMapRef.name"),
        ({"rulesFrom": {"configMapRef": {"name": "a", "key": "b/c"}}}, "x", "spec.waf.rulesFrom.configMapRef.key"),
    ],
)
def test_what_is_not_possible_is_named(document, namespace, path):
    with pytest.raises(FieldError) as caught:
        parse(document, namespace)
    assert caught.value.path == path


@pytest.mark.parametrize(
    "document",
    [
        {"ruleSet": "Own"},
        {"paranoiaLevel": 0},
        {"paranoiaLevel": 5},
        {"anomalyThreshold": 0},
        {"limits": {"bodyBytes": 1024 * 1024 + 1}},
        {"limits": {"fields": 0}},
        {"limits": {"overLimitAction": "Log"}},
        {"paranoialevel": 1},
    ],
)
def test_values_are_bounded_and_unknown_fields_refused(document):
    with pytest.raises(msgspec.ValidationError):
        parse(document)
