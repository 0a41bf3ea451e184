"""deploy/inspection.yaml: it fits Kubernetes, says what the parser of policies says, and keeps the rights apart."""

import copy
import typing
from pathlib import Path

import kubernetes_validate
import msgspec
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sidestep.config import inspection_fields as fields
from sidestep.config.field_error import FieldError
from sidestep.config.inspection import MAX_NAME, MAX_REGEX, MAX_SELECTOR, cluster_inspection_policy, inspection_policy
from sidestep.config.object_fields import SelectorFields
from sidestep.config.waf import WafFields
from sidestep.kube import policies as kube_policies
from sidestep.model.inspection import Builtin
from tests.e2e import releases
from tests.effort import examples
from tests.unit.config.test_egress import EGRESS, issuer
from tests.unit.config.test_inspection import SPEC, YAML
from tests.unit.deploy import test_manifest
from tests.unit.deploy.cel import passes

DOCUMENTS = [one for one in yaml.safe_load_all((test_manifest.DEPLOY / "inspection.yaml").read_text()) if one]
POLICIES = ("inspectionpolicies.sidestep.dev", "clusterinspectionpolicies.sidestep.dev")


def the(kind, name):
    [found] = [one for one in DOCUMENTS if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


def schema(name):
    [version] = the("CustomResourceDefinition", name)["spec"]["versions"]
    return version["schema"]["openAPIV3Schema"]


def spec(name):
    return schema(name)["properties"]["spec"]


@pytest.mark.parametrize("version", releases.schemas())
def test_it_fits(version):
    for document in DOCUMENTS:
        kubernetes_validate.validate(document, version, strict=True)


# --- the schema and the parser ---------------------------------------------------------------------------------------


def properties_of(part):
    return set(part["properties"])


def names_of(struct):
    return {field.encode_name for field in msgspec.structs.fields(struct)}


def egress_fields(part):
    destination, rule = (part["properties"][each]["items"] for each in ("destinations", "rules"))
    return (
        (fields.EgressFields, part),
        (fields.DestinationFields, destination),
        (fields.EgressRuleFields, rule),
        (fields.EgressMatchFields, rule["properties"]["match"]),
        (fields.EgressMatchFields, rule["properties"]["except"]),
        (WafFields, part["properties"]["waf"]),
        (fields.SecretFields, part["properties"]["issuer"]),
        (fields.SecretFields, part["properties"]["trust"]),
    )


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("field", ["issuer", "trust"])
def test_a_secret_has_a_namespace_where_the_policy_has_none(name, field):
    found = spec(name)["properties"]["egress"]["properties"][field]["properties"]["secretRef"]
    names = names_of(fields.SecretRefFields) - (set() if name.startswith("cluster") else {"namespace"})
    assert properties_of(found) == names == set(found["required"])


@pytest.mark.parametrize("name", POLICIES)
def test_the_schema_has_the_fields_that_the_parser_has(name):
    wanted = names_of(fields.SpecFields) - {"workload" if name.startswith("cluster") else "namespaceSelector"}
    part = spec(name)
    assert properties_of(part) == wanted
    rule = part["properties"]["rules"]["items"]
    for struct, found in (
        (fields.RuleFields, rule),
        (fields.LogFields, part["properties"]["log"]),
        (fields.RedactFields, part["properties"]["redact"]),
        (fields.PatternFields, rule["properties"]["patterns"]["items"]),
        (fields.ThresholdFields, rule["properties"]["threshold"]),
        (fields.RateLimitFields, rule["properties"]["rateLimit"]),
        (fields.MatchFields, rule["properties"]["match"]),
        (fields.MatchFields, rule["properties"]["except"]),
        (fields.HeaderFields, rule["properties"]["match"]["properties"]["headers"]["items"]),
        (fields.HeaderFields, rule["properties"]["match"]["properties"]["queryParameters"]["items"]),
        (fields.PathFields, rule["properties"]["match"]["properties"]["paths"]["items"]),
        (SelectorFields, part["properties"]["podSelector"]),
        *egress_fields(part["properties"]["egress"]),
    ):
        assert properties_of(found) == names_of(struct), struct
        for field in msgspec.structs.fields(struct):
            of_schema = found["properties"][field.encode_name]
            if "enum" in of_schema:
                hint = typing.get_type_hints(struct)[field.name]
                known = {*typing.get_args(hint)} or {*hint}
                known = {*Builtin} if Builtin in known else known
                assert {*of_schema["enum"]} == known, field
            if field.default not in {msgspec.NODEFAULT, None} and not isinstance(field.default, str):
                assert of_schema.get("default", field.default) == field.default


def test_bounds_are_those_of_the_parser():
    part = spec(POLICIES[0])["properties"]
    rule = part["rules"]["items"]["properties"]
    match = rule["match"]["properties"]
    assert part["rules"]["maxItems"] == fields.MAX_RULES
    assert part["ports"]["maxItems"] == fields.MAX_PORTS
    assert rule["patterns"]["maxItems"] == fields.MAX_PATTERNS
    assert rule["patterns"]["items"]["properties"]["regex"]["maxLength"] == MAX_REGEX
    assert match["sources"]["maxItems"] == fields.MAX_SOURCES
    assert {match[each]["maxItems"] for each in ("serverNames", "queryParameters", "clientCertificates")} == {
        fields.MAX_NAMES
    }
    assert match["clientCertificates"]["items"]["maxLength"] == MAX_NAME
    assert rule["threshold"]["properties"]["count"]["maximum"] == fields.MAX_COUNT
    assert part["podSelector"]["properties"]["matchLabels"]["maxProperties"] == MAX_SELECTOR
    egress = part["egress"]["properties"]
    assert egress["destinations"]["maxItems"] == fields.MAX_DESTINATIONS
    assert egress["rules"]["maxItems"] == fields.MAX_RULES
    for each in (egress["destinations"]["items"], egress["rules"]["items"]["properties"]["match"]):
        assert each["properties"]["networks"]["maxItems"] == fields.MAX_SOURCES
        assert each["properties"]["ports"]["maxItems"] == fields.MAX_PORTS
    assert egress["destinations"]["items"]["properties"]["names"]["maxItems"] == fields.MAX_NAMES


def fits(name, value):
    """Whether an API server takes a spec: by the schema, and by the rules (CEL) on it and its parts."""
    return passes(spec(name), value)


@pytest.mark.parametrize("name", POLICIES)
def test_the_schema_has_the_status_that_the_daemons_write(name):
    status = schema(name)["properties"]["status"]
    entry = status["properties"]["nodes"]["additionalProperties"]
    condition = status["properties"]["conditions"]["items"]
    for struct, found in (
        (kube_policies.StatusFields, status),
        (kube_policies.StatusCondition, condition),
        (kube_policies.NodeEntry, entry),
        (kube_policies.DaemonEntry, entry["properties"]["daemon"]),
        (kube_policies.FailingPod, entry["properties"]["failingPods"]["items"]),
    ):
        assert properties_of(found) == names_of(struct), struct
    assert entry["properties"]["failingPods"]["maxItems"] == kube_policies.MAX_FAILING
    assert entry["properties"]["conflicts"]["maxItems"] == kube_policies.MAX_FAILING


WHOLE = yaml.safe_load(YAML)["spec"]


def test_what_the_parser_takes_the_api_server_takes():
    for value in (SPEC, WHOLE, {"workload": "deployment/orders", "rules": SPEC["rules"]}):
        inspection_policy({"metadata": {"name": "p"}, "spec": value})
        assert fits(POLICIES[0], value)
    cluster = WHOLE | {"namespaceSelector": {}}
    cluster_inspection_policy({"metadata": {"name": "p"}, "spec": cluster})
    assert fits(POLICIES[1], cluster)
    waf = {"paranoiaLevel": 2, "excludeRules": [942100], "limits": {"fields": 10}}
    for block in (
        EGRESS,
        {},
        {"waf": waf},
        {"rules": [{"name": "a", "action": "Block", "match": {"networks": ["192.0.2.1"]}}]},
    ):
        value = {"podSelector": {}, "egress": block}
        inspection_policy({"metadata": {"name": "p"}, "spec": value})
        assert fits(POLICIES[0], value)
    named = {"podSelector": {}, "namespaceSelector": {}, "egress": EGRESS | {"issuer": issuer(namespace="shop")}}
    cluster_inspection_policy({"metadata": {"name": "p"}, "spec": named})
    assert fits(POLICIES[1], named)
    every = {
        "podSelector": {},
        "rules": [{"name": "a", "action": "Log", "patterns": [{"builtin": b} for b in Builtin]}],
    }
    assert fits(POLICIES[0], every)


@pytest.mark.parametrize(
    "value",
    [
        {"rules": SPEC["rules"]},
        SPEC | {"workload": "orders"},
        SPEC | {"rules": []},
        SPEC | {"mode": "enforce"},
        SPEC | {"failurePolicy": "Close"},
        SPEC | {"rules": [{"name": "a"}]},
        SPEC | {"rules": [{"name": "A", "action": "Log"}]},
        SPEC | {"rules": [{"name": "a", "action": "Log", "patterns": [{}]}]},
        SPEC | {"rules": [{"name": "a", "action": "Log", "patterns": [{"builtin": "Jwt", "regex": "a"}]}]},
        SPEC | {"rules": [{"name": "a", "action": "Log", "except": {}}]},
        SPEC | {"rules": [{"name": "a", "action": "Log", "threshold": {"count": 0, "period": "1m"}}]},
        SPEC | {"log": {"samplePercent": 101}},
        SPEC | {"egress": {"destinations": []}},
        SPEC | {"egress": {"destinations": [{"mode": "Observe"}]}},
        SPEC | {"egress": {"destinations": [{"name": "a", "mode": "Open"}]}},
        SPEC | {"egress": {"destinations": [{"name": "a", "ports": [0]}]}},
        SPEC | {"egress": {"rules": [{"name": "a", "action": "Block", "match": {"fingerprints": ["t13"]}}]}},
        SPEC | {"egress": EGRESS | {"issuer": {}}},
        SPEC | {"egress": {"waf": {"excludeRules": [7]}}},
        {"podSelector": {}},
        {"podSelector": {}, "workload": "deployment/orders", "rules": SPEC["rules"]},
        {"podSelector": {}, "egress": EGRESS | {"rules": [{"name": "a", "action": "Log", "patterns": [{}]}]}},
    ],
)
def test_what_the_api_server_refuses_the_parser_refuses(value):
    assert not fits(POLICIES[0], value)
    with pytest.raises(FieldError):
        inspection_policy({"metadata": {"name": "p"}, "spec": value})


WHOLE_WITH_EGRESS = WHOLE | {"egress": EGRESS}
ODD = (None, 0, -1, 1, "", "x", [], {}, [{}], ["x"], True, 1.5, "1m", "10.0.0.0/8", {"regex": "a"}, {"builtin": "Jwt"})


def places(value, path=()):
    """Where something can be changed: (path of the object or list, key or index)."""
    keys = [*value] if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield (path, key)
        yield from places(value[key], (*path, key))


PLACES = [*places(WHOLE_WITH_EGRESS)]
NAMES = sorted({key for _, key in PLACES if isinstance(key, str)})


def changed(value, place, how, odd, name):
    """A copy with one thing taken away, put in the place of another, added, or doubled."""
    made = copy.deepcopy(value)
    path, key = place
    try:
        part = made
        for step in path:
            part = part[step]
        if how == "less":
            del part[key]
        elif how == "other":
            part[key] = copy.deepcopy(odd)
        elif how == "more" and isinstance(part, dict):
            part[name] = copy.deepcopy(odd)
        elif isinstance(part, list):
            part.append(copy.deepcopy(part[key]))
    except (KeyError, IndexError, TypeError):  # an earlier change took that place away
        return value
    return made


one_change = st.tuples(
    st.sampled_from(PLACES), st.sampled_from(["less", "other", "more"]), st.sampled_from(ODD), st.sampled_from(NAMES)
)


@settings(max_examples=examples(600), deadline=None)
@given(st.lists(one_change, min_size=1, max_size=3))
def test_the_api_server_takes_all_that_the_parser_takes(changes):
    """What the daemons would accept is stored at all: the schema and its rules are never the stricter ones."""
    value = WHOLE_WITH_EGRESS
    for change in changes:
        value = changed(value, *change)
    try:
        inspection_policy({"metadata": {"name": "p"}, "spec": value})
    except FieldError:
        return
    assert fits(POLICIES[0], value)


def test_each_part_of_a_policy_can_be_left_out_or_not_alike():
    for place in PLACES:
        value = changed(WHOLE_WITH_EGRESS, place, "less", None, "")
        try:
            inspection_policy({"metadata": {"name": "p"}, "spec": value})
        except FieldError:
            continue
        assert fits(POLICIES[0], value), place


def test_a_policy_of_the_cluster_needs_both_selectors():
    for missing in ("namespaceSelector", "podSelector"):
        value = SPEC | {"namespaceSelector": {}}
        assert fits(POLICIES[1], value)
        assert not fits(POLICIES[1], {name: each for name, each in value.items() if name != missing})


# --- rights ----------------------------------------------------------------------------------------------------------


def rights(role):
    return {(resource, verb) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]}


def writes(role):
    return {resource for resource, verb in rights(role) if verb not in {"get", "list", "watch"}}


def test_each_right_has_a_role_of_its_own():
    inspector, auditor = (the("ClusterRole", f"sidestep-{each}") for each in ("inspector", "auditor"))
    assert writes(inspector) == {"inspectionpolicies", "clusterinspectionpolicies"}
    assert writes(auditor) == {"inspections"}
    assert {resource for resource, _ in rights(auditor)} == writes(inspector) | {"inspections"}


def test_the_daemons_write_statuses_of_pods_only_where_somebody_lets_them():
    role = the("ClusterRole", "sidestep-readiness")
    assert rights(role) == {("pods/status", "patch")}
    assert not [one for one in DOCUMENTS if one["kind"].endswith("Binding")]


def test_developers_have_none_of_them():
    developer = test_manifest.the("ClusterRole", "sidestep-developer")
    named = {one["spec"]["names"]["plural"] for one in DOCUMENTS if one["kind"] == "CustomResourceDefinition"}
    assert not named & {resource for resource, _ in rights(developer)}
    assert "*" not in {resource for resource, _ in rights(developer)}


def test_the_daemons_write_nothing_but_statuses():
    daemon = test_manifest.the("ClusterRole", "sidestep-node")
    of_policies = {(resource, verb) for resource, verb in rights(daemon) if "inspectionpolicies" in resource}
    assert of_policies == {
        *((plural, verb) for plural in kube_policies.PLURALS.values() for verb in ("get", "list", "watch")),
        *((f"{plural}/status", "patch") for plural in kube_policies.PLURALS.values()),
    }


def test_the_command_that_removes_it_says_what_goes_with_it():
    text = Path(test_manifest.DEPLOY / "inspection.yaml").read_text()
    assert "WITH EVERY POLICY" in text.partition("---")[0]
