"""The validation rules (CEL) of the resource definitions, read by a small evaluator: what may change and what may not.

The rules use `has`, `==`, `!=`, `!`, `&&`, `||` and fields only; there CEL and Python differ in nothing but spelling.
"""

import copy
import re

import pytest
import yaml

from sidestep.kube.session_specs import DEFINITIONS as SESSIONS
from tests.unit.deploy.test_manifest import DEPLOY

DEFINITIONS = tuple(f"{each.plural}.sidestep.dev" for each in SESSIONS.values())
SPEC = {
    "workload": "deployment/orders",
    "port": "https",
    "transport": "TCP",
    "pod": "orders-1",
    "filter": {"headers": [{"name": "x-dev", "match": "Exact", "value": "ada"}], "methods": ["GET"]},
    "divertProbes": False,
    "resetExisting": False,
    "headsOnly": False,
    "duration": "60s",
    "maxBytes": 4096,
    "snap": "All",
    "records": "All",
    "handler": {"plaintext": True},
    "owner": "ada",
    "session": {"publicKey": "A" * 43 + "="},
    "renewTime": "2026-01-01T00:00:00.000000Z",
}
OTHER = {
    "workload": "deployment/payments",
    "port": 8443,
    "transport": "UDP",
    "pod": "orders-2",
    "filter": {"headers": []},
    "divertProbes": True,
    "resetExisting": True,
    "headsOnly": True,
    "duration": "61s",
    "maxBytes": 4097,
    "snap": "Heads",
    "records": "Alerts",
    "handler": {"plaintext": False},
    "owner": "eve",
    "session": {"publicKey": "B" * 43 + "="},
}


class Value:
    """An object as CEL sees it."""

    def __init__(self, value):
        self.value = value

    def __getattr__(self, name):
        return Value(self.value[name])  # a KeyError is CEL's "no such key"

    def __eq__(self, other):
        return type(self.value) is type(other.value) and self.value == other.value

    __hash__ = None

    def has(self, path):
        found = self
        for name in path:
            if name not in found.value:
                return False
            found = getattr(found, name)
        return True


def holds(rule, new, old):
    """Whether a rule lets an update pass."""
    text = re.sub(
        r"has\((self|oldSelf)\.([\w.]+)\)", lambda m: f"{m[1]}.has({m[2].split('.')!r})", " ".join(rule.split())
    )
    text = re.sub(r"!(?!=)", " not ", text.replace("&&", " and ").replace("||", " or "))
    assert re.fullmatch(r"[\w\s.()'\[\],=!]+", text), text
    return eval(text, {"__builtins__": {}}, {"self": Value(new), "oldSelf": Value(old)})


def schema(name):
    files = {f"{each.plural}.sidestep.dev": each.manifest for each in SESSIONS.values()}
    documents = yaml.safe_load_all((DEPLOY / files[name]).read_text())
    [definition] = [one for one in documents if one and one["metadata"]["name"] == name]
    [version] = definition["spec"]["versions"]
    return version["schema"]["openAPIV3Schema"]


def passes(part, new, old):
    return all(holds(each["rule"], new, old) for each in part["x-kubernetes-validations"])


@pytest.mark.parametrize("name", DEFINITIONS)
def test_every_field_of_a_spec_but_renew_time_is_kept(name):
    part = schema(name)["properties"]["spec"]
    fields = set(part["properties"])
    old = {field: value for field, value in SPEC.items() if field in fields}
    assert set(old) == fields, "a new field wants a value here, and a place in the rule"
    assert passes(part, old, old)
    assert passes(part, old | {"renewTime": "2027-01-01T00:00:00.000000Z"}, old)
    assert passes(part, {field: value for field, value in old.items() if field != "renewTime"}, old)
    for field in fields - {"renewTime"}:
        assert not passes(part, old | {field: OTHER[field]}, old), f"{field} changed"
        if field not in part["required"]:
            without = {each: value for each, value in old.items() if each != field}
            assert not passes(part, without, old), f"{field} taken away"
            assert not passes(part, old, without), f"{field} added"
            assert passes(part, without, without)


@pytest.mark.parametrize("name", DEFINITIONS)
@pytest.mark.parametrize(
    ("old", "new", "passed"),
    [
        ({}, {"status": {"specDigest": "a"}}, True),
        ({"status": {}}, {"status": {"specDigest": "a"}}, True),
        ({"status": {"specDigest": "a"}}, {"status": {"specDigest": "a", "state": "Active"}}, True),
        ({"status": {"specDigest": "a"}}, {"status": {"specDigest": "b"}}, False),
        ({"status": {"specDigest": "a"}}, {"status": {}}, False),
        ({"status": {"specDigest": "a"}}, {}, False),
    ],
)
def test_the_digest_is_written_once(name, old, new, passed):
    assert passes(schema(name), copy.deepcopy(new), old) is passed
