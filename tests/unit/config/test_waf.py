"""`spec.waf` of policies."""

import msgspec
import pytest

from sidestep.config.field_error import FieldError
from sidestep.config.waf import WafFields, waf
from sidestep.model.config_map_key import ConfigMapKey
from sidestep.model.waf import OverLimit, Waf, WafLimits


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
