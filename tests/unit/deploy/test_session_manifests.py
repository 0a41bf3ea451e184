"""The definitions of sessions in deploy/ (Intercept, Wiretap, Capture, Inspection): their fields, and who may what."""

import msgspec
import pytest
import yaml

from sidestep.config import capture
from sidestep.kube import resources, session_specs
from sidestep.kube.session_specs import DEFINITIONS, CaptureFields, SpecFields
from sidestep.model.intercept import SessionKind
from tests.unit.deploy.test_inspection_manifest import names_of, properties_of, rights, writes
from tests.unit.deploy.test_manifest import DEPLOY

DOCUMENTS = {
    name: [one for one in yaml.safe_load_all((DEPLOY / name).read_text()) if one]
    for name in ("daemonset.yaml", "inspection.yaml")
}
KINDS = [*DEFINITIONS]


def roles():
    return {
        one["metadata"]["name"]: one for found in DOCUMENTS.values() for one in found if one["kind"] == "ClusterRole"
    }


def definition(kind):
    wanted = DEFINITIONS[kind]
    [found] = [
        one
        for one in DOCUMENTS[wanted.manifest]
        if one["kind"] == "CustomResourceDefinition" and one["spec"]["names"]["kind"] == wanted.kind
    ]
    return found


def schema(kind):
    [version] = definition(kind)["spec"]["versions"]
    assert version["subresources"] == {"status": {}}
    return version["schema"]["openAPIV3Schema"]["properties"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_definition_has_the_names_that_the_code_uses(kind):
    found = definition(kind)
    assert found["metadata"]["name"] == f"{DEFINITIONS[kind].plural}.sidestep.dev"
    assert found["spec"]["scope"] == "Namespaced"


@pytest.mark.parametrize("kind", KINDS)
def test_a_spec_has_the_fields_that_are_read(kind):
    part = schema(kind)["spec"]
    fields = DEFINITIONS[kind].fields
    known = names_of(fields)
    assert properties_of(part) == (known - {"headsOnly", "egress"} if kind is SessionKind.INTERCEPT else known)
    for field in msgspec.structs.fields(fields):
        of_schema = part["properties"].get(field.encode_name, {})
        assert of_schema.get("default", field.default) == field.default
        if field.required:
            assert field.encode_name in part["required"]
    if kind is SessionKind.ACCESS:
        return
    found = part["properties"]["filter"]["properties"]
    assert properties_of(part["properties"]["filter"]) == names_of(session_specs.FilterFields)
    assert properties_of(found["headers"]["items"]) == names_of(session_specs.HeaderFields)
    assert properties_of(found["paths"]["items"]) == names_of(session_specs.PathFields)


@pytest.mark.parametrize("kind", KINDS)
def test_a_status_has_the_fields_that_daemons_write(kind):
    status = schema(kind)["status"]
    entry = status["properties"]["nodes"]["additionalProperties"]
    for struct, found in (
        (resources.StatusFields, status),
        (resources.StatusCondition, status["properties"]["conditions"]["items"]),
        (resources.NodeEntry, entry),
        (resources.DaemonEntry, entry["properties"]["daemon"]),
        (resources.PodEntry, entry["properties"]["pods"]["items"]),
        (resources.ConditionEntry, entry["properties"]["conditions"]["items"]),
    ):
        assert properties_of(found) == names_of(struct), struct


def test_the_bounds_of_a_capture_are_those_that_daemons_keep():
    size = schema(SessionKind.CAPTURE)["spec"]["properties"]["maxBytes"]
    assert (size["minimum"], size["maximum"]) == (capture.MIN_BYTES, capture.MAX_BYTES)


@pytest.mark.parametrize("kind", KINDS)
def test_one_role_may_create_it(kind):
    wanted = DEFINITIONS[kind]
    able = {name for name, role in roles().items() if (wanted.plural, "create") in rights(role)}
    assert able == {wanted.role}
    assert "*" not in {verb for role in roles().values() for _, verb in rights(role)}


def test_who_captures_may_do_nothing_else():
    assert writes(roles()["sidestep-capturer"]) == {"captures"}


def test_who_has_access_to_pods_may_do_nothing_else_and_nobody_else_may():
    assert writes(roles()["sidestep-pod-access"]) == {"podaccesses"}
    for kind in set(KINDS) - {SessionKind.ACCESS}:
        assert not {"allow", "container", "allowLoopback"} & properties_of(schema(kind)["spec"])
        assert not {"allow", "container", "allowLoopback"} & names_of(DEFINITIONS[kind].fields)


def test_who_inspects_may_write_nothing_else_and_who_develops_may_not_inspect():
    assert writes(roles()["sidestep-auditor"]) == {"inspections"}
    for kind in (SessionKind.INTERCEPT, SessionKind.WIRETAP, SessionKind.CAPTURE):
        assert "records" not in properties_of(schema(kind)["spec"])


def test_no_other_kind_has_a_field_of_a_capture():
    """Who may create Intercepts and Wiretaps must not get decrypted traffic with them: RBAC cannot see fields."""
    of_captures = names_of(CaptureFields) - names_of(SpecFields)
    assert of_captures == {"duration", "maxBytes", "snap"}
    for kind in (SessionKind.INTERCEPT, SessionKind.WIRETAP, SessionKind.INSPECTION):
        assert not of_captures & properties_of(schema(kind)["spec"])


@pytest.mark.parametrize("kind", KINDS)
def test_daemons_may_follow_and_delete_it_and_write_its_status(kind):
    plural = DEFINITIONS[kind].plural
    found = {each for each in rights(roles()["sidestep-node"]) if each[0].startswith(plural)}
    assert found == {*((plural, verb) for verb in ("get", "list", "watch", "delete")), (f"{plural}/status", "patch")}
